"""How many frames per second a fine-tuning trains on, and how long it waits for data."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax

from rpd_jax.run.console import Console
from rpd_jax.run.stages import StageClock

_WAITING, _TRAINING = "wait for data", "train"
STAGES = (_WAITING, _TRAINING, "validate", "evaluate", "save")


class Throughput:
    """Where the time goes, and how many frames per second are trained on.

    The time for fetching a batch counts as waiting only if the devices had already finished the step before it, since
    otherwise it is hidden behind that step; it is then an upper bound of the time in which they were idle.

    Args:
        batch_size: frames per step.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._clock = StageClock()
        self.stage = self._clock.stage
        self.restart()

    def restart(self) -> None:
        """Forgets everything so far."""
        self._clock.lap()
        self._whole: dict[str, float] = {}
        self._steps = self._whole_steps = 0

    @contextmanager
    def fetching(self, running: Mapping[str, jax.Array] | None) -> Iterator[None]:
        """Counts the time inside the block as waiting if the step that returned `running` is over at its end."""
        start = time.perf_counter()
        yield
        hidden = running is not None and not all(value.is_ready() for value in running.values())
        self._clock.add(_TRAINING if hidden else _WAITING, time.perf_counter() - start)
        self._steps += 1

    def interval(self) -> dict[str, float]:
        """Frames per second and share of waiting since the last call, over the time of training alone."""
        lap = self._clock.lap()
        steps, self._steps = self._steps, 0
        for name, seconds in lap.items():
            self._whole[name] = self._whole.get(name, 0.0) + seconds
        self._whole_steps += steps
        rate, share = self._speed(lap, steps)
        return {"frames_per_second": rate, "data_wait_share": share} if rate else {}

    def tell(self, console: Console) -> None:
        """Prints the whole run since the last restart."""
        self.interval()
        seconds = {name: self._whole.get(name, 0.0) for name in STAGES}
        console.time_split(seconds, self._whole["total"], "seconds", 1)
        rate, share = self._speed(self._whole, self._whole_steps)
        console.say(
            f"Training: {rate:.1f} frames/s, {share:.1%} of the time waiting for data."
            if rate
            else "Too short to tell the speed."
        )

    def _speed(self, seconds: Mapping[str, float], steps: int) -> tuple[float, float]:
        waiting = seconds.get(_WAITING, 0.0)
        busy = waiting + seconds.get(_TRAINING, 0.0)
        return (steps * self._batch_size / busy, waiting / busy) if steps and busy else (0.0, 0.0)
