"""Success of a policy on any tasks, with 95% intervals.

python -m rpd_jax.evaluate --teacher=octo-nano [--tasks=PushCube-v1,PullCube-v1] [--output=DIR]
python -m rpd_jax.evaluate --teacher=hf://Juelg/openvla-7b-finetuned-maniskill --config.teacher.name=openvla
python -m rpd_jax.evaluate --teacher=octo-nano --averaged=1,4,10 --tasks=all
python -m rpd_jax.evaluate --run=runs/push_cube_sparse-rpd_mse-seed0 [--checkpoint=ITERATION]
python -m rpd_jax.evaluate --policy=policy/ [--config.env.camera.eye_offset='(0.0, 0.2, 0.0)']

A teacher's actions are sampled, and the first of each chunk is executed, or the first --execute, of which 1,2,4
compares three; with --averaged it acts by what would be its labels, and the table shows which label is worth imitating.
A student's actions are its mean.
--tasks=all measures the eight tasks of the paper's Table I. Without --mesh_detail=1 a teacher sees the robot with 15%
of its triangles, as the embedded ones know it; a student sees the frames of its run. --config.teacher.FIELD changes how
a teacher is loaded and --config.env.FIELD what any policy sees, as in train.py. DIR gets table.md, results.json and a
video per task, each as soon as it is measured.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

import functools
import os

# As in train.py: a share of the GPU stays free for the simulator.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections.config_flags import config_flags

from rpd_jax.command.line import read_config, run_command
from rpd_jax.errors import UserError

_TEACHER = flags.DEFINE_string("teacher", None, "A checkpoint's folder or hub address, or embedded name.")
_RUN = flags.DEFINE_string("run", None, "A run's directory, for its student.")
_CHECKPOINT = flags.DEFINE_integer("checkpoint", None, "With --run: the checkpoint's iteration; by default the newest.")
_POLICY = flags.DEFINE_string("policy", None, "A folder that rpd_jax.export wrote.")
_TASKS = flags.DEFINE_list("tasks", None, "Tasks, separated by commas, or 'all'; by default the run's or PushCube-v1.")
_EPISODES = flags.DEFINE_integer("episodes", 200, "Episodes per task.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 1000, "Seed of the initial states and of the sampled actions.")
_NUM_ENVS = flags.DEFINE_integer("num_envs", 10, "Environments that run at a time.", lower_bound=1)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Width and height of the frames, pixels; by default the run's or 128.", lower_bound=1
)
_MESH_DETAIL = flags.DEFINE_float(
    "mesh_detail",
    None,
    "Fraction of the robot's triangles that is drawn; by default the run's or 0.15.",
    lower_bound=0.001,
    upper_bound=1.0,
)
_EXECUTE = flags.DEFINE_list(
    "execute",
    "1",
    "Of a teacher that predicts chunks of actions: how many it runs before it looks again; 1,2,4 compares.",
)
_AVERAGED = flags.DEFINE_list(
    "averaged",
    None,
    "Of a teacher: numbers of samples, such as 1,4,10; it acts by their mean, and by the nearest to it.",
)
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Says how a teacher is loaded and what it sees; of a student's views only --config.env.FIELD given here counts.",
)
_DEFAULT_CONFIG = Path(__file__).parents[2] / "configs" / "default.py"
_OUTPUT = flags.DEFINE_string("output", None, "Folder for table.md, results.json and videos; none if not given.")


def main() -> None:
    from ml_collections import ConfigDict
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rpd_jax.acting.measure import measure_policy
    from rpd_jax.acting.odd_actions import OddActions
    from rpd_jax.evaluate.policies import exported_policy, run_policy, teacher_policy
    from rpd_jax.evaluate.table import console_table, write_tables
    from rpd_jax.run.console import plain_console
    from rpd_jax.run.whole_file import check_can_write
    from rpd_jax.tasks import TASKS, find_task

    chosen = [flag.name for flag in (_TEACHER, _RUN, _POLICY) if flag.value]
    if len(chosen) > 1:
        raise UserError(f"--{' and --'.join(chosen)} exclude each other: give one of them.")
    if _CHECKPOINT.value is not None and not _RUN.value:
        raise UserError(f"--checkpoint={_CHECKPOINT.value} is one of a run: name that with --run, or leave it out.")
    of_teacher = chosen in ([], ["teacher"])
    execute = _numbers(_EXECUTE, "number of actions", "1,2,4")
    averaged = _numbers(_AVERAGED, "number of samples", "1,4,10")
    if execute != [1] and not of_teacher:
        raise UserError(f"--execute={','.join(_EXECUTE.value)} is for teachers: a student gives one action at a time.")
    if averaged and (execute != [1] or not of_teacher):
        raise UserError("--averaged is for teachers whose chunks are executed one action at a time: leave it out.")
    view = _view_changes(of_teacher)
    output = Path(_OUTPUT.value) if _OUTPUT.value else None
    if output:
        check_can_write(output)
    tasks = [find_task(name, "--tasks") for name in (TASKS if _TASKS.value == ["all"] else _TASKS.value or ())]
    if _RUN.value:
        policy = run_policy(_RUN.value, _CHECKPOINT.value)
    elif _POLICY.value:
        policy = exported_policy(_POLICY.value)
    else:
        config = read_config(_CONFIG)
        if _IMAGE_SIZE.value is not None:
            config.env.image_size = _IMAGE_SIZE.value  # what the teacher will see
        policy = teacher_policy(config, _TEACHER.value, execute, averaged)
    tasks = tasks or [find_task(policy.task or "PushCube-v1")]
    settings = {"episodes": _EPISODES.value, "seed": _SEED.value, "num_envs": _NUM_ENVS.value}
    env_config = ConfigDict(policy.env.to_dict())
    env_config.update_from_flattened_dict(view)
    env_config.num_envs = _NUM_ENVS.value
    for flag in (_IMAGE_SIZE, _MESH_DETAIL):
        if flag.value is not None:
            env_config[flag.name] = flag.value
    settings |= {name: env_config[name] for name in ("image_size", "mesh_detail")}
    console = plain_console()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    rows = []
    with Progress(*columns, console=console, speed_estimate_period=600) as progress:
        pairs = [(task, way) for task in tasks for way in policy.ways_to_act]
        bar = progress.add_task("", total=_EPISODES.value * len(pairs))
        for index, (task, way) in enumerate(pairs):
            name = f"{task.env_id}, {way}" if way else task.env_id
            progress.update(bar, description=name)
            odd = OddActions()
            row = measure_policy(
                policy.ways_to_act[way](task),
                task,
                _EPISODES.value,
                _SEED.value,
                env_config,
                sees_frames=policy.sees_frames,
                video=output / f"{name.replace(', ', '-').replace(' ', '-')}.mp4" if output else None,
                on_step=lambda finished, done=index: progress.update(
                    bar, completed=done * _EPISODES.value + min(finished, _EPISODES.value)
                ),
                on_actions=odd.see,
            )
            rows.append(row | ({"actions": way} if way else {}))
            progress.console.print(f"{name}: {row['success']:.1%} of {row['episodes']:.0f} episodes")
            for sentence in odd.sentences() if of_teacher else ():
                progress.console.print(sentence, soft_wrap=True)
            if output:
                write_tables(output, policy.name, settings, rows, policy.actions)
    policy.close()
    console.print(console_table(policy.name, rows))
    if output:
        console.print(f"Written: {output}", soft_wrap=True)


def _numbers(flag: flags.FlagHolder, what: str, example: str) -> list[int]:
    """The whole numbers that a flag lists, each of them once."""
    for text in flag.value or ():
        if not text.isdigit() or not 1 <= int(text) <= 1000:
            raise UserError(f"--{flag.name}={text} is no {what}: give whole numbers from 1 to 1000, such as {example}.")
    return list(dict.fromkeys(map(int, flag.value or ())))


def _view_changes(of_teacher: bool) -> dict[str, Any]:
    """The settings `env.*` of the command line by their dotted names without `env.`."""
    config = read_config(_CONFIG)
    changes = {}
    for name in config_flags.get_override_values(flags.FLAGS["config"]):
        group, _, field = name.partition(".")
        if group == "env" and field in ("task", "num_envs", "reward_mode"):
            raise UserError(
                f"--config.{name} has no effect here: use --tasks and --num_envs; rewards are always dense."
            )
        if group == "env":
            changes[field] = functools.reduce(lambda settings, part: settings[part], name.split("."), config)
        elif group != "teacher" or not of_teacher:
            raise UserError(f"--config.{name} has no effect on what is evaluated.")
    return changes


if __name__ == "__main__":
    run_command(main, default_config=_DEFAULT_CONFIG)
