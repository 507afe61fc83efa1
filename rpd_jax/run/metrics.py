"""Where numbers go: metrics.jsonl, TensorBoard, and the time that each stage of an iteration took."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from rpd_jax.run.wandb_log import WandbLog


class MetricsLog:
    """Appends one line of metrics per iteration to metrics.jsonl, and the same numbers to TensorBoard."""

    def __init__(self, workdir: Path, first_iteration: int, wandb: bool = False):
        """Opens the log; lines of `first_iteration` and later, left by a run that was cut short, are dropped.

        Args:
            workdir: the run's directory, with its config.json if `wandb` is on.
            first_iteration: that the run goes on with.
            wandb: write to Weights & Biases too.

        Raises:
            UserError: W&B does not work.
        """
        path = workdir / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _iteration_of(line) < first_iteration]
            # Whole or not at all: a kill in the middle must not cost the lines so far.
            kept = path.with_suffix(".tmp")
            kept.write_text("".join(line + "\n" for line in lines))
            os.replace(kept, path)
        self._file = path.open("a")
        (workdir / "tensorboard").mkdir(exist_ok=True)
        # Not SummaryWriter: its thread dies of a full disk, and then its queue blocks for good.
        self._events = EventsWriter(str(workdir / "tensorboard" / "events"))
        self._wandb = WandbLog(workdir, json.loads((workdir / "config.json").read_text())) if wandb else None

    def write(self, iteration: int, step: int, metrics: Mapping[str, float]) -> None:
        """Writes scalars measured in `iteration`, after `step` environment steps.

        Raises:
            OSError: the disk is full.
        """
        values = {name: float(value) for name, value in metrics.items()}
        self._file.write(json.dumps({"iteration": iteration, "step": step, **values}) + "\n")
        self._file.flush()
        event = Event(wall_time=time.time(), step=step)
        for name, value in values.items():
            event.summary.value.add(tag=name, simple_value=value)
        self._events.write_event(event)
        self._events.flush()
        if self._wandb is not None:
            self._wandb.write(step, values)

    def close(self) -> None:
        """Closes the files; what a full disk did not take is lost."""
        for file in (self._file, self._events):
            with contextlib.suppress(OSError):
                file.close()
        if self._wandb is not None:
            self._wandb.close()


def _iteration_of(line: str) -> float:
    try:
        return json.loads(line)["iteration"]
    except (json.JSONDecodeError, KeyError):  # the line that a kill cut in two
        return float("inf")


class StageClock:
    """Seconds spent in each named stage, and in everything between them ("rest")."""

    def __init__(self):
        self.totals: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time spent inside the `with` block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.totals[name] = self.totals.get(name, 0.0) + time.perf_counter() - start

    def lap(self) -> dict[str, float]:
        """Returns the seconds per stage since the last lap, with "rest" and "total", and starts the next lap."""
        now = time.perf_counter()
        total = now - self._start
        result = {**self.totals, "rest": total - sum(self.totals.values()), "total": total}
        self.totals, self._start = {}, now
        return result
