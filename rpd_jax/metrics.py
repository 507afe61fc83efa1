"""Where numbers go: metrics.jsonl, TensorBoard, and the time that each stage of an iteration took."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorboardX


class MetricsLog:
    """Appends one line of metrics per iteration to metrics.jsonl, and the same numbers to TensorBoard."""

    def __init__(self, workdir: Path, first_iteration: int):
        """Opens the log; lines of `first_iteration` and later, left by a run that was cut short, are dropped."""
        path = workdir / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _iteration_of(line) < first_iteration]
            path.write_text("".join(line + "\n" for line in lines))
        self._file = path.open("a")
        self._tensorboard = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=None)

    def write(self, iteration: int, step: int, metrics: Mapping[str, float]) -> None:
        """Writes scalars measured in `iteration`, after `step` environment steps."""
        values = {name: float(value) for name, value in metrics.items()}
        self._file.write(json.dumps({"iteration": iteration, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()


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
