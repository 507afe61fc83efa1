"""Finds the format of a dataset and reads it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from octo_teacher.data.episodes import Demo
from octo_teacher.data.lerobot import read_lerobot
from octo_teacher.data.maniskill import read_maniskill
from octo_teacher.data.rlds import find_rlds, read_rlds
from rpd_jax.errors import UserError


def format_of(path: Path) -> str:
    """Returns "maniskill", "rlds" or "lerobot".

    Raises:
        UserError: `path` is missing or none of them.
    """
    path = Path(path)
    if path.suffix in (".h5", ".hdf5"):
        return "maniskill"
    if not path.exists():
        raise UserError(f"The demos {path} do not exist: record some with 'python -m octo_teacher.demos record'.")
    if (path / "meta" / "info.json").is_file():
        return "lerobot"
    if path.is_dir() and find_rlds(path) is not None:
        return "rlds"
    raise UserError(
        f"{path} is none of the known kinds of demos: an h5 file of ManiSkill, a folder with features.json (RLDS), "
        "a folder with meta/info.json (LeRobot)."
    )


def read_demos(
    path: Path,
    cameras: Mapping[str, str] | None = None,
    *,
    instruction: str = "",
    split: str = "train",
    only_successful: bool = True,
) -> Iterator[Demo]:
    """Yields the episodes of a dataset of any known format, one in memory at a time.

    Args:
        path: an h5 file, or a folder.
        cameras: model camera -> the dataset's name of it; "" is ManiSkill's human camera, or the only camera.
        instruction: said to the robot where the dataset holds no instruction.
        split: of an RLDS dataset.
        only_successful: of ManiSkill files, leave out failed and overlong episodes.

    Raises:
        UserError: a missing or malformed file, with its name and the key.
    """
    kind = format_of(path)
    if kind == "maniskill":
        return read_maniskill(path, cameras, only_successful=only_successful)
    if kind == "rlds":
        return read_rlds(path, cameras, instruction=instruction, split=split)
    return read_lerobot(path, cameras, instruction=instruction)


def source_files(path: Path) -> list[Path]:
    """The files that a dataset consists of, whose sizes and times tell whether it has changed."""
    path = Path(path)
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [file for file in (path, path.with_suffix(".json")) if file.exists()]
