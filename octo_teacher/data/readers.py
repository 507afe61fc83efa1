"""Finds the format of a dataset and reads it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from octo_teacher.data.actions import ActionMeaning
from octo_teacher.data.demo_format import DemoFormat
from octo_teacher.data.episodes import Demo
from octo_teacher.data.left_out import Tally, kept
from octo_teacher.data.lerobot import lerobot_meaning, read_lerobot
from octo_teacher.data.maniskill import maniskill_meaning, read_maniskill
from octo_teacher.data.rlds import find_rlds, read_rlds, rlds_meaning, several, versions_below
from rpd_jax import registry
from rpd_jax.errors import UserError

GROUP = "octo_teacher.demo_formats"
FORMATS = {
    "maniskill": DemoFormat(
        "an h5 file of ManiSkill",
        lambda path: path.suffix in (".h5", ".hdf5"),
        read_maniskill,
        maniskill_meaning,
    ),
    "lerobot": DemoFormat(
        "a folder with meta/info.json (LeRobot)",
        lambda path: (path / "meta" / "info.json").is_file(),
        read_lerobot,
        lerobot_meaning,
        resizes=True,
    ),
    "rlds": DemoFormat(
        "a folder with features.json (RLDS)",
        lambda path: (path / "features.json").is_file(),
        read_rlds,
        rlds_meaning,
        resizes=True,
    ),
}


def format_of(path: Path) -> str:
    """Returns "maniskill", "rlds", "lerobot", or the name that another package has given its format.

    Raises:
        UserError: `path` is missing, none of them, or several datasets.
    """
    path = Path(path)
    formats = _formats()
    if formats["maniskill"].recognises(path):
        return "maniskill"
    if not path.exists():
        raise UserError(f"The demos {path} do not exist: record some with 'python -m octo_teacher.demos record'.")
    for name, known in formats.items():
        if known.recognises(path):
            return name
    below = [*versions_below(path), *_others_below(path)]
    if len(below) > 1:
        raise several(path, below)
    if below and find_rlds(path) is not None:
        return "rlds"
    if below:
        raise UserError(f"{path} is no dataset, but {str(below[0])!r} in it is: name that.")
    kinds = ", ".join(known.description for known in formats.values())
    raise UserError(f"{path} is none of the known kinds of demos: {kinds}.")


def read_demos(
    path: Path,
    cameras: Mapping[str, str] | None = None,
    *,
    instruction: str = "",
    split: str = "train",
    only_successful: bool = True,
    tally: Tally | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Iterator[Demo]:
    """Yields the episodes of a dataset of any known format, one in memory at a time.

    What is left out is said at the end, one line for each reason.

    Args:
        path: an h5 file, or a folder.
        cameras: model camera -> the dataset's name of it; "" is ManiSkill's human camera, or the only camera.
        instruction: said to the robot where the dataset holds no instruction, or an empty one.
        split: see `splits.select`.
        only_successful: of ManiSkill files, leave out failed and overlong episodes.
        tally: counts what is left out; its lines go to the log without one.
        sizes: model camera -> height and width to which its frames may be resized while they are read, where whole
            episodes of decoded frames would be much memory; see `DemoFormat.resizes`.

    Raises:
        UserError: a missing or malformed file, with its name and the key.
    """
    known = _formats()[format_of(path)]
    tally = tally or Tally(keep=kept(only_successful))
    more = {"sizes": sizes} if known.resizes else {}
    return known.read(path, cameras, instruction=instruction, split=split, tally=tally, **more)


def action_meaning(path: Path) -> ActionMeaning:
    """What the metadata of a dataset of any known format says of its actions."""
    return _formats()[format_of(path)].action_meaning(path)


def source_files(path: Path) -> list[Path]:
    """The files that a dataset consists of, whose sizes and times tell whether it has changed."""
    path = Path(path)
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [file for file in (path, path.with_suffix(".json")) if file.exists()]


def _others_below(path: Path) -> list[Path]:
    """The LeRobot datasets and h5 files below a folder."""
    lerobot = [file.parents[1] for pattern in ("*", "*/*") for file in path.glob(f"{pattern}/meta/info.json")]
    return lerobot + [file for pattern in ("*", "*/*", "*/*/*") for file in path.glob(f"{pattern}.h5")]


def _formats() -> dict[str, DemoFormat]:
    """All formats by name, ours first."""
    others = [name for name in registry.names(GROUP) if name not in FORMATS]
    return FORMATS | {name: registry.load(GROUP, name, DemoFormat) for name in others}
