"""Small valid datasets of every format, and what reading a damaged copy of one ends in."""

import shutil
from pathlib import Path
from random import Random

import numpy as np
from damage import damage_folder
from demo_files import HAND, TOP, episode, write_lerobot, write_maniskill, write_rlds

from octo_teacher.data.left_out import Tally
from octo_teacher.data.readers import read_demos
from octo_teacher.data.store import load_demos
from rpd_jax.errors import UserError

KINDS = ("maniskill", "rlds", "array_record", "lerobot_v2", "lerobot_v3", "lerobot_v2_video", "lerobot_v3_video")


def write_whole(kind: str, folder: Path) -> None:
    """Writes a valid dataset of two or three episodes."""
    random = np.random.default_rng(0)
    actions = [random.uniform(-1, 1, (steps, 7)).astype(np.float32) for steps in (3, 2, 4)]
    if kind == "maniskill":
        write_maniskill(folder / "demos.h5", actions, entries=[{"episode_seed": 1, "control_mode": "pd_ee_delta_pose"}])
    elif kind in ("rlds", "array_record"):
        info = {} if kind == "rlds" else {"fileFormat": kind}
        write_rlds(folder / "1.0.0", [[episode(actions[0]), episode(actions[1])], [episode(actions[2])]], **info)
    else:
        version = "v2.1" if "v2" in kind else "v3.0"
        write_lerobot(folder, actions, version=version, tasks=("push", "pull"), video=kind.endswith("video"))


def read_damaged(kind: str, whole: Path, folder: Path, seed: int, cache: Path | None = None) -> str:
    """Damages a copy of the dataset `whole` in `folder` and reads it; returns "read" or "refused: " and the sentence.

    Raises:
        AssertionError: what was read is not of the internal form, or the sentence is none.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    damage_folder(folder, Random(seed))
    source = folder / "demos.h5" if kind == "maniskill" else folder
    cameras = {"primary": TOP if kind.endswith("video") else HAND if kind.startswith("lerobot") else ""}
    try:
        if cache is not None:
            demos = load_demos(source, {"primary": 8}, cameras, cache=cache, on_note=lambda note: None)
        else:
            demos = list(read_demos(source, cameras, tally=Tally(lambda note: None)))
    except UserError as error:
        assert str(error).endswith((".", ")")) and "\n" not in str(error), str(error)
        return f"refused: {error}"
    assert demos
    for demo in demos:
        frames = demo.images["primary"]
        assert demo.actions.dtype == np.float32 and demo.actions.ndim == 2 and np.isfinite(demo.actions).all()
        assert len(frames) == len(demo.actions) > 0 and frames[:].dtype == np.uint8 and frames.shape[-1] == 3
        assert demo.instruction.strip()
    return "read"
