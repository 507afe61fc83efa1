"""Stages that another run has been through already are taken from it, and not gone through again."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rpd_jax.errors import UserError
from rpd_jax.run.directory import CONFIG_FILE, differences, open_run
from rpd_jax.stages import StagePlan
from rpd_jax.training_run.fields import FIRST_STAGES, TRAINING

# The students of first stages see no pixels: how pixels are seen makes no difference there.
_OF_PIXELS = ("student.encoder", "student.precision", "distill.augment", "distill.augment_ppo")
_KIND = dataclasses.replace(TRAINING, free=(*TRAINING.free, *_OF_PIXELS))


def check_first_stages(config: ConfigDict, run: Path) -> None:
    """Raises UserError unless a run of a resolved `config` has first stages, and `run` is a directory of some."""
    if config.refine == "pixels":
        raise UserError("--first_stages is for runs of several stages: leave it out, or set --config.refine=state.")
    if not any((run / name / CONFIG_FILE).is_file() for name in FIRST_STAGES):
        raise UserError(f"--first_stages={run} has no first stages: give the directory of a run with refine=state.")


def take_over(stages: Sequence[StagePlan], run: Path, say: Callable[[str], None]) -> None:
    """Gives a run the finished first stages of another one, up to the first that is not the same in both.

    A stage depends on its config and on the stages before it only, so that the run becomes what it would have been. Its
    files are linked where both runs are on one file system, else copied. Stages that the run has begun itself stay.

    Args:
        stages: of the run.
        run: directory of the other one.
        say: told of each stage where it comes from, or why it is made anew.
    """
    for stage in stages[:-1]:
        source = run / stage.name
        reason = _reason_not_to(stage, source)
        if reason:
            say(f"Stage {stage.name} is not taken: {source} {reason}.")
            return
        if stage.directory.exists():
            continue
        scratch = stage.directory.with_name(f"{stage.name}.part")
        shutil.rmtree(scratch, ignore_errors=True)
        open_run(scratch, stage.config, TRAINING)
        others = shutil.ignore_patterns(CONFIG_FILE)
        shutil.copytree(source, scratch, copy_function=_link, ignore=others, dirs_exist_ok=True)
        scratch.rename(stage.directory)
        say(f"Stage {stage.name} is that of {source}.")


def _reason_not_to(stage: StagePlan, source: Path) -> str:
    """Why the stage in `source` cannot be this one; "" if it can."""
    if not (source / "results.json").is_file():
        return "has not finished"
    changes = differences(source, stage.config, _KIND)
    return f"is of another config ({'; '.join(changes)})" if changes else ""


def _link(source: str, target: str) -> None:
    """A finished stage's files are replaced, never written into, so that both runs can have the same."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
