"""What can be evaluated: a teacher, the student of a run, an exported student."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rpd_jax.acting.chunks import ExecutedChunks
from rpd_jax.acting.episodes import Act, teacher_act
from rpd_jax.acting.labelling import label_act
from rpd_jax.errors import UserError
from rpd_jax.evaluate.exported_policy import ExportedPolicy
from rpd_jax.evaluate.trained_student import load_student
from rpd_jax.learning.algorithms import LABELS
from rpd_jax.robot_state import told_state
from rpd_jax.settings import default_checkpoint
from rpd_jax.tasks import Task
from rpd_jax.teachers import Teacher, check_horizon, load_teacher, teacher_names

# Pixels of the frames that the embedded teachers know.
_IMAGE_SIZE = 128
_MEAN = "Mean actions of the student."


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy and where it is at home.

    Attributes:
        name: for tables.
        act_on: gives, for a task, its function of frames, states and key.
        actions: a sentence on which actions are executed.
        env: `config.env` of its frames: image_size, mesh_detail, camera.
        task: that it was trained on, or None.
        sees_frames: False where it looks at the state alone.
        close: releases it.
        ways: several ways to act that are to be compared, by name; None: `act_on` is the only one.
    """

    name: str
    act_on: Callable[[Task], Act]
    actions: str
    env: ConfigDict
    task: str | None = None
    sees_frames: bool = True
    close: Callable[[], None] = lambda: None
    ways: Mapping[str, Callable[[Task], Act]] | None = None

    @property
    def ways_to_act(self) -> Mapping[str, Callable[[Task], Act]]:
        """Its ways by name, or the one that it has."""
        return self.ways or {"": self.act_on}


def teacher_policy(
    config: ConfigDict, checkpoint: str | None = None, execute: Sequence[int] = (1,), averaged: Sequence[int] = ()
) -> Policy:
    """A teacher on the frames that the embedded ones know.

    Args:
        config: of a run; reads `teacher`, `env.camera` and `env.task`.
        checkpoint: folder, hub address or embedded name, as --teacher gives it; None is the config's, or the teacher's
            own choice.
        execute: actions of each chunk that are run before the teacher is asked again; several are several ways to act.
        averaged: numbers of samples; with each of them the teacher acts by its labels, by the samples' mean and by the
            sample nearest to it, as `distill.averaged` and `distill.label` make them.

    Raises:
        UserError: it cannot be loaded, or its chunks are shorter.
    """
    teacher, name = named_teacher(config, checkpoint)
    for steps in execute:
        check_horizon(teacher, steps, f"--execute={steps}")

    def instruction_in(task: Task) -> str:
        _check_told(config, task)
        return config.teacher.instruction or task.instruction

    def by_chunks(steps: int) -> Callable[[Task], Act]:
        if steps == 1:
            return lambda task: teacher_act(teacher, instruction_in(task))
        return lambda task: ExecutedChunks(teacher, instruction_in(task), steps)

    def by_labels(num_samples: int, kind: str) -> Callable[[Task], Act]:
        return lambda task: label_act(teacher, instruction_in(task), num_samples, kind)

    ways = {
        "one sample" if number == 1 else f"{kind} of {number}": by_labels(number, kind)
        for number in averaged
        for kind in (LABELS if number > 1 else LABELS[:1])
    }
    if len(execute) > 1:
        ways = {f"{steps} of each chunk": by_chunks(steps) for steps in execute}
    first = "first" if tuple(execute) == (1,) else f"first {' or '.join(map(str, execute))}"
    return Policy(
        name=name,
        act_on=by_chunks(execute[0]),
        ways=ways or None,
        actions=f"Sampled actions, the {first} of each chunk executed.",
        env=ConfigDict({"image_size": _IMAGE_SIZE, "mesh_detail": 0.15, "camera": config.env.camera}),
        task=config.env.task,
        close=teacher.close,
    )


def _check_told(config: ConfigDict, task: Task) -> None:
    """Raises UserError if what the teacher is told stands elsewhere in the states of a task."""
    kind, loaded_for = config.teacher.state, config.env.task
    if task.env_id != loaded_for and told_state(kind, task.env_id) != told_state(kind, loaded_for):
        raise UserError(
            f"teacher.state={kind!r} stands elsewhere in the states of {task.env_id} than in those of {loaded_for}: "
            f"give this task a command of its own, with --config.env.task={task.env_id}."
        )


def named_teacher(config: ConfigDict, checkpoint: str | None = None) -> tuple[Teacher, str]:
    """Loads a teacher as `teacher_policy` does; returns it with its name for tables."""
    config = config.copy_and_resolve_references()
    config.teacher.checkpoint = checkpoint or config.teacher.checkpoint or default_checkpoint(config.teacher)
    if config.env.image_size is None:
        config.env.image_size = _IMAGE_SIZE
    return _loaded(config, checkpoint), config.teacher.checkpoint or config.teacher.name


def _loaded(config: ConfigDict, asked: str | None) -> Teacher:
    """The teacher; what is wrong with what --teacher asks for is said of that flag."""
    kinds = teacher_names()
    if asked in kinds and not Path(asked).is_dir():
        raise UserError(
            f"--teacher={asked!r} is a kind of teacher (there are {', '.join(kinds)}), which "
            f"--config.teacher.name={asked} chooses: give --teacher its checkpoint, or leave it out for the one that "
            "--config names."
        )
    try:
        return load_teacher(config)
    except UserError as error:
        if not asked:
            raise
        raise UserError(re.sub(r"(?<![\w.-])teacher\.checkpoint", "--teacher", str(error))) from error


def run_policy(run: str, checkpoint: int | None = None) -> Policy:
    """The student of a run directory, of its newest checkpoint or that of an iteration; raises UserError if none."""
    student = load_student(run, checkpoint)
    mean_action = student.compiled_mean_action()
    return Policy(
        name=f"{Path(run).resolve().name}, iteration {student.iteration}",
        act_on=lambda task: lambda rgb, state, key: mean_action(rgb, state),
        actions=_MEAN,
        env=student.config.env,
        task=student.config.env.task,
        sees_frames=student.network.sees_frames,
    )


def exported_policy(folder: str) -> Policy:
    """The jax.export program of a folder that rpd_jax.export wrote; raises UserError if it is none."""
    policy = ExportedPolicy(folder)
    description = policy.description
    names = ("image_size", "mesh_detail", "camera")
    return Policy(
        name=str(folder),
        act_on=lambda task: lambda rgb, state, key: policy.act(rgb, state),
        actions=_MEAN,
        env=ConfigDict({name: description[name] for name in names}),
        task=description["task"],
        sees_frames="rgb" in description["inputs"],
    )
