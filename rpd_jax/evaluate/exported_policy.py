"""The jax.export program of a folder that rpd_jax.export wrote, read back."""

import hashlib
import json
import shlex
from pathlib import Path

import jax

from rpd_jax.errors import UserError

DESCRIPTION_FILE, JAX_FILE = "policy.json", "policy.jax"
_NEEDED = ("inputs", "task", "image_size", "mesh_detail", "camera")


def digest(content: bytes) -> str:
    """What policy.json holds of a file, to tell whether it is whole."""
    return hashlib.sha256(content).hexdigest()


def read_description(folder: str | Path) -> dict:
    """Returns what policy.json holds, once the files that it lists are found to be those that were written.

    Raises:
        UserError: no policy folder, or a file of it is missing or damaged.
    """
    path = Path(folder) / DESCRIPTION_FILE
    try:
        description = json.loads(path.read_bytes())
        missing = [name for name in _NEEDED if name not in description]
        if missing:
            raise UserError(f"{path} lacks {', '.join(missing)}: export the run again.")
        for name, entry in description["inputs"].items():
            if name not in ("rgb", "state") or not isinstance(entry["dtype"], str) or entry["shape"][0] != "batch":
                raise ValueError(f"the input {name!r} is none of a student's")
        files = dict(description.get("sha256", {}))  # not in older exports
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(
            f"{folder} is no policy folder ({error}): make one with python -m rpd_jax.export --run=DIR -o "
            f"{shlex.quote(str(folder))}."
        ) from error
    for name, expected in files.items():
        file = path.parent / Path(str(name)).name
        try:
            found = digest(file.read_bytes())
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): export the run again.") from error
        if found != expected:
            raise UserError(f"{file} is not as it was written: export the run again.")
    return description


class ExportedPolicy:
    """The jax.export program of a policy folder.

    Attributes:
        description: what policy.json holds: observation, inputs, task, camera, origin.
    """

    def __init__(self, folder: str | Path):
        """Reads the program.

        Raises:
            UserError: no policy folder, a file that was cut short or changed, or a program of an incompatible JAX.
        """
        self.description = read_description(folder)
        file = Path(folder) / JAX_FILE
        try:
            exported = jax.export.deserialize(bytearray(file.read_bytes()))
        except Exception as error:  # many types for one thing: not a program that this JAX can read
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{file} is of another JAX ({cause}): export the run again.") from error
        inputs = [(tuple(entry["shape"][1:]), entry["dtype"]) for entry in self.description["inputs"].values()]
        if inputs != [(tuple(aval.shape[1:]), str(aval.dtype)) for aval in exported.in_avals]:
            raise UserError(f"{file} takes other inputs than policy.json says: export the run again.")
        self._call = jax.jit(exported.call)

    def act(self, rgb: jax.Array | None = None, state: jax.Array | None = None) -> jax.Array:
        """Actions float32 [B, A] in [-1, 1] for frames uint8 [B, H, W, 3] and/or states float32 [B, D].

        What the student does not look at may be given and is ignored.
        """
        given = {"rgb": rgb, "state": state}
        return self._call(*(given[name] for name in self.description["inputs"]))
