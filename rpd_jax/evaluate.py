"""Success of a teacher: python -m rpd_jax.evaluate --teacher=octo-nano-push-cube --tasks=PushCube-v1 [--episodes=200]

Actions are sampled, and the first of each chunk is executed. Without --mesh_detail=1 the robot is drawn with 15% of its
triangles, as the embedded teachers know it.
"""

import os

# As in train.py: a share of the GPU stays free for the simulator.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from absl import flags

from rpd_jax.command_line import run_command

_TEACHER = flags.DEFINE_string(
    "teacher", "octo-nano-push-cube", "A checkpoint's folder or hub address, or embedded name."
)
_DATASET = flags.DEFINE_string("dataset", "", "Whose statistics un-normalise its actions; empty: the only one.")
_TASKS = flags.DEFINE_list("tasks", ["PushCube-v1"], "Tasks, separated by commas, or 'all'.")
_EPISODES = flags.DEFINE_integer("episodes", 200, "Episodes per task.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 1000, "Seed of the initial states and of the sampled actions.")
_NUM_ENVS = flags.DEFINE_integer("num_envs", 10, "Environments that run at a time.", lower_bound=1)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 128, "Width and height of the frames, pixels.", lower_bound=1)
_MESH_DETAIL = flags.DEFINE_float("mesh_detail", 0.15, "Fraction of the robot's triangles that is drawn.")


def main() -> None:
    from ml_collections import ConfigDict
    from rich.console import Console
    from rich.table import Table

    from rpd_jax.envs.factory import make_vector_env
    from rpd_jax.evaluation import run_episodes
    from rpd_jax.tasks import TASKS, find_task
    from rpd_jax.teachers import load_teacher

    tasks = [find_task(name) for name in (TASKS if _TASKS.value == ["all"] else _TASKS.value)]
    teacher_config = {"name": "octo", "checkpoint": _TEACHER.value, "dataset": _DATASET.value, "precision": "float32"}
    teacher = load_teacher(ConfigDict({"teacher": teacher_config}))
    table = Table("task", "success", "95% interval", "mean return", "mean length", "episodes", title=_TEACHER.value)
    for task in tasks:
        env_config = ConfigDict(
            {
                "task": task.env_id,
                "num_envs": min(_NUM_ENVS.value, _EPISODES.value),
                "reward_mode": "sparse",
                "image_size": _IMAGE_SIZE.value,
                "mesh_detail": _MESH_DETAIL.value,
            }
        )
        envs = make_vector_env(env_config)
        try:
            summary = run_episodes(
                envs,
                lambda rgb, _, key, task=task: teacher.act(rgb, task.instruction, key)[0],
                _EPISODES.value,
                _SEED.value,
            ).summary()
        finally:
            envs.close()
        table.add_row(
            task.env_id,
            f"{summary['success']:.1%}",
            f"{summary['success_low']:.1%} to {summary['success_high']:.1%}",
            f"{summary['return']:.2f}",
            f"{summary['length']:.1f}",
            f"{summary['episodes']:.0f}",
        )
    teacher.close()
    Console().print(table)


if __name__ == "__main__":
    run_command(main)
