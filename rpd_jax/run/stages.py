"""Where the time of a run goes."""

import contextlib
import time
from collections.abc import Iterator


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
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Adds `seconds` to `name`."""
        self.totals[name] = self.totals.get(name, 0.0) + seconds

    def lap(self) -> dict[str, float]:
        """Returns the seconds per stage since the last lap, with "rest" and "total", and starts the next lap."""
        now = time.perf_counter()
        total = now - self._start
        result = {**self.totals, "rest": total - sum(self.totals.values()), "total": total}
        self.totals, self._start = {}, now
        return result
