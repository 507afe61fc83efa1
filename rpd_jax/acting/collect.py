"""One rollout: the student steps all environments."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rpd_jax.acting.guide import ACTORS, Guide
from rpd_jax.envs.vector_env import VectorEnv
from rpd_jax.learning.learner import Learner
from rpd_jax.learning.rollout import Rollout

# Frames of ended episodes whose value is computed in one call; a fixed size, so that it compiles once.
_FINAL_VALUE_BATCH = 32


@dataclasses.dataclass
class Position:
    """Where the environments stand between two rollouts: observations of the next step, and whether they are resets."""

    rgb: jax.Array | np.ndarray | None  # uint8 [N, H, W, 3], None where none are drawn
    state: jax.Array | np.ndarray  # float32 [N, D]
    done: np.ndarray  # bool [N]
    actors: np.ndarray | None = None  # int [N], who acts in each episode, see `Guide`; None: to be drawn


def start(envs: VectorEnv, seed: int, drawn: bool = True) -> Position:
    """Resets the environments; `drawn` says whether somebody looks at the frames."""
    envs.set_drawing(drawn)
    rgb = envs.reset(seed)
    return Position(rgb, envs.state, np.zeros(envs.num_envs, bool))


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
    frames = _FrameBuffer(num_steps)
    columns: dict[str, list] = {
        name: [] for name in ("state", "actions", "logprobs", "values", "rewards", "dones", "valid")
    }
    episodes: dict[str, list[float]] = {
        who + name: [] for who in (ACTORS if guide else ACTORS[:1]) for name in ("success", "return", "length")
    }
    actors = np.zeros(envs.num_envs, int) if guide is None else position.actors
    finals: list[tuple[int, int, np.ndarray, np.ndarray]] = []
    keys = jax.random.split(key, num_steps)
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
        clipped = jnp.clip(action, -1.0, 1.0)
        if on_frames is not None:
            # Else the action would wait for what is begun here.
            jax.block_until_ready(clipped)
            on_frames(rgb, position.state)
        step = envs.step(clipped)
        for name, row in (
            ("state", position.state),
            ("actions", action),
            ("logprobs", logprob),
            ("values", value),
            ("rewards", step.reward),
            ("dones", position.done),
            ("valid", step.valid),
        ):
            columns[name].append(row)
        done = np.asarray(step.terminated) | np.asarray(step.truncated)
        for n in np.flatnonzero(done):
            final_rgb = np.array(step.final_rgb[n]) if drawn else None
            finals.append((t, n, final_rgb, np.array(step.final_state[n])))
            who = ACTORS[actors[n]]
            episodes[who + "success"].append(float(step.episode.success[n]))
            episodes[who + "return"].append(float(step.episode.episode_return[n]))
            episodes[who + "length"].append(float(step.episode.length[n]))
        position = Position(step.rgb, step.state, done | ~np.asarray(step.valid), actors)
    values, valid = jnp.stack(columns["values"]), np.stack(columns["valid"])
    dones, final_values = cut_lost_steps(
        np.stack(columns["dones"]),
        np.asarray(values),
        _final_values(learner, params, finals, (num_steps, envs.num_envs)),
        valid,
    )
    collected = Rollout(
        rgb=frames.stacked() if drawn else None,
        state=jnp.asarray(np.stack(columns["state"])),
        actions=jnp.stack(columns["actions"]),
        logprobs=jnp.stack(columns["logprobs"]),
        values=values,
        rewards=jnp.asarray(np.stack(columns["rewards"]), jnp.float32),
        dones=jnp.asarray(dones, jnp.float32),
        next_done=jnp.asarray(position.done, jnp.float32),
        next_value=learner.value(params, position.rgb, position.state),
        final_values=jnp.asarray(final_values),
        teacher_actions=None,
        valid=jnp.asarray(valid),
    )
    return collected, position, {name: np.array(values, np.float32) for name, values in episodes.items()}


def cut_lost_steps(
    dones: np.ndarray, values: np.ndarray, final_values: np.ndarray, valid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
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
    cut = ~valid & ~dones.astype(bool)
    final_values = final_values.copy()
    final_values[:-1] += np.where(cut[1:], values[1:], 0.0)
    return dones | ~valid, final_values


class _FrameBuffer:
    """uint8 [T, N, H, W, 3], filled step by step; where the frames come from, in host memory or on the device."""

    def __init__(self, num_steps: int):
        self._num_steps = num_steps
        self._t = 0
        self._buffer: np.ndarray | jax.Array | None = None

    def add(self, rgb: np.ndarray | jax.Array) -> None:
        if self._buffer is None:
            shape = (self._num_steps, *rgb.shape)
            self._buffer = np.empty(shape, np.uint8) if isinstance(rgb, np.ndarray) else jnp.empty(shape, jnp.uint8)
        if isinstance(self._buffer, np.ndarray):
            self._buffer[self._t] = rgb
        else:
            self._buffer = _write_frame(self._buffer, rgb, self._t)
        self._t += 1

    def stacked(self) -> jax.Array:
        return jnp.asarray(self._buffer)


@jax.jit(donate_argnums=0)
def _write_frame(buffer: jax.Array, rgb: jax.Array, t: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(buffer, rgb, t, 0)


def _final_values(learner: Learner, params: dict, finals: list, shape: tuple[int, int]) -> np.ndarray:
    """V(last observation) [T, N] where an episode ended, 0 elsewhere."""
    values = np.zeros(shape, np.float32)
    for begin in range(0, len(finals), _FINAL_VALUE_BATCH):
        batch = finals[begin : begin + _FINAL_VALUE_BATCH]
        padding = [batch[-1]] * (_FINAL_VALUE_BATCH - len(batch))
        rgb = None if batch[0][2] is None else np.stack([item[2] for item in batch + padding])
        state = np.stack([item[3] for item in batch + padding])
        for (t, n, _, _), value in zip(batch, np.asarray(learner.value(params, rgb, state)), strict=False):
            values[t, n] = value
    return values
