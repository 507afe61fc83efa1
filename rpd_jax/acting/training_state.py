"""What a run carries from iteration to iteration, and its way into a checkpoint and back."""

import dataclasses
from collections.abc import Callable

import jax

from rpd_jax.acting.kept_replay import kept, refilled
from rpd_jax.learning.learner import LearnerState
from rpd_jax.learning.replay import Replay
from rpd_jax.run.checkpoints import CheckpointError, Checkpoints


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """The state between two iterations; all randomness of an iteration follows from the seed and its number.

    Attributes:
        learner: the student, and Adam's moments.
        replay: labelled frames, or None where it is off.
        came: rows that the ring of each device got so far; equal to the replay's count, or a multiple of the ring more.
        iteration: iterations done.
        row: metrics of the last of them, while they are not logged.
        evaluations: success in each evaluation so far.
        took_best: the parameters are no longer those of the last iteration, see `with_best`.
    """

    learner: LearnerState
    replay: Replay | None
    iteration: int = 0
    row: dict[str, float] | None = None
    evaluations: tuple[float, ...] = ()
    came: int = 0
    took_best: bool = False

    @property
    def logged(self) -> int:
        """Iterations whose metrics were logged: a row that is held still comes, also where it came before a kill."""
        return self.iteration - (self.row is not None)

    def ended(self, until: float, patience: int) -> bool:
        """True if there is nothing more to train for: see `eval.until` and `eval.patience`."""
        if until and self.evaluations and self.evaluations[-1] >= until:
            return True
        before, recent = self.evaluations[:-patience], self.evaluations[-patience:]
        return bool(patience and before) and max(recent) <= max(before)

    def with_best(self, checkpoints: Checkpoints, every: int) -> "TrainingState":
        """With the parameters that were best in an evaluation, where a checkpoint has them; to be called at the end.

        Args:
            checkpoints: the run's.
            every: iterations between evaluations.

        Raises:
            UserError: the checkpoint cannot be read.
        """
        if self.took_best or not self.evaluations:
            return self
        most, saved = max(self.evaluations), checkpoints.saved
        best = [every * number for number, success in enumerate(self.evaluations, start=1) if success == most]
        learner, kept = self.learner, [iteration for iteration in best if iteration in saved]
        if self.iteration not in best and kept:
            params = checkpoints.read_part(kept[-1], "learner", "params")
            places = jax.tree.map(lambda leaf: leaf.sharding, learner.params)
            learner = learner.replace(params=jax.device_put(params, places))
        return dataclasses.replace(self, learner=learner, took_best=True)

    def save(self, checkpoints: Checkpoints, step: int, success: float | None = None) -> None:
        """Writes the checkpoint of this iteration; all processes of a run together.

        Args:
            checkpoints: the run's.
            step: environment steps so far.
            success: of the student now, if it was measured.

        Raises:
            CheckpointError: it could not be written, or a replay was lost while it was extended.
        """
        if any(leaf.is_deleted() for leaf in jax.tree.leaves((self.learner, self.replay))):
            raise CheckpointError(f"The replay was lost when memory ran out: the same command {checkpoints.continues}.")
        progress = {"step": step, "row": self.row, "devices": jax.device_count()}
        progress |= {"evaluations": list(self.evaluations), "took_best": self.took_best}
        rows = None
        if self.replay is not None:
            progress["replay"], rows = kept(self.replay, self.came)
        checkpoints.save(self.iteration, {"learner": self.learner}, progress, success, rows)

    def restored(self, checkpoints: Checkpoints, say: Callable[[str], None]) -> "TrainingState":
        """The newest checkpoint's state, or this one if there is none.

        Args:
            checkpoints: the run's; their arrays are shaped as this state's.
            say: told what the checkpoint could not give.

        Raises:
            UserError: the checkpoint cannot be read.
        """
        progress = checkpoints.progress()
        if progress is None:
            return self
        # Checkpoints of before the replay had files of its own hold it themselves.
        inside = {"replay": self.replay} if self.replay is not None and "replay" not in progress else {}
        iteration, tree, progress = checkpoints.restore({"learner": self.learner} | inside)
        replay, came = self._restored_replay(tree, progress, checkpoints, say)
        evaluations = tuple(progress.get("evaluations", ()))
        row, took_best = progress.get("row"), progress.get("took_best", False)
        return TrainingState(tree["learner"], replay, iteration, row, evaluations, came, took_best)

    def _restored_replay(
        self, tree: dict, progress: dict, checkpoints: Checkpoints, say: Callable[[str], None]
    ) -> tuple[Replay | None, int]:
        """The replay of a checkpoint, or this one, which is empty, where it has none for this machine; and `came`."""
        if self.replay is None:
            return None, 0
        devices = progress.get("devices", 1)
        if devices != jax.device_count():
            say(f"The replay starts empty: it was kept by {devices} devices and {jax.device_count()} are here.")
            return self.replay, 0
        if "replay" in tree:
            return tree["replay"], int(tree["replay"].count)
        if checkpoints.lacks_rows:
            say("The replay starts empty: its folder was removed.")
            return self.replay, 0
        return refilled(self.replay, progress["replay"], checkpoints), progress["replay"]["came"]
