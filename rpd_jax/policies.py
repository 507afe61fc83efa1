"""What can be evaluated: a teacher, the student of a run, an exported student."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict

from rpd_jax.evaluation import Act, teacher_act
from rpd_jax.export.policy import ExportedPolicy
from rpd_jax.networks import ActorCritic
from rpd_jax.tasks import Task
from rpd_jax.teachers import load_teacher
from rpd_jax.trained_student import load_student

_SAMPLED = "Sampled actions, the first of each chunk executed."
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
        close: releases it.
    """

    name: str
    act_on: Callable[[Task], Act]
    actions: str
    env: ConfigDict
    task: str | None = None
    close: Callable[[], None] = lambda: None


def teacher_policy(checkpoint: str) -> Policy:
    """An Octo by its folder, hub address or embedded name; raises UserError if there is none."""
    teacher = load_teacher(ConfigDict({"teacher": {"name": "octo", "checkpoint": checkpoint}}))
    return Policy(
        name=checkpoint,
        act_on=lambda task: teacher_act(teacher, task.instruction),
        actions=_SAMPLED,
        env=ConfigDict({"image_size": 128, "mesh_detail": 0.15}),
        close=teacher.close,
    )


def run_policy(run: str, checkpoint: int | None = None) -> Policy:
    """The student of a run directory, of its newest checkpoint or that of an iteration; raises UserError if none."""
    student = load_student(run, checkpoint)
    mean_action = jax.jit(partial(student.network.apply, method=ActorCritic.mean_action))
    return Policy(
        name=f"{Path(run).resolve().name}, iteration {student.iteration}",
        act_on=lambda task: lambda rgb, state, key: mean_action(student.params, rgb, state),
        actions=_MEAN,
        env=student.config.env,
        task=student.config.env.task,
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
    )
