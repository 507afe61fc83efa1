"""What the original Octo makes of our checkpoints; runs in its environment, see README.md."""

import argparse
import json
import os
import sys
import types
from pathlib import Path

INSTRUCTIONS = (
    "lift the peg upright",
    "pick up the cube",
    "pull the cube towards the robot base",
    "pull the cube by using the red tool",
    "push the cube away from the robot base",
    "push the ball",
    "stack the red cube on the green cube",
    "push the cube by using the blue tool",
    "",
    "Push THE cube, away from the robot base; again and again and again until all is done!",
)


def record_ids(checkpoint: Path) -> dict:
    """Token ids of every instruction, and the names of what the tokenizer returns."""
    from transformers import AutoTokenizer

    processor = json.loads((checkpoint / "config.json").read_text())["text_processor"]["kwargs"]
    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint / processor["tokenizer_name"]))
    tokens = tokenizer(list(INSTRUCTIONS), **processor["tokenizer_kwargs"])
    return {"returned": sorted(tokens), "class": type(tokenizer).__name__} | {
        name: tokens[name].tolist() for name in ("input_ids", "attention_mask")
    }


def record_weights(checkpoint: Path) -> dict:
    """SHA-256 of every parameter as the original's Orbax restores it, by name."""
    import hashlib

    import flax
    import numpy as np
    import orbax.checkpoint

    manager = orbax.checkpoint.CheckpointManager(str(checkpoint), orbax.checkpoint.PyTreeCheckpointer())
    params = flax.traverse_util.flatten_dict(manager.restore(manager.latest_step()), sep="/")
    return {name: hashlib.sha256(np.asarray(value).tobytes()).hexdigest() for name, value in params.items()}


def record_model(checkpoint: Path, seed: int = 0, batch: int = 3) -> dict:
    """Inputs, readout tokens, noise and actions of the original's `OctoModel` for random frames."""
    os.chdir(checkpoint)  # the original looks for the folders `t5-embedded` and `tokenizer` in the working directory
    import jax
    import numpy as np
    from octo.model.octo_model import OctoModel

    model = OctoModel.load_pretrained(str(checkpoint))
    random = np.random.default_rng(seed)
    shape = model.example_batch["observation"]["image_primary"].shape[2:]
    observations = {
        "image_primary": random.integers(0, 256, (batch, 1, *shape), np.uint8),
        "timestep_pad_mask": np.ones((batch, 1), bool),
    }
    tasks = model.create_tasks(texts=list(INSTRUCTIONS[:batch]))
    statistics = model.dataset_statistics
    statistics = (statistics if "action" in statistics else next(iter(statistics.values())))["action"]
    key = jax.random.PRNGKey(seed)
    actions = model.sample_actions(observations, tasks, unnormalization_statistics=statistics, rng=key)
    readout = model.run_transformer(observations, tasks, observations["timestep_pad_mask"])["readout_action"]
    head = model.module.heads["action"]
    size = (batch, 1, head.action_horizon * head.action_dim)
    # As the head's predict_action splits its key.
    rng, first = jax.random.split(key)
    steps = []
    for _ in range(head.diffusion_steps):
        rng, step = jax.random.split(rng)
        steps.append(jax.random.normal(step, size))
    return {
        "frames": observations["image_primary"],
        "readout": np.asarray(readout.tokens),
        "initial_noise": np.asarray(jax.random.normal(first, size)),
        "step_noise": np.stack([np.asarray(noise) for noise in steps]),
        "actions": np.asarray(actions),
        "input_ids": np.asarray(tasks["language_instruction"]["input_ids"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--octo", type=Path, help="checkout of octo-models/octo at 241fb35")
    parser.add_argument("--ids", type=Path, help="write the token ids of all instructions to this JSON file")
    parser.add_argument("--weights", type=Path, help="write digests of all parameters to this JSON file")
    parser.add_argument("--model", type=Path, help="write inputs and outputs of the model to this .npz file")
    parser.add_argument("checkpoints", type=Path, nargs="+")
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.checkpoints]
    if arguments.ids:
        import transformers

        table = {path.name: record_ids(path) for path in paths}
        arguments.ids.write_text(json.dumps({"transformers": transformers.__version__, "checkpoints": table}))
    if arguments.weights:
        import orbax.checkpoint

        table = {path.name: record_weights(path) for path in paths}
        arguments.weights.write_text(json.dumps({"orbax": orbax.checkpoint.__version__, "checkpoints": table}))
    if arguments.model:
        if arguments.octo is None:
            parser.error("--model needs --octo")
        sys.path.insert(0, str(arguments.octo.resolve()))
        sys.modules["dlimp"] = types.SimpleNamespace(DLataset=object)
        import numpy as np

        target = arguments.model.resolve()
        np.savez(target, **record_model(paths[0]))


if __name__ == "__main__":
    main()
