"""Draws what a config's camera sees: python -m rpd_jax.envs.views --config=configs/CONFIG.py -o view.png

The first frame of one episode, on the left through the task's own human camera, on the right through the config's.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

from absl import flags
from ml_collections import config_flags

from rpd_jax.command.line import read_config, run_command

_CONFIG = config_flags.DEFINE_config_file("config", None, "The settings: a file of configs/.")
_OUTPUT = flags.DEFINE_string("output", None, "PNG to write.", short_name="o")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 256, "Width and height of each view, pixels.", lower_bound=1)
_MESH_DETAIL = flags.DEFINE_float("mesh_detail", 1.0, "Fraction of the robot's triangles that is drawn.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the episode.")

# Columns of white between two views.
_GAP = 8


def main() -> None:
    from pathlib import Path

    import imageio.v2 as imageio
    import numpy as np

    from rpd_jax.envs.camera_task import CameraChange, frames, make_task_env
    from rpd_jax.envs.factory import camera_arguments

    config = read_config(_CONFIG)
    views = []
    for camera in (CameraChange(), CameraChange(**camera_arguments(config.env))):
        env = make_task_env(config.env.task, _IMAGE_SIZE.value, mesh_detail=_MESH_DETAIL.value, camera=camera)
        obs, _ = env.reset(seed=_SEED.value)
        views.append(frames(obs)[0, ..., :3].numpy().copy())
        env.close()
    gap = np.full((_IMAGE_SIZE.value, _GAP, 3), 255, np.uint8)
    path = Path(_OUTPUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(path, np.concatenate([views[0], gap, views[1]], axis=1))
    print(f"{path}: {config.env.task}, the task's own view and the config's")


flags.mark_flags_as_required(["config", "output"])

if __name__ == "__main__":
    run_command(main)
