"""The teachers that come along, by name."""

from pathlib import Path

from rpd_jax.errors import UserError

DEFAULT = "octo-nano"
_FOLDER = Path(__file__).parent / "pretrained"


def find_checkpoint(name: str) -> str:
    """Returns where a checkpoint is: `name` itself if it is a folder or hub address, else the embedded one so called.

    Raises:
        UserError: there is neither.
    """
    if name.startswith("hf://") or Path(name).is_dir():
        return name
    if (_FOLDER / name / "config.json").is_file():
        return str(_FOLDER / name)
    names = sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))
    raise UserError(
        f"teacher.checkpoint={name!r} is not a folder: give a checkpoint's folder, hf://owner/name, "
        f"or one of the embedded teachers ({', '.join(names)})."
    )
