"""What a run carries from iteration to iteration, and its way into a checkpoint and back."""

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np

from rpd_jax.acting.kept_replay import kept, refilled
from rpd_jax.learning.replay import Replay
from rpd_jax.learning.update import LearnerState
from rpd_jax.run.checkpoints import CheckpointError, Checkpoints

_LISTS = ("evaluations", "sampled", "recent")  # of a TrainingState, in the progress of a checkpoint
_NUMBERS = ("evaluated_steps", "lately", "took_best")
_LATELY = 64  # episodes


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """The state between two iterations; all randomness of an iteration follows from the seed and its number.

    Attributes:
        learner: the student, and Adam's moments.
        replay: labelled frames, or None where it is off.
        came: rows that the ring of each device got so far; equal to the replay's count, or a multiple of the ring more.
        iteration: iterations done.
        row: metrics of the last of them, while they are not logged.
        evaluations: success in each evaluation so far; None for each that was left out, see `eval.when_sampled` and
            `eval.share`.
        evaluated_steps: environment steps that the evaluations took.
        sampled: where some are left out, the success of the sampled actions in the episodes before each of them.
        recent: successes among the sampled actions' episodes since then, and those episodes.
        lately: share of successes among the sampled actions' episodes, the last 64 or so: each of them counts 1/64 less
            than the one after it; 0 at the start.
        took_best: the parameters are no longer those of the last iteration, see `with_best`.
    """

    learner: LearnerState
    replay: Replay | None
    iteration: int = 0
    row: dict[str, float] | None = None
    evaluations: tuple[float | None, ...] = ()
    evaluated_steps: int = 0
    sampled: tuple[float, ...] = ()
    recent: tuple[int, int] = (0, 0)
    came: int = 0
    lately: float = 0.0
    took_best: bool = False

    @property
    def logged(self) -> int:
        """Iterations whose metrics were logged: a row that is held still comes, also where it came before a kill."""
        return self.iteration - (self.row is not None)

    @property
    def marks(self) -> tuple[float, ...]:
        """What says which evaluation was the best: their success, or that of the sampled actions before them."""
        return self.sampled or self.evaluations

    def reached(self, until: float) -> bool:
        """True if the newest evaluation found a success of `until` (0: never)."""
        newest = self.evaluations[-1] if self.evaluations else None
        return bool(until) and newest is not None and newest >= until

    def ended(self, until: float, patience: int) -> bool:
        """True if there is nothing more to train for: see `eval.until` and `eval.patience`."""
        before, recent = self.marks[:-patience], self.marks[-patience:]
        return self.reached(until) or (bool(patience and before) and max(recent) <= max(before))

    def saw(self, successes: np.ndarray) -> "TrainingState":
        """With episodes [K] of the sampled actions among the `recent`, and in `lately`."""
        before, episodes = self.recent
        recent, lately = (before + int(successes.sum()), episodes + len(successes)), self.lately
        if len(successes):
            kept = math.exp(-len(successes) / _LATELY)
            lately = kept * lately + (1.0 - kept) * float(successes.mean())
        return dataclasses.replace(self, recent=recent, lately=lately)

    def evaluated(self, success: float | None, steps: int, sampled: float | None) -> "TrainingState":
        """After an evaluation, or one that was left out.

        Args:
            success: what it found, or None.
            steps: of the environments, that it took.
            sampled: success of the sampled actions since the one before; None where no evaluation is left out.
        """
        marks = {} if sampled is None else {"sampled": (*self.sampled, sampled)}
        evaluations, steps = (*self.evaluations, success), self.evaluated_steps + steps
        return dataclasses.replace(self, evaluations=evaluations, evaluated_steps=steps, recent=(0, 0), **marks)

    def with_best(self, checkpoints: Checkpoints, every: int) -> "TrainingState":
        """With the parameters of the best of `marks`, where a checkpoint has them; to be called at the end.

        Args:
            checkpoints: the run's.
            every: iterations between evaluations.

        Raises:
            UserError: the checkpoint cannot be read.
        """
        if self.took_best or not self.marks:
            return self
        most, saved = max(self.marks), checkpoints.saved
        best = [every * number for number, success in enumerate(self.marks, start=1) if success == most]
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
            success: of the student now, the newest of `marks`, if it is that old.

        Raises:
            CheckpointError: it could not be written, or a replay was lost while it was extended.
        """
        if any(leaf.is_deleted() for leaf in jax.tree.leaves((self.learner, self.replay))):
            raise CheckpointError(f"The replay was lost when memory ran out: the same command {checkpoints.continues}.")
        progress = {"step": step, "row": self.row, "devices": jax.device_count()}
        progress |= {name: list(getattr(self, name)) for name in _LISTS}
        progress |= {name: getattr(self, name) for name in _NUMBERS}
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
        lists = {name: tuple(progress[name]) for name in _LISTS if name in progress}
        numbers = {name: progress[name] for name in _NUMBERS if name in progress}
        return TrainingState(tree["learner"], replay, iteration, progress.get("row"), came=came, **lists, **numbers)

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
