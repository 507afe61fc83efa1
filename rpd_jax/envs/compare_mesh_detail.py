"""How far a robot of fewer triangles looks from the exact one: python -m rpd_jax.envs.compare_mesh_detail -o out.png

Steps the same episodes with random actions at every mesh detail, and prints the mean difference of a colour value (of
255) and the share of pixels in which a colour differs by more than 8. The picture has a row for each image size: the
exact frame, then for each mesh detail the frame and its difference from the exact one, eight times as strong.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

import itertools
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from absl import flags
from rich.table import Table

from rpd_jax.command.flag_kinds import define_numbers
from rpd_jax.command.line import run_command
from rpd_jax.envs.task_arguments import check_task_arguments
from rpd_jax.run.console import plain_console
from rpd_jax.tasks import find_task

_OUTPUT = flags.DEFINE_string("output", None, "PNG to write.", short_name="o", required=True)
_TASK = flags.DEFINE_string("task", "PushCube-v1", "Task.")
_IMAGE_SIZE = define_numbers("image_size", (128, 256), "Widths and heights of frames, pixels.")
_MESH_DETAIL = define_numbers(
    "mesh_detail", (0.3, 0.15, 0.07), "Fractions of the robot's triangles.", kind=float, least=0.001
)
_EPISODES = flags.DEFINE_integer("episodes", 2, "Episodes.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 10, "Steps of each.", lower_bound=1)

_VISIBLE = 8
_AMPLIFIED = 8


def main() -> None:
    find_task(_TASK.value, "--task")
    for size, detail in itertools.product(_IMAGE_SIZE.value, _MESH_DETAIL.value):
        check_task_arguments(_TASK.value, size, "sparse", detail)
    table = Table("px", "mesh detail", "mean difference", "pixels that differ", title=_TASK.value)
    rows = []
    for size in _IMAGE_SIZE.value:
        exact = _frames(size, 1.0)
        row = [exact[-1]]
        for detail in _MESH_DETAIL.value:
            frames = _frames(size, detail)
            difference = np.abs(frames.astype(int) - exact)
            visible = (difference.max(axis=-1) > _VISIBLE).mean()
            table.add_row(str(size), f"{detail:g}", f"{difference.mean():.2f}", f"{visible:.2%}")
            row += [frames[-1], np.minimum(difference[-1] * _AMPLIFIED, 255).astype(np.uint8)]
        rows.append(np.concatenate(row, axis=1))
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    path = Path(_OUTPUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(path, np.concatenate(rows))
    plain_console().print(table)


def _frames(size: int, mesh_detail: float) -> np.ndarray:
    """uint8 [episodes·steps, size, size, 3]."""
    from rpd_jax.envs.camera_task import frames, make_task_env

    env = make_task_env(_TASK.value, size, mesh_detail=mesh_detail)
    rng = np.random.default_rng(0)
    pictures = []
    for episode in range(_EPISODES.value):
        env.reset(seed=episode)
        for _ in range(_STEPS.value):
            obs, *_ = env.step(rng.uniform(-1, 1, 7).astype(np.float32))
            pictures.append(frames(obs)[0, ..., :3].numpy().copy())
    env.close()
    return np.stack(pictures)


if __name__ == "__main__":
    run_command(main)
