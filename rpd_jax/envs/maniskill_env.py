"""The GPU backend: one batched ManiSkill simulation, frames and actions crossing between PyTorch and JAX by DLPack."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv

from rpd_jax.envs import gpu_physics
from rpd_jax.envs.camera_task import CameraChange, frames, make_task_env, set_drawing, states
from rpd_jax.envs.vector_env import EpisodeMetrics, Step, episode_seed
from rpd_jax.errors import UserError


class ManiSkillEnv:
    """N environments in one simulation; implements VectorEnv with JAX arrays on the device.

    Several environments need `sim_backend="physx_cuda"`; one runs on "physx_cpu" through the same code.

    Args:
        task_args: arguments of `make_task_env`; `camera` as a dict of CameraChange's fields.
        num_envs: N.
        ignore_terminations: let episodes run to their limit even when the task succeeded (for evaluation).

    Raises:
        UserError: "physx_cuda" asked for and no CUDA device, or SAPIEN's library for it is not to be had.
    """

    action_dim = 7

    def __init__(
        self,
        task_args: dict,
        num_envs: int,
        *,
        max_episode_steps: int,
        ignore_terminations: bool = False,
        sim_backend: str = "physx_cuda",
        render_backend: str = "gpu",
    ):
        if sim_backend == "physx_cuda" and not torch.cuda.is_available():
            raise UserError(
                "env.backend='gpu' needs a CUDA device and a PyTorch that sees it, and there is none:"
                " use env.backend='cpu' or 'auto'."
            )
        if sim_backend == "physx_cuda":
            gpu_physics.check_available()
        self.num_envs = num_envs
        self.image_size = task_args["image_size"]
        self.max_episode_steps = max_episode_steps
        self.drawing = True
        self._closed = False
        task_args = {**task_args, "camera": CameraChange(**task_args["camera"])}
        env = make_task_env(num_envs=num_envs, sim_backend=sim_backend, render_backend=render_backend, **task_args)
        self._env = ManiSkillVectorEnv(env, ignore_terminations=ignore_terminations, record_metrics=True)
        self._device = env.unwrapped.device
        self.state_dim = env.unwrapped.single_observation_space["state"].shape[0]
        self._rgb: jax.Array | None = None  # the latest frames, None where none were drawn
        self._state = jnp.zeros((num_envs, self.state_dim), jnp.float32)
        self._valid = jnp.ones(num_envs, bool)

    @property
    def state(self) -> jax.Array:
        """float32 [N, D] privileged state that belongs to the latest frames."""
        return self._state

    def set_drawing(self, on: bool) -> jax.Array | None:
        """Draws frames from now on, or none; returns those of this moment, uint8 [N, H, W, 3], or None."""
        if on != self.drawing:
            self.drawing = on
            self._rgb, self._state = _observed(set_drawing(self._env, on))
        return self._rgb

    def reset(self, seed: int) -> jax.Array | None:
        """Starts an episode everywhere; returns frames uint8 [N, H, W, 3], or None where none are drawn."""
        # With several environments ManiSkill draws the later episodes from PyTorch's global generators.
        torch.manual_seed(episode_seed(seed, self.num_envs))
        obs, _ = self._env.reset(seed=[episode_seed(seed, index) for index in range(self.num_envs)])
        self._rgb, self._state = _observed(obs)
        return self._rgb

    def step(self, actions: jax.Array) -> Step:
        """Applies actions, float32 [N, 7], for one control step; ended episodes restart within it."""
        actions = _clipped(actions).block_until_ready()
        obs, reward, terminated, truncated, info = self._env.step(torch.from_dlpack(actions).to(self._device))
        self._rgb, self._state = _observed(obs)
        final_rgb, final_state = self._rgb, self._state
        last_info = info
        if "final_info" in info:
            final_rgb, final_state = _observed(info["final_observation"])
            last_info = info["final_info"]
        episode = last_info["episode"]
        return Step(
            rgb=self._rgb,
            reward=_to_jax(reward.float()),
            terminated=_to_jax(terminated),
            truncated=_to_jax(truncated),
            final_rgb=final_rgb,
            state=self._state,
            final_state=final_state,
            episode=EpisodeMetrics(
                success=_to_jax(episode["success_once"].float()),
                success_at_end=_to_jax(last_info["success"].float()),
                episode_return=_to_jax(episode["return"].float()),
                length=_to_jax(episode["episode_len"].int()),
            ),
            valid=self._valid,
        )

    def close(self) -> None:
        """Releases the simulation; may be called again."""
        if not self._closed:
            self._closed = True
            self._env.close()

    def __enter__(self) -> ManiSkillEnv:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _observed(obs: dict) -> tuple[jax.Array | None, jax.Array]:
    """Returns frames uint8 [N, H, W, 3] (None if not drawn) and states float32 [N, D] that later steps leave alone."""
    rgba = frames(obs)
    if rgba is None:
        return None, _to_jax(states(obs))
    # The simulator draws its next frame into the same buffer, so the copy must be done before this returns.
    return _drop_alpha(jnp.from_dlpack(rgba.contiguous())).block_until_ready(), _to_jax(states(obs))


@jax.jit
def _clipped(actions: jax.Array) -> jax.Array:
    return jnp.clip(actions.astype(jnp.float32), -1.0, 1.0)


@jax.jit
def _drop_alpha(rgba: jax.Array) -> jax.Array:
    return rgba[..., :3]


def _to_jax(tensor: torch.Tensor) -> jax.Array:
    # copy=True: ManiSkill reuses many of its tensors in place.
    return jnp.from_dlpack(tensor.detach().contiguous(), copy=True).block_until_ready()
