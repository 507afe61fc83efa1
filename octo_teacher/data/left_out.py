"""Which episodes reading leaves out, and the one line that says so for each reason."""

import enum
import logging
from collections.abc import Callable
from pathlib import Path

from rpd_jax.errors import UserError

_LOG = logging.getLogger(__name__)
_NAMED = 5


class Reason(enum.Enum):
    """Why an episode is left out: what it is, and the setting that decides."""

    EMPTY = "have no step", "there is nothing to learn from them"
    FAILED = "failed", "config.only_successful=False keeps them"
    OVERLONG = "are longer than the task's limit", "config.only_successful=False keeps them"
    UNTOLD = "have no instruction", "config.instruction is told where one is missing"
    PADDING = "have padding instead of frames of a camera", "config.cameras chooses another one"


def kept(only_successful: bool) -> tuple[Reason, ...]:
    """The reasons that leave nothing out under the setting config.only_successful."""
    return () if only_successful else (Reason.FAILED, Reason.OVERLONG)


class Tally:
    """Counts the episodes of one dataset that are read and those that are left out.

    Args:
        tell: called with each line that is to be said.
        keep: reasons that do not count, since the user keeps such episodes.
        looking: leave out only what cannot be looked at, but count all; for `inspect`.
    """

    def __init__(
        self,
        tell: Callable[[str], None] = _LOG.warning,
        *,
        keep: tuple[Reason, ...] = (),
        looking: bool = False,
    ):
        self._tell, self._keep, self._looking = tell, keep, looking
        self._names: dict[Reason, list[str]] = {}
        self._notes: dict[str, list[str]] = {}
        self._details: dict[Reason, str] = {}
        self._total = self._read = 0

    @property
    def looking(self) -> bool:
        """Whether the episodes are only looked at."""
        return self._looking

    def leaves_out(self, reason: Reason, name: str, detail: str = "") -> bool:
        """Whether the episode `name` is left out for this reason; it is counted then.

        `detail` is said behind the reason.
        """
        if reason in self._keep:
            return False
        self._names.setdefault(reason, []).append(name)
        self._details[reason] = detail
        dropped = not self._looking or reason in (Reason.EMPTY, Reason.PADDING)
        self._total += dropped
        return dropped

    def reads(self) -> None:
        """Counts an episode that is read."""
        self._total += 1
        self._read += 1

    def notes(self, sentence: str, name: str) -> None:
        """Counts an episode that is read, but of which something must be said."""
        self._notes.setdefault(sentence, []).append(name)

    def says(self, sentence: str) -> None:
        """Says something about the whole dataset."""
        self._tell(sentence)

    def close(self, source: Path) -> None:
        """Says what was left out of `source`.

        Raises:
            UserError: nothing is left.
        """
        if not self._read:
            why = "; ".join(
                f"{len(names)} of {self._total} {reason.value[0]}{self._details[reason]} ({_some(names)}), "
                f"{reason.value[1]}"
                for reason, names in self._names.items()
            )
            raise UserError(
                f"{source} holds no usable episode: {why or 'record with python -m octo_teacher.demos record'}."
            )
        for reason, names in self._names.items():
            self._tell(
                f"{source}: training leaves out {len(names)} of {self._total} episodes, which "
                f"{reason.value[0]}{self._details[reason]} ({_some(names)}): {reason.value[1]}."
            )
        for sentence, names in self._notes.items():
            self._tell(f"{source}: {len(names)} of {self._total} episodes {sentence} ({_some(names)}).")


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
