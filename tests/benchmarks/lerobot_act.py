r"""Trains an ACT of LeRobot's on our demos, in LeRobot's environment, and saves it as LeRobot does: a teacher to try.

make lerobot-env
python -m octo_teacher.demos record --task=PushCube-v1 --episodes=300 --image_size=64 \
    --mesh_detail=0.15 --noise=0.3 -o demos/act.h5
python tests/benchmarks/lerobot_act.py --demos=demos/act.h5 --output=act [--minutes=10] [--threads=1]

Prints the command that measures it in the simulator. The policy, its loss, its processors and its files are LeRobot's;
what is ours is the loop over batches, since LeRobot's own wants a dataset of videos.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
IMAGE, STATE = "observation.images.base", "observation.state"
CHUNK, BATCH = 8, 64


def main() -> None:
    from absl import app, flags

    demos = flags.DEFINE_string("demos", None, "The h5 file of octo_teacher.demos.", required=True)
    output = flags.DEFINE_string("output", None, "Folder for the checkpoint.", required=True, short_name="o")
    minutes = flags.DEFINE_float("minutes", 10.0, "Of training.")
    threads = flags.DEFINE_integer("threads", 1, "Of the processor.")

    def run(_) -> None:
        with tempfile.TemporaryDirectory() as folder:
            given = Path(folder) / "given.npz"
            np.savez(given, **read_demos(demos.value))
            python = ROOT / ".venv-lerobot" / "bin" / "python"
            arguments = [given, Path(output.value).resolve(), minutes.value, threads.value]
            environment = {**os.environ, "PYTHONPATH": ""}
            subprocess.run([python, __file__, "--train", *map(str, arguments)], check=True, env=environment)
        settings = ["name=lerobot", "python=.venv-lerobot/bin/python", "state=joints"]
        words = " ".join(f"--config.teacher.{setting}" for setting in settings)
        print(f"python -m rpd_jax.evaluate --teacher={output.value} --tasks=PushCube-v1 --image_size=64 {words}")

    app.run(run)


def read_demos(path: str) -> dict[str, np.ndarray]:
    """Frames uint8 [N, H, W, 3], joints float32 [N, 9], chunks of labels float32 [N, 8, 7], pads bool [N, 8]."""
    import h5py

    frames, joints, chunks, pads = [], [], [], []
    with h5py.File(path) as file:
        for trajectory in file.values():
            labels = trajectory["actions"][()]
            steps = len(labels)
            (robot,) = trajectory["env_states/articulations"].values()
            frames.append(trajectory["obs/sensor_data/human_camera/rgb"][:steps])
            joints.append(robot[:steps, 13:22])  # after the root's pose and velocities
            ahead = np.arange(steps)[:, None] + np.arange(CHUNK)
            chunks.append(labels[np.minimum(ahead, steps - 1)])
            pads.append(ahead >= steps)
    whole = map(np.concatenate, (frames, joints, chunks, pads))
    return dict(zip(("frames", "joints", "chunks", "pads"), whole, strict=True))


def train(given: str, output: str, minutes: str, threads: str) -> None:
    """Runs in LeRobot's environment."""
    import torch

    sys.path.insert(0, str(ROOT))
    from openvla_bridge.lerobot.torchvision_operators import import_torchvision

    import_torchvision()
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    data = {name: torch.as_tensor(array) for name, array in np.load(given).items()}
    frames = data["frames"].permute(0, 3, 1, 2).float() / 255.0
    config = act_config(ACTConfig, frames.shape[-1])
    policy = ACTPolicy(config)
    preprocess, postprocess = make_pre_post_processors(config, dataset_stats=statistics(data, frames))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-4, weight_decay=1e-4)
    begin, seconds, step = time.monotonic(), 60.0 * float(minutes), 0
    policy.train()
    while (spent := time.monotonic() - begin) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 3e-4 * min(1.0, (step + 1) / 100, 2.0 * (1.0 - spent / seconds) + 0.02)
        rows = torch.randint(len(frames), (BATCH,))
        batch = {IMAGE: shifted(frames[rows]), STATE: data["joints"][rows], "action": data["chunks"][rows]}
        loss, _ = policy.forward({**preprocess(batch), "action_is_pad": data["pads"][rows]})
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"step {step}  loss {loss.item():.4f}  {spent / 60:.1f} of {seconds / 60:g} min", flush=True)
    policy.save_pretrained(output)
    for processor in (preprocess, postprocess):
        processor.save_pretrained(output)
    print(f"Written after {step} steps of {BATCH} frames: {output}")


def act_config(kind, size: int):
    from lerobot.configs.types import FeatureType, PolicyFeature

    return kind(
        input_features={
            IMAGE: PolicyFeature(type=FeatureType.VISUAL, shape=(3, size, size)),
            STATE: PolicyFeature(type=FeatureType.STATE, shape=(9,)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(7,))},
        device="cpu",
        chunk_size=CHUNK,
        n_action_steps=CHUNK,
        dim_model=128,
        n_heads=4,
        dim_feedforward=256,
        n_encoder_layers=2,
        use_vae=False,
        pretrained_backbone_weights=None,
    )


def statistics(data, frames) -> dict[str, dict[str, np.ndarray]]:
    """Of a training's dataset, by feature, as LeRobot's processors take them."""
    numbers = {"action": data["chunks"][:, 0], STATE: data["joints"], IMAGE: frames.movedim(1, -1).flatten(0, 2)}
    found = {}
    for name, values in numbers.items():
        of = {
            "mean": values.mean(0),
            "std": values.std(0).clamp(min=1e-2),
            "min": values.amin(0),
            "max": values.amax(0),
        }
        shape = (-1, 1, 1) if name == IMAGE else (-1,)
        found[name] = {statistic: value.reshape(shape).numpy() for statistic, value in of.items()}
    return found


def shifted(images):
    """Each batch moved by up to two pixels, so that no frame is learnt by heart."""
    import torch

    down, right = torch.randint(-2, 3, (2,)).tolist()
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    size = images.shape[-1]
    return padded[..., 2 + down : 2 + down + size, 2 + right : 2 + right + size]


if __name__ == "__main__":
    if "--train" in sys.argv:
        with contextlib.suppress(KeyboardInterrupt):
            train(*sys.argv[2:])
    else:
        main()
