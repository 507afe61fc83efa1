"""Damaged checkpoints of teachers and exported policies, and whether they load, for the suite and tests/benchmarks."""

import shutil
import sys
from pathlib import Path
from random import Random

import jax
import numpy as np
from damage import damage_folder

from rpd_jax.errors import UserError

KINDS = ("octo", "openvla", "policy")
TASK = "push the cube away from the robot base"
FRAMES = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)


def write_whole(kind: str, folder: Path) -> None:
    """Writes a valid checkpoint of random weights into an empty folder."""
    if kind == "octo":
        write_octo(folder)
    elif kind == "openvla":
        sys.path.append(str(Path(__file__).parent / "openvla_bridge"))
        from tiny_openvla import write_checkpoint

        write_checkpoint(folder)
    else:
        write_policy(folder)


def write_octo(folder: Path) -> None:
    """An Octo of one narrow layer and a head that is quickly sampled."""
    from octo_teacher.finetuning.octo_nano import ENCODER, TOKENIZER, TOKENS, write_text_files
    from octo_teacher.model.architectures import make_config, make_example_batch
    from octo_teacher.octo_model import OctoModel

    write_text_files(folder)
    stem = {"features": [32], "kernel_sizes": [8], "strides": [8], "padding": [0], "num_features": 8}
    config = make_config(
        d=16,
        num_layers=1,
        mlp_dim=16,
        num_attention_heads=2,
        cameras=("primary",),
        stem_kwargs=stem,
        encoder=ENCODER,
        tokenizer=TOKENIZER,
        tokens=TOKENS,
        head_kwargs={"hidden_dim": 8, "num_blocks": 1, "diffusion_steps": 3},
    )
    config["model"]["max_horizon"] = 2
    batch = make_example_batch({"primary": 32}, tokens=TOKENS)
    action = {"mean": [0.0] * 7, "std": [1.0] * 7, "min": [-1.0] * 7, "max": [1.0] * 7, "mask": [True] * 6 + [False]}
    model = OctoModel.from_config(config, batch, dataset_statistics={"micro": {"action": action}}, folder=folder)
    model.save_pretrained(0, folder)


def write_policy(folder: Path) -> None:
    """An exported student that sees the state, with a run that never was."""
    from configs import default
    from rpd_jax import settings
    from rpd_jax.evaluate.trained_student import TrainedStudent
    from rpd_jax.export.policy import export_policy
    from rpd_jax.student.networks import ActorCritic

    config = default.get_config()
    config.student.observation = "state"
    config = settings.resolve(config)
    network = ActorCritic.from_config(config.student)
    params = network.init(jax.random.key(0), None, np.zeros((1, 5), np.float32))
    export_policy(TrainedStudent(config, network, params, 3, 5), folder)


def read_damaged(kind: str, whole: Path, folder: Path, seed: int, act: bool = True) -> str:
    """Damages a copy of `whole` in `folder` and loads it; returns "read" or "refused: " and the sentence.

    With `act`, an Octo labels a frame too for one seed in ten: that compiles.

    Raises:
        AssertionError: what was loaded gives no actions, or other ones than it must; or the sentence is none.
    """
    from openvla_bridge.errors import BridgeError

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    damage_folder(folder, Random(seed))
    try:
        {"octo": use_octo, "openvla": use_openvla, "policy": use_policy}[kind](folder, whole, act and seed % 10 == 0)
    except (UserError, BridgeError) as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, str(error)
        return f"refused: {error}"
    return "read"


def use_octo(folder: Path, whole: Path, act: bool) -> None:
    """Loads the teacher and encodes an instruction; labels a frame too if it is to act."""
    from octo_teacher.teacher import OctoTeacher

    teacher = OctoTeacher.load(folder, say=lambda text: None)
    teacher.tasks(TASK)
    if act:
        actions = np.asarray(teacher.act(FRAMES, TASK, jax.random.key(0)))
        # Weights that are finite and senseless may give NaN, which the learner stops at.
        assert actions.shape == (1, 1, 7) and not (np.abs(actions) > 1).any()


def use_openvla(folder: Path, whole: Path, act: bool) -> None:
    """Loads the model and labels a frame."""
    from openvla_bridge.model.policy import OpenVLAPolicy

    policy = OpenVLAPolicy.load(str(folder), "cpu")
    actions = policy.environment_actions(policy.predict_tokens(FRAMES, TASK))
    assert actions.shape == (1, 1, policy.action_dim) and (np.abs(actions) <= 1).all()


def use_policy(folder: Path, whole: Path, act: bool) -> None:
    """Loads the policy and acts by the JAX program and by numpy: the actions are those of the whole one."""
    from rpd_jax.evaluate.exported_policy import ExportedPolicy
    from rpd_jax.export.policy import numpy_policy

    example = dict(np.load(whole / "example.npz"))
    for act in (ExportedPolicy(folder).act, numpy_policy(folder)):
        np.testing.assert_allclose(act(state=example["state"]), example["actions"], atol=1e-4)
