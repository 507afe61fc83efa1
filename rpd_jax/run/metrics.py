"""Where numbers go: metrics.jsonl, TensorBoard, Weights & Biases."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from rpd_jax.errors import UserError
from rpd_jax.run.wandb_log import WandbLog
from rpd_jax.run.whole_file import write_whole


class RunRemoved(UserError):
    """The run's directory is gone, or another one's: what is not saved is lost, and nothing may be written there."""


class MetricsLog:
    """Appends one line of metrics per iteration to metrics.jsonl, and the same numbers to TensorBoard."""

    def __init__(
        self,
        workdir: Path,
        first: int,
        wandb: bool = False,
        *,
        counter: str = "iteration",
        events: str = "tensorboard",
    ):
        """Opens the log; lines of iteration `first` and later, left by a run that was cut short, are dropped.

        Args:
            workdir: the run's directory, with its config.json if `wandb` is on.
            first: that the run goes on with.
            wandb: write to Weights & Biases too.
            counter: name of the number that counts lines.
            events: folder for TensorBoard's files, inside `workdir`.

        Raises:
            UserError: W&B does not work.
            OSError: the disk is full.
        """
        self._path = workdir / "metrics.jsonl"
        _drop_from(self._path, counter, first)
        self._counter = counter
        self._file = self._path.open("a")
        (workdir / events).mkdir(exist_ok=True)
        # Neither tensorboardX, which imports torch, nor an EventFileWriter, whose thread swallows that a disk is full.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._events = RecordWriter((workdir / events / name).open("ab"))
        self._write_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._wandb = WandbLog(workdir, json.loads((workdir / "config.json").read_bytes())) if wandb else None

    def write(self, count: int, step: int, metrics: Mapping[str, float]) -> None:
        """Writes scalars measured in iteration `count`, after `step` environment or training steps.

        Raises:
            RunRemoved: the file that it began is no longer there.
            OSError: the disk is full.
        """
        self._check_place()
        values = {name: float(value) for name, value in metrics.items()}
        self._file.write(json.dumps({self._counter: count, "step": step, **values}) + "\n")
        self._file.flush()
        event = Event(wall_time=time.time(), step=step)
        for name, value in values.items():
            event.summary.value.add(tag=name, simple_value=value)
        self._write_event(event)
        self._events.flush()
        if self._wandb is not None:
            self._wandb.write(step, values)

    def _check_place(self) -> None:
        # The run's lock went with its folder: another run may have the place by now.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno())):
                return
        raise RunRemoved(
            f"{self._path} was removed or replaced while the run went on, which ends without saving: the same command "
            "begins it anew."
        )

    def _write_event(self, event: Event) -> None:
        self._events.write(event.SerializeToString())

    def close(self) -> None:
        """Closes the files; what a full disk did not take is lost."""
        for file in (self._file, self._events):
            with contextlib.suppress(OSError):
                file.close()
        if self._wandb is not None:
            self._wandb.close()


def _drop_from(path: Path, counter: str, first: int) -> None:
    """Takes the lines of `first` and later, and one that a kill cut in two, out of a log."""
    if not path.exists():
        return
    content = path.read_text()
    kept = "".join(line + "\n" for line in content.splitlines() if _count_of(line, counter) < first)
    if kept == content:
        return
    # Whole or not at all: neither a kill in the middle nor a full disk must cost the lines so far.
    write_whole(path, kept)


def _count_of(line: str, counter: str) -> float:
    try:
        return json.loads(line)[counter]
    except (json.JSONDecodeError, KeyError):
        return float("inf")
