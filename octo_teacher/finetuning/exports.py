"""The models that a fine-tuning leaves, in Octo's published layout: one step each, whole, the newest few kept."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from octo_teacher import checkpoints
from octo_teacher.octo_model import OctoModel
from rpd_jax.errors import UserError


class Exports:
    """The folder `model` of a fine-tuning run, to which no other process writes.

    Args:
        folder: made at the first export.
        keep: steps to keep, the newest ones.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self._keep = folder, keep

    def ensure(self, step: int, make_model: Callable[[], OctoModel]) -> None:
        """Sees to it that the model of `step` is there and whole, and removes what is older than those to keep.

        An export that a kill or a full disk cut short, or that cannot be read, is done again.

        Args:
            step: of the model.
            make_model: returns it; called only if it has to be written.

        Raises:
            OSError: the disk is full.
        """
        if not self._is_whole(step):
            self._remove(step)
            make_model().save_pretrained(step, self.folder)
        for old in self._steps()[: -self._keep]:
            shutil.rmtree(self.folder / str(old))

    def _is_whole(self, step: int) -> bool:
        if not (self.folder / str(step)).is_dir():
            return False
        try:
            checkpoints.read(self.folder, step)
        except UserError:
            return False
        return True

    def _remove(self, step: int) -> None:
        """Makes room for an export: of a broken one, nothing is left that could be taken for a part of the new one."""
        if (self.folder / str(step)).exists():
            shutil.rmtree(self.folder / str(step))
            for file in self.folder.iterdir():
                if file.is_file():
                    file.unlink()
        for left in self.folder.glob(".*-*"):  # what kills left half-written
            shutil.rmtree(left, ignore_errors=True)

    def _steps(self) -> list[int]:
        return sorted(int(entry.name) for entry in self.folder.iterdir() if re.fullmatch("[0-9]+", entry.name))
