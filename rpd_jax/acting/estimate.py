"""How long an iteration will take, from a short measurement on this machine."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rpd_jax.acting import collect
from rpd_jax.acting.labelling import Labeller
from rpd_jax.envs.vector_env import VectorEnv
from rpd_jax.learning.learner import Learner, Rollout

_STEPS = 8


def estimate_seconds(
    config: ConfigDict,
    envs: VectorEnv,
    learner: Learner,
    labeller: Labeller | None,
    check_stop: Callable[[], None] = lambda: None,
) -> float:
    """Seconds per iteration: a few steps of the environments with their labels, scaled up, and one update.

    Everything is compiled here first, so that the training loop's own times hold no compilation. The environments
    must be reset afterwards. The learner's state is not touched: a throw-away one is updated. In a run of one process
    `check_stop` is called between the parts and may raise; several processes go through this together.
    """
    if jax.process_count() > 1:
        check_stop = lambda: None  # noqa: E731
    key = jax.random.key(0)
    position = collect.start(envs, 0)
    state = learner.init(key, position.rgb, position.state)
    replay = learner.create_replay(envs.action_dim, envs.state_dim)
    seconds = 0.0
    for _ in range(2):  # the second pass is the measured one
        start = time.perf_counter()
        on_frames = labeller.begin(key) if labeller else None
        short, position, _ = collect.rollout(
            envs, learner, learner.local_params(state), position, _STEPS, key, check_stop, on_frames
        )
        if labeller:
            short = jax.block_until_ready(labeller.label(short))
        collecting = (time.perf_counter() - start) * config.ppo.rollout_steps / _STEPS
        check_stop()
        full = _stretch(short, config.ppo.rollout_steps)
        start = time.perf_counter()
        full = learner.spread(full)
        state, metrics = learner.update(state, full, key, replay=replay)
        if labeller:
            replay = learner.extend_replay(replay, full)
        jax.block_until_ready(metrics)
        seconds = collecting + time.perf_counter() - start
    return seconds


def _stretch(short: Rollout, num_steps: int) -> Rollout:
    """Repeats a short rollout in time until it has `num_steps` steps."""
    steps = np.arange(num_steps) % _STEPS

    def stretch(leaf: jax.Array, axis: int) -> jax.Array:
        # next_done, next_value: no time axis
        return leaf if leaf.ndim < 2 else jnp.asarray(np.take(np.asarray(leaf), steps, axis))

    labels = short.teacher_actions
    full = jax.tree.map(lambda leaf: stretch(leaf, 0), short.replace(teacher_actions=None))
    return full if labels is None else full.replace(teacher_actions=stretch(labels, -3))
