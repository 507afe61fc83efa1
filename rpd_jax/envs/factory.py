"""From a config to environments."""

from __future__ import annotations

import ctypes

from ml_collections import ConfigDict

from rpd_jax.envs.task_arguments import check_task_arguments
from rpd_jax.envs.vector_env import VectorEnv
from rpd_jax.errors import UserError

BACKENDS = ("auto", "cpu", "gpu")


def make_vector_env(
    env_config: ConfigDict,
    num_envs: int | None = None,
    *,
    backend: str | None = None,
    ignore_terminations: bool = False,
) -> VectorEnv:
    """Makes the environments that `config.env` describes.

    Args:
        env_config: reads `task, num_envs, reward_mode, backend, workers, restart_workers, image_size, mesh_detail,
            step_timeout` and `camera.{eye_offset, target_offset, fov}`; fields that are missing or None take the
            defaults of `make_task_env` and CpuVectorEnv.
        num_envs: None is `env_config.num_envs`.
        backend: "cpu" (worker processes), "gpu" (one CUDA simulation), "auto" (gpu where PyTorch sees CUDA); None is
            `env_config.backend`.
        ignore_terminations: let episodes run to their limit even when the task succeeded (for evaluation).

    Raises:
        UserError: unknown task, reward mode or backend, a value out of range, no CUDA device for "gpu", or no Vulkan
            device to draw with.
    """
    mesh_detail = env_config.get("mesh_detail")
    task_args = {
        "env_id": env_config.task,
        "image_size": int(env_config.image_size),
        "reward_mode": env_config.reward_mode,
        "mesh_detail": 1.0 if mesh_detail is None else float(mesh_detail),
    }
    task = check_task_arguments(**task_args)
    num_envs = env_config.num_envs if num_envs is None else num_envs
    if num_envs < 1:
        raise UserError(f"env.num_envs={num_envs} is not a positive number of environments.")
    backend = backend or env_config.get("backend") or "auto"
    if backend not in BACKENDS:
        raise UserError(f"env.backend={backend!r} is not one of {', '.join(map(repr, BACKENDS))}.")
    if backend == "auto":
        backend = "gpu" if _has_cuda() else "cpu"
    task_args["camera"] = camera_arguments(env_config)
    common = {"max_episode_steps": task.max_episode_steps, "ignore_terminations": ignore_terminations}
    if backend == "gpu":
        from rpd_jax.envs.maniskill_env import ManiSkillEnv

        return ManiSkillEnv(task_args, num_envs, **common)
    from rpd_jax.envs.cpu_env import CpuVectorEnv

    if env_config.get("step_timeout"):
        common["step_timeout"] = float(env_config.step_timeout)
    common["restart_workers"] = bool(env_config.get("restart_workers"))
    return CpuVectorEnv(task_args, num_envs, workers=env_config.get("workers"), **common)


def camera_arguments(env_config: ConfigDict) -> dict:
    """Returns the arguments of CameraChange that `env_config.camera` sets."""
    camera = {key: value for key, value in env_config.get("camera", {}).items() if value is not None}
    return {key: float(value) if key == "fov" else tuple(map(float, value)) for key, value in camera.items()}


def _has_cuda() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False  # no driver: what torch would say after seconds of imports

    import torch

    return torch.cuda.is_available()
