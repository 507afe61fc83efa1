"""What a batch of environments is; both backends behave alike behind it. Imports no JAX: worker processes read it."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

Array = Any  # numpy's or JAX's


class EpisodeMetrics(NamedTuple):
    """Of the episode that each row is in or has just ended; meaningful in rows that ended.

    Attributes:
        success: 1 if any step of the episode was a success.
        success_at_end: 1 if its last step was.
        episode_return: undiscounted sum of rewards.
        length: control steps.
    """

    success: Float32[Array, " N"]
    success_at_end: Float32[Array, " N"]
    episode_return: Float32[Array, " N"]
    length: Int32[Array, " N"]


class Step(NamedTuple):
    """Outcome of one control step of N environments, same-step auto-reset.

    Attributes:
        rgb: where an episode ended, the next one's first frame. None where none are drawn.
        reward: of the step.
        terminated: the task succeeded; may be True together with `truncated`.
        truncated: the episode reached its limit of steps.
        final_rgb: the last frame of the episode in rows that ended; other rows are unspecified. None where none are
            drawn.
        state: D numbers, privileged state that belongs to `rgb`.
        final_state: the one that belongs to `final_rgb`.
        episode: metrics, meaningful in rows that ended.
        valid: False where the step was lost with a worker process that had to be replaced: the environment has begun
            its episode again, `rgb` and `state` are its first observation, nothing was earned or ended.
    """

    rgb: UInt8[Array, "N H W 3"] | None
    reward: Float32[Array, " N"]
    terminated: Bool[Array, " N"]
    truncated: Bool[Array, " N"]
    final_rgb: UInt8[Array, "N H W 3"] | None
    state: Float32[Array, "N D"]
    final_state: Float32[Array, "N D"]
    episode: EpisodeMetrics
    valid: Bool[Array, " N"]


class VectorEnv(Protocol):
    """N environments of one task, stepped together.

    The arrays of the CPU backend are numpy's, those of the GPU backend JAX's on the device. They are never overwritten
    by later calls.

    Attributes:
        num_envs: N.
        image_size: H = W, pixels.
        action_dim: 7: translation, rotation and gripper.
        state_dim: D.
        max_episode_steps: control steps until truncation.
        drawing: frames are drawn, as at the beginning; see `set_drawing`.
    """

    num_envs: int
    image_size: int
    action_dim: int
    state_dim: int
    max_episode_steps: int
    drawing: bool

    @property
    def state(self) -> Array:
        """float32 [N, D], privileged state that belongs to the latest frames."""

    def set_drawing(self, on: bool) -> Array | None:
        """Draws frames from now on, or none: drawing takes most of a step's time.

        What happens is the same either way, bit for bit on the CPU backend.

        Returns:
            the frames of this moment, uint8 [N, H, W, 3], or None.
        """

    def reset(self, seed: int) -> Array | None:
        """Starts an episode everywhere; returns frames uint8 [N, H, W, 3], or None where none are drawn.

        Environment i's whole sequence of episodes follows from `seed` and i (and the actions) alone, on the CPU
        backend bit for bit; only with several environments in one GPU simulation do later episodes depend on when the
        others ended.
        """

    def step(self, actions: Array) -> Step:
        """Applies actions, float32 [N, 7], clipped to [-1, 1], for one control step (50 ms)."""

    def close(self) -> None:
        """Releases processes and memory; may be called again."""

    def __enter__(self) -> VectorEnv: ...

    def __exit__(self, *exception) -> None: ...


def episode_seed(seed: int, index: int) -> int:
    """Returns the seed in [0, 2**31) of environment `index`, unlike its neighbours' and other runs'."""
    return int(np.random.SeedSequence((zlib.crc32(b"rpd_jax.envs"), seed, index)).generate_state(1)[0] >> 1)
