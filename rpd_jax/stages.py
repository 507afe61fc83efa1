"""A run as a list of stages, each of them the same loop with another teacher, another student and another end.

`refine=pixels`, the paper's way, is a list of one. `refine=state` looks at the simulator's state while it learns ("the
teacher of the student may cheat", Chen et al. 2019): the VLA's labels start an expert that sees the state, the
algorithm refines it where nothing need be drawn, and a student of pixels imitates it. The student never sees the state.

| stage  | teacher                | student | update        | frames drawn | leaves                           |
|--------|------------------------|---------|---------------|--------------|----------------------------------|
| label  | the VLA                | state   | imitation     | yes          | labelled frames, an imitator     |
| refine | none: labels replayed  | state   | the algorithm | no           | an expert                        |
| distil | the expert (or the VLA)| pixels  | imitation     | yes          | the run's student                |

A stage leaves its files in a folder of the run that is a run directory itself, so that what reads runs reads it too;
the last one's are those of the run.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rpd_jax import settings
from rpd_jax.acting.kept_replay import read_labelled
from rpd_jax.acting.stage import Stage
from rpd_jax.acting.training_state import TrainingState
from rpd_jax.command.checks import get
from rpd_jax.command.wrong_flags import fields
from rpd_jax.errors import UserError
from rpd_jax.evaluate.begun_as import begun_as
from rpd_jax.evaluate.trained_student import load_student
from rpd_jax.learning.algorithms import IMITATION, find_algorithm
from rpd_jax.run.checkpoints import newest_checkpoint, read_part
from rpd_jax.student.still import with_rests
from rpd_jax.training_run.fields import FIRST_STAGES

# The expert's and the imitator's. A critic of its own: its features are not the actor's.
_SEES_STATE = {
    "student.observation": "state",
    "student.critic": "state",
    "student.state": "scaled",
    "student.state_coef": 0.0,
}
_OWN_VIEW = {"env.camera.eye_offset": (0.0, 0.0, 0.0), "env.camera.target_offset": (0.0, 0.0, 0.0)}
# The teacher's success through another camera is none to compare the student's with.
_OWN_VIEW |= {"env.camera.fov": None, "teacher.eval_episodes": 0}
_RELABELLED = 4096  # frames at a time


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage of a run, before it begins.

    Attributes:
        name: "label", "refine" or "distil"; "" for the only stage of a run.
        config: resolved, of this stage alone.
        directory: where it leaves its files.
        begin: turns a fresh state into the one that the stage starts from, by what earlier stages left.
        asks_teacher: False where all labels are replayed.
    """

    name: str
    config: ConfigDict
    directory: Path
    begin: Callable[[Stage, TrainingState], TrainingState] = lambda stage, state: state
    asks_teacher: bool = True


def plan(config: ConfigDict, workdir: Path) -> list[StagePlan]:
    """The stages of a run of a resolved config in `workdir`.

    An algorithm without a teacher has nothing to label, and one that does not reinforce nothing to refine: then the
    student imitates the VLA itself, in the same frames, the control of what refinement adds.
    """
    if config.refine == "pixels":
        return [StagePlan("", config, workdir, _from_student)]
    algorithm = find_algorithm(config.algorithm)
    label, refine = (workdir / name for name in FIRST_STAGES)
    stages = []
    if algorithm.distillation:
        changes = _SEES_STATE | {"algorithm": IMITATION[algorithm.reads_spread]}
        if config.teacher.view == "own":
            changes |= _OWN_VIEW
        stages.append(StagePlan("label", _stage_config(config, "label", changes), label))
    distil = {"refine": "pixels"}
    if algorithm.reinforces:
        imitator = label if algorithm.distillation else None
        stages.append(
            StagePlan(
                "refine",
                _stage_config(config, "refine", _SEES_STATE),
                refine,
                lambda stage, state: _from_imitator(stage, state, imitator),
                asks_teacher=False,
            )
        )
        distil["algorithm"] = "dagger"
        distil |= {"teacher.name": "student", "teacher.checkpoint": str(refine), "teacher.eval_episodes": 0}
    labelled = label if algorithm.distillation else None
    # Frames of another camera are none of the student's.
    seen = bool(labelled) and stages[0].config.env.camera == config.env.camera
    last = _stage_config(config, None, distil)
    stages.append(StagePlan("distil", last, workdir, lambda stage, state: _from_labelled(stage, state, labelled, seen)))
    return stages


def check_stages(config: ConfigDict) -> None:
    """Raises UserError where a resolved config asks of one of its stages what cannot be, or too much of the devices."""
    for stage in plan(config, Path()):
        try:
            settings.check(stage.config)
            settings.check_machine(stage.config)
        except UserError as error:
            if stage.name not in FIRST_STAGES:
                raise
            raise UserError(f"stages.{stage.name}: {error}") from error


def without_effect(config: ConfigDict, profile: ConfigDict) -> list[str]:
    """Names and values of what was set for a stage that the run does not have, as "stages.label.total_steps=8192".

    Args:
        config: resolved.
        profile: the values of the config's own profile.
    """
    has = {stage.name for stage in plan(config, Path())}
    absent = [name for name in FIRST_STAGES if "stages" in config and name not in has]
    stages = ((f"stages.{name}.", config.stages[name], profile.stages[name]) for name in absent)
    return [name for prefix, ours, its in stages for name in settings.departures(ours, its, prefix)]


def _stage_config(config: ConfigDict, name: str | None, changes: dict) -> ConfigDict:
    """The run's config with the stage's own values, `stages.<name>`, and `changes`."""
    stage = config.copy_and_resolve_references()
    del stage.stages
    own = {} if name is None else {path: get(config.stages[name], path) for path, _ in fields(config.stages[name])}
    stage.update_from_flattened_dict(own | {"refine": "pixels", "teacher.view": "student"} | changes)
    return stage


def _from_student(stage: Stage, state: TrainingState) -> TrainingState:
    """What acts in the student of `student.start`, if there is one, with a critic and a σ of its own."""
    if not stage.config.student.start:
        return state
    student = load_student(stage.config.student.start)
    params = begun_as(stage.learner.network, state.learner.params, student)
    return dataclasses.replace(state, learner=stage.learner.init_from(params))


def _from_imitator(stage: Stage, state: TrainingState, label: Path | None) -> TrainingState:
    """The imitator's parameters with the stage's own σ, and the labels that it learnt from."""
    if label is None:
        return state
    checkpoint = newest_checkpoint(label / "checkpoints")
    params = read_part(checkpoint / "state", "learner", "params")
    params["params"]["log_std"] = state.learner.params["params"]["log_std"]
    replay, came = state.replay, 0
    if replay is not None:
        rows = read_labelled(checkpoint, "states", "labels")
        if stage.config.distill.still:
            params = with_rests(params, _samples(rows["labels"]))
        replay = stage.learner.fill_replay(replay, None, **rows)
        came = int(replay.count)
    return dataclasses.replace(state, learner=stage.learner.init_from(params), replay=replay, came=came)


def _from_labelled(stage: Stage, state: TrainingState, label: Path | None, seen: bool) -> TrainingState:
    """A fresh student whose replay holds the frames that were labelled, with the labels of the stage's own teacher.

    Where the student does not see such frames (`seen`), the labels only tell where its actions rest.
    """
    if label is None:
        return state
    names = ("frames", "states", "labels") if seen else ("states", "labels")
    rows = read_labelled(newest_checkpoint(label / "checkpoints"), *names)
    frames, states, labels = rows.get("frames"), rows["states"], rows["labels"]
    parts = [slice(at, at + _RELABELLED) for at in range(0, len(labels), _RELABELLED)]
    if stage.config.teacher.name == "student":
        expert, key = stage.labeller.teacher, jax.random.key(0)
        labels = jnp.concatenate([expert.act(None, "", key, state=states[part])[0][:, None] for part in parts])
    learner, replay = state.learner, state.replay
    if stage.config.distill.still:
        learner = stage.learner.init_from(with_rests(learner.params, _samples(labels)))
    if not seen or replay is None:
        return dataclasses.replace(state, learner=learner)
    for part in parts:
        replay = stage.learner.fill_replay(replay, frames[part], states[part], labels[part])
    return dataclasses.replace(state, learner=learner, replay=replay, came=int(replay.count))


def _samples(labels: jax.Array) -> jax.Array:
    return labels.reshape(-1, labels.shape[-1])
