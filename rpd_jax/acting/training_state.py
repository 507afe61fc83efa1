"""What a run carries from iteration to iteration, and its way into a checkpoint and back."""

import dataclasses
from collections.abc import Callable

import jax

from rpd_jax.learning.learner import LearnerState
from rpd_jax.learning.replay import Replay
from rpd_jax.run.checkpoints import CheckpointError, Checkpoints


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """The state between two iterations; all randomness of an iteration follows from the seed and its number.

    Attributes:
        learner: the student, and Adam's moments.
        replay: labelled frames, or None where it is off.
        iteration: iterations done.
        row: metrics of the last of them, while they are not logged.
        evaluations: success in each evaluation so far.
    """

    learner: LearnerState
    replay: Replay | None
    iteration: int = 0
    row: dict[str, float] | None = None
    evaluations: tuple[float, ...] = ()

    def ended(self, until: float, patience: int) -> bool:
        """True if there is nothing more to train for: see `eval.until` and `eval.patience`."""
        if until and self.evaluations and self.evaluations[-1] >= until:
            return True
        before, recent = self.evaluations[:-patience], self.evaluations[-patience:]
        return bool(patience and before) and max(recent) <= max(before)

    def save(self, checkpoints: Checkpoints, step: int, success: float | None = None) -> None:
        """Writes the checkpoint of this iteration; all processes of a run together.

        Args:
            checkpoints: the run's.
            step: environment steps so far.
            success: of the student now, if it was measured.

        Raises:
            CheckpointError: it could not be written, or a replay was lost while it was extended.
        """
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(self._tree())):
            raise CheckpointError(f"The replay was lost when memory ran out: the same command {checkpoints.continues}.")
        progress = {"step": step, "row": self.row, "devices": jax.device_count()}
        progress["evaluations"] = list(self.evaluations)
        checkpoints.save(self.iteration, self._tree(), progress, success)

    def restored(self, checkpoints: Checkpoints, say: Callable[[str], None]) -> "TrainingState":
        """The newest checkpoint's state, or this one if there is none.

        Args:
            checkpoints: the run's; their arrays are shaped as this state's.
            say: told what the checkpoint could not give.
        """
        found = checkpoints.restore(self._tree())
        if found is None:
            return self
        iteration, tree, progress = found
        replay, devices = tree.get("replay"), progress.get("devices", 1)
        if replay is not None and devices != jax.device_count():
            replay = self.replay
            say(f"The replay starts empty: it was kept by {devices} devices and {jax.device_count()} are here.")
        evaluations = tuple(progress.get("evaluations", ()))
        return TrainingState(tree["learner"], replay, iteration, progress.get("row"), evaluations)

    def _tree(self) -> dict:
        tree = {"learner": self.learner}
        return tree if self.replay is None else tree | {"replay": self.replay}
