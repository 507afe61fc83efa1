"""What train.py prints: settings, estimate, progress, where the time went, results."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rpd_jax.run.console import Console, RunProgress, duration
from rpd_jax.run.records import read_rows
from rpd_jax.training_run.fields import STAGES


class TrainingConsole(Console):
    """The console of a training run."""

    def settings(self, config: ConfigDict, departures: list[str], workdir: Path) -> None:
        """Prints the resolved settings, one row per part, and those in which they depart from the paper's."""
        parts = {name: value for name, value in config.items() if isinstance(value, ConfigDict)}
        rows = [("run", _listing({name: value for name, value in config.items() if name not in parts}))]
        rows += [(name, _listing(part.to_dict())) for name, part in parts.items()]
        rows.append(("not as in the paper", "  ".join(departures) or "-"))
        self.table(f"Profile {config.profile}, run directory {workdir}", ("part", "settings"), rows)

    def stage(self, name: str, number: int, total: int, departures: list[str]) -> None:
        """Prints that a stage begins, and the settings in which it departs from those of the run."""
        self.say(f"Stage {number} of {total}, {name}: {'  '.join(departures)}")

    def estimate(self, seconds: float, at_most: bool = False) -> None:
        """Prints how long the run, or its stage, will take; `at_most`: it may end sooner."""
        time = duration(seconds, at_most)
        self.say(f"Estimated training time: {time} (evaluations and checkpoints come on top).")

    @contextlib.contextmanager
    def training(
        self, num_iterations: int, first: int, batch: int, at_most: bool = False
    ) -> Iterator["TrainingProgress"]:
        """Shows progress inside the `with` block: iterations of `batch` steps each; `at_most`: or fewer."""
        with self.progress("training", num_iterations, first, batch, "steps", at_most) as progress:
            yield TrainingProgress(progress)

    def iteration_split(self, metrics_path: Path) -> None:
        """Prints the mean seconds per iteration of each stage, from a run's metrics.jsonl.

        The first iteration is left out where there are more: it holds the compilation.

        Raises:
            UserError: a line of it holds something else than numbers.
        """
        rows = read_rows(metrics_path)
        rows = rows[1:] or rows
        seconds = {stage: np.mean([row.get(f"time/{stage}", 0.0) for row in rows]) for stage in STAGES}
        self.time_split(seconds, np.mean([row["time/total"] for row in rows]), "s / iteration", 2)

    def finish(self, results: Mapping, workdir: Path) -> None:
        """Prints the last line of a run."""
        student = _success(results["student"], "mean actions")
        teacher = _success(results["teacher"], "its own actions") if results["teacher"] else "not measured"
        self.say(f"Done. Success: student {student}, teacher {teacher}. Results: {workdir}")


class TrainingProgress:
    """Follows the loop, iteration by iteration."""

    def __init__(self, progress: RunProgress):
        self._progress = progress

    def advance(self, numbers: Mapping[str, float]) -> None:
        """Counts one iteration, with the metrics it logged."""
        shown = {
            "success of sampled actions": numbers.get("rollout/success"),
            "distill": numbers.get("train/distill_loss"),
            "kl": numbers.get("train/approx_kl"),
            "EVALUATION: success of mean actions": numbers.get("eval/success"),
        }
        values = {name: value for name, value in shown.items() if value is not None}
        self._progress.advance(numbers["time/total"], values)


def _success(summary: Mapping[str, float], actions: str) -> str:
    interval = f"{summary['success_low']:.0%} to {summary['success_high']:.0%}"
    return f"{summary['success']:.0%} ({interval}, {summary['episodes']:.0f} episodes of {actions})"


def _listing(values: Mapping) -> str:
    return "  ".join(
        f"{name}={_listing(value) if isinstance(value, dict) else value}" for name, value in values.items()
    )
