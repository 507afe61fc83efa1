"""Success of a teacher: python -m rpd_jax.evaluate --teacher=octo-nano-push-cube --tasks=PushCube-v1 [--output=DIR]

--tasks=all measures the eight tasks of the paper's Table I. Actions are sampled, and the first of each chunk is
executed. Without --mesh_detail=1 the robot is drawn with 15% of its triangles, as the embedded teachers know it.
DIR gets table.md, results.json and a video per task, each as soon as it is measured.
"""

import os

# As in train.py: a share of the GPU stays free for the simulator.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from absl import flags

from rpd_jax.command_line import run_command

_TEACHER = flags.DEFINE_string(
    "teacher", "octo-nano-push-cube", "A checkpoint's folder or hub address, or embedded name."
)
_TASKS = flags.DEFINE_list("tasks", ["PushCube-v1"], "Tasks, separated by commas, or 'all'.")
_EPISODES = flags.DEFINE_integer("episodes", 200, "Episodes per task.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 1000, "Seed of the initial states and of the sampled actions.")
_NUM_ENVS = flags.DEFINE_integer("num_envs", 10, "Environments that run at a time.", lower_bound=1)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 128, "Width and height of the frames, pixels.", lower_bound=1)
_MESH_DETAIL = flags.DEFINE_float("mesh_detail", 0.15, "Fraction of the robot's triangles that is drawn.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for table.md, results.json and videos; none if not given.")


def main() -> None:
    from pathlib import Path

    from ml_collections import ConfigDict
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rpd_jax.errors import UserError
    from rpd_jax.tasks import TASKS, find_task
    from rpd_jax.teacher_table import console_table, measure_task, write_tables
    from rpd_jax.teachers import load_teacher

    tasks = [find_task(name) for name in (TASKS if _TASKS.value == ["all"] else _TASKS.value)]
    output = Path(_OUTPUT.value) if _OUTPUT.value else None
    if output and output.exists() and not output.is_dir():
        raise UserError(f"--output={output} is a file: give a folder.")
    teacher = load_teacher(ConfigDict({"teacher": {"name": "octo", "checkpoint": _TEACHER.value}}))
    settings = {"episodes": _EPISODES.value, "seed": _SEED.value, "num_envs": _NUM_ENVS.value}
    drawing = {"image_size": _IMAGE_SIZE.value, "mesh_detail": _MESH_DETAIL.value}
    env_config = ConfigDict({"num_envs": _NUM_ENVS.value, **drawing})
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    rows = []
    with Progress(*columns, console=console, speed_estimate_period=600) as progress:
        bar = progress.add_task("", total=_EPISODES.value * len(tasks))
        for index, task in enumerate(tasks):
            progress.update(bar, description=task.env_id)
            row = measure_task(
                teacher,
                task,
                _EPISODES.value,
                _SEED.value,
                env_config,
                video=output / f"{task.env_id}.mp4" if output else None,
                on_step=lambda finished, done=index: progress.update(
                    bar, completed=done * _EPISODES.value + min(finished, _EPISODES.value)
                ),
            )
            rows.append(row)
            progress.console.print(f"{task.env_id}: {row['success']:.1%} of {row['episodes']:.0f} episodes")
            if output:
                write_tables(output, _TEACHER.value, settings | drawing, rows)
    teacher.close()
    console.print(console_table(_TEACHER.value, rows))
    if output:
        console.print(f"Written: {output}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
