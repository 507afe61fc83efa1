"""The jax.export program of a folder that rpd_jax.export wrote, read back."""

import hashlib
import json
from pathlib import Path

import jax

from rpd_jax.errors import UserError

DESCRIPTION_FILE, JAX_FILE = "policy.json", "policy.jax"
_NEEDED = ("inputs", "task", "image_size", "mesh_detail", "camera")


def digest(content: bytes) -> str:
    """What policy.json holds of a file, to tell whether it is whole."""
    return hashlib.sha256(content).hexdigest()


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
        path = Path(folder) / DESCRIPTION_FILE
        try:
            self.description = json.loads(path.read_text())
            blob = (path.parent / JAX_FILE).read_bytes()
            expected = self.description.get("sha256", {}).get(JAX_FILE)
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"{folder} is no policy folder ({error}): make one with python -m rpd_jax.export --run=DIR -o {folder}."
            ) from error
        missing = [name for name in _NEEDED if name not in self.description]
        if missing:
            raise UserError(f"{path} lacks {', '.join(missing)}: export the run again.")
        if expected not in (None, digest(blob)):
            raise UserError(f"{path.parent / JAX_FILE} is not as it was written: export the run again.")
        try:
            self._call = jax.jit(jax.export.deserialize(bytearray(blob)).call)
        except Exception as error:  # the reader of flatbuffers raises what its stumbling happens to raise
            raise UserError(f"{path.parent / JAX_FILE} is of another JAX ({error}): export the run again.") from error

    def act(self, rgb: jax.Array | None = None, state: jax.Array | None = None) -> jax.Array:
        """Actions float32 [B, A] in [-1, 1] for frames uint8 [B, H, W, 3] and/or states float32 [B, D].

        What the student does not look at may be given and is ignored.
        """
        given = {"rgb": rgb, "state": state}
        return self._call(*(given[name] for name in self.description["inputs"]))
