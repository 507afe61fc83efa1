"""One rollout: the student steps all environments."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rpd_jax.acting.final_values import final_values
from rpd_jax.acting.guide import ACTORS, Guide
from rpd_jax.envs.vector_env import VectorEnv
from rpd_jax.learning.learner import Learner
from rpd_jax.learning.rollout import Rollout

# Bytes: where the memory of an array on the CPU begins, as XLA wants it.
_ALIGNMENT = 64


@dataclasses.dataclass
class Position:
    """Where the environments stand between two rollouts: observations of the next step, and whether they are resets."""

    rgb: jax.Array | np.ndarray | None  # uint8 [N, H, W, 3], None where none are drawn
    state: jax.Array | np.ndarray  # float32 [N, D]
    done: jax.Array | np.ndarray  # bool [N]
    actors: jax.Array | np.ndarray | None = None  # int [N], who acts in each episode, see `Guide`; None: to be drawn


def start(envs: VectorEnv, seed: int, drawn: bool = True) -> Position:
    """Resets the environments; `drawn` says whether somebody looks at the frames."""
    envs.set_drawing(drawn)
    rgb = envs.reset(seed)
    return Position(rgb, envs.state, _beside(envs.state, np.zeros(envs.num_envs, bool)))


def rollout(
    envs: VectorEnv,
    learner: Learner,
    params: dict,
    position: Position,
    num_steps: int,
    key: jax.Array,
    check_stop: Callable[[], None] = lambda: None,
    on_frames: Callable[[jax.Array | np.ndarray | None, jax.Array | np.ndarray], None] | None = None,
    drawn: bool = True,
    guide: Guide | None = None,
) -> tuple[Rollout, Position, dict[str, np.ndarray]]:
    """Steps all N environments `num_steps` times with sampled actions.

    Args:
        envs: N environments, standing at `position`.
        learner: holds the student's network.
        params: the student's parameters.
        position: what `start` or the previous call returned.
        num_steps: T.
        key: of the sampled actions.
        check_stop: called once per step; may raise to leave early.
        on_frames: called with each step's frames uint8 [N, H, W, 3] (None where none are drawn) and states, while the
            environments wait for its return: it should only begin what it does.
        drawn: somebody looks at the frames; if not, none are drawn and the rollout's `rgb` is None.
        guide: lets the teacher act in some of the episodes; the actions there are not those of the student's policy.

    Returns:
        The rollout without teacher labels; the next position; success, return and length (float32 [K] each) of the K
        episodes that ended, those of a guide under names of their own ("sample_success" and so on).
    """
    on_host = next(iter(jax.tree.leaves(params)[0].devices())).platform == "cpu"
    if envs.drawing != drawn:
        position = dataclasses.replace(position, rgb=envs.set_drawing(drawn))
    frames, finals = _FrameBuffer(num_steps), final_values(learner, params, position.state)
    rows: dict[str, list] = defaultdict(list)
    actors = _beside(position.state, np.zeros(envs.num_envs, np.int32)) if guide is None else position.actors
    keys = list(jax.random.split(key, num_steps))
    # Dense rewards would have come on: to stop short of success would be worth more.
    success_ends = learner.config.env.reward_mode == "sparse" and not learner.config.ppo.bootstrap_success
    for t in range(num_steps):
        check_stop()
        # To an accelerator each frame goes once.
        rgb = position.rgb if on_host or not drawn else jnp.asarray(position.rgb)
        if drawn:
            frames.add(rgb)
        action, logprob, value = learner.policy_step(params, rgb, position.state, keys[t])
        if guide is not None:
            actors = guide.actors(t, actors, position.done)
            action = guide.actions(action, actors, rgb, position.state)
        clipped = _clipped(action)
        if on_frames is not None:
            # Else the action would wait for what is begun here.
            jax.block_until_ready(clipped)
            on_frames(rgb, position.state)
        step = envs.step(clipped)
        ended = step.terminated | step.truncated
        finals.see(step, ended & ~step.terminated if success_ends else ended)
        for name, row in (
            ("state", position.state),
            ("actions", action),
            ("logprobs", logprob),
            ("values", value),
            ("rewards", step.reward),
            ("dones", position.done),
            ("valid", step.valid),
            ("actors", actors),
            ("ended", ended),
            ("success", step.episode.success),
            ("return", step.episode.episode_return),
            ("length", step.episode.length),
        ):
            rows[name].append(row)
        position = Position(step.rgb, step.state, ended | ~step.valid, actors)
    columns = {name: _stacked(column) for name, column in rows.items()}
    dones, values_of_ended = cut_lost_steps(columns["dones"], columns["values"], finals.stacked(), columns["valid"])
    rewards, dones, next_done = _floats(columns["rewards"], dones, position.done)
    collected = Rollout(
        rgb=frames.stacked() if drawn else None,
        state=jax.device_put(columns["state"]),
        actions=columns["actions"],
        logprobs=columns["logprobs"],
        values=columns["values"],
        rewards=rewards,
        dones=dones,
        next_done=next_done,
        next_value=learner.value(params, position.rgb, position.state),
        final_values=values_of_ended,
        teacher_actions=None,
        valid=jax.device_put(columns["valid"]),
    )
    return collected, position, _episodes(columns, ACTORS if guide else ACTORS[:1])


def _episodes(columns: dict[str, jax.Array | np.ndarray], actors: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Success, return and length of the episodes that ended, by who acted; from a device in one transfer."""
    told = jax.device_get({name: columns[name] for name in ("ended", "actors", "success", "return", "length")})
    return {
        who + name: told[name][told["ended"] & (told["actors"] == index)].astype(np.float32)
        for index, who in enumerate(actors)
        for name in ("success", "return", "length")
    }


def _beside(state: jax.Array | np.ndarray, array: np.ndarray) -> jax.Array | np.ndarray:
    """`array` where the environments' arrays are, of which `state` is one."""
    return array if isinstance(state, np.ndarray) else jax.device_put(array, state.sharding)


def _stacked(rows: list[jax.Array] | list[np.ndarray]) -> jax.Array | np.ndarray:
    return np.stack(rows) if isinstance(rows[0], np.ndarray) else jnp.stack(rows)


@jax.jit
def _floats(*arrays: jax.Array | np.ndarray) -> tuple[jax.Array, ...]:
    return tuple(array.astype(jnp.float32) for array in arrays)


@jax.jit
def _clipped(actions: jax.Array) -> jax.Array:
    return jnp.clip(actions, -1.0, 1.0)


@jax.jit
def cut_lost_steps(
    dones: jax.Array, values: jax.Array, final_values: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Keeps steps that were lost with their worker out of the returns of the steps before them.

    A lost step's observation is the last one known of its episode, so the episode is cut there as by a time limit: the
    step before it bootstraps from the value of that observation. Arrays are [T, N].

    Args:
        dones: bool, an episode ended before step t.
        values: float32, of the observations.
        final_values: float32, of the last observation where an episode ended at step t, else 0.
        valid: bool, False at lost steps.

    Returns:
        dones and final_values with the cuts.
    """
    cut = ~valid & ~dones
    return dones | ~valid, final_values.at[:-1].add(jnp.where(cut[1:], values[1:], 0.0))


class _FrameBuffer:
    """uint8 [T, N, H, W, 3], filled step by step; where the frames come from, in host memory or on the device."""

    def __init__(self, num_steps: int):
        self._num_steps = num_steps
        self._buffer: np.ndarray | jax.Array | None = None
        self._t: int | jax.Array = 0

    def add(self, rgb: np.ndarray | jax.Array) -> None:
        if isinstance(rgb, np.ndarray):
            if self._buffer is None:
                self._buffer = _aligned_bytes((self._num_steps, *rgb.shape))
            self._buffer[self._t] = rgb
            self._t += 1
        elif self._buffer is None:
            self._buffer, self._t = _first_frame(rgb, self._num_steps)
        else:
            self._buffer, self._t = _next_frame(self._buffer, self._t, rgb)

    def stacked(self) -> jax.Array:
        return jax.device_put(self._buffer)


def _aligned_bytes(shape: tuple[int, ...]) -> np.ndarray:
    """uint8, not filled in, where JAX takes them as they lie: those that begin elsewhere it copies."""
    memory = np.empty(math.prod(shape) + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + math.prod(shape)].reshape(shape)


@partial(jax.jit, static_argnums=1)
def _first_frame(rgb: jax.Array, num_steps: int) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((num_steps, *rgb.shape), jnp.uint8).at[0].set(rgb), jnp.ones((), jnp.int32)


@jax.jit(donate_argnums=(0, 1))
def _next_frame(buffer: jax.Array, t: jax.Array, rgb: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.lax.dynamic_update_index_in_dim(buffer, rgb, t, 0), t + 1
