"""How long an iteration will take, from a short measurement on this machine."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rpd_jax import rollout
from rpd_jax.envs.vector_env import VectorEnv
from rpd_jax.learner import Learner
from rpd_jax.teachers import Teacher

_STEPS = 8


def estimate_seconds(
    config: ConfigDict,
    envs: VectorEnv,
    learner: Learner,
    teacher: Teacher | None,
    instruction: str,
    check_stop: Callable[[], None] = lambda: None,
) -> float:
    """Seconds per iteration: a few steps of the environments, one batch of labels and one update, scaled up.

    Everything is compiled here first, so that the training loop's own times hold no compilation. The environments
    must be reset afterwards. The learner's state is not touched: a throw-away one is updated. In a run of one process
    `check_stop` is called between the parts and may raise; several processes go through this together.
    """
    if jax.process_count() > 1:
        check_stop = lambda: None  # noqa: E731
    key = jax.random.key(0)
    position = rollout.start(envs, 0)
    state = learner.init(key, position.rgb, position.state)
    replay = learner.create_replay(envs.action_dim, envs.state_dim)
    seconds = 0.0
    for _ in range(2):  # the second pass is the measured one
        start = time.perf_counter()
        short, position, _ = rollout.collect(
            envs, learner, learner.local_params(state), position, _STEPS, key, check_stop
        )
        stepping = (time.perf_counter() - start) * config.ppo.rollout_steps / _STEPS
        repeats = -(-config.ppo.rollout_steps // _STEPS)
        full = _stretch(short, repeats, config.ppo.rollout_steps)
        start = time.perf_counter()
        if teacher is not None:
            full = rollout.label(
                full, teacher, instruction, key, learner.num_samples, config.distill.averaged, learner.label_sets
            )
            jax.block_until_ready(full.teacher_actions)
            check_stop()
        full = learner.spread(full)
        if teacher is not None:
            replay = learner.extend_replay(replay, full)
        state, metrics = learner.update(state, full, key, replay=replay)
        jax.block_until_ready(metrics)
        seconds = stepping + time.perf_counter() - start
    return seconds


def _stretch(short: rollout.Rollout, repeats: int, num_steps: int) -> rollout.Rollout:
    """Repeats a short rollout in time until it has `num_steps` steps."""

    def tile(leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2:  # next_done, next_value: no time axis
            return leaf
        return jnp.asarray(np.concatenate([np.asarray(leaf)] * repeats)[:num_steps])

    return jax.tree.map(tile, short)
