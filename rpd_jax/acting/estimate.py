"""How long an iteration will take, from a short measurement on this machine."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rpd_jax.acting import collect
from rpd_jax.acting.stage import Stage, iteration_keys
from rpd_jax.learning.rollout import AXES, Rollout
from rpd_jax.run.stages import StageClock

_STEPS = 8


def estimate_seconds(stage: Stage, check_stop: Callable[[], None] = lambda: None) -> float:
    """Seconds per iteration: a few steps of the environments with their labels, scaled up, and one update.

    Everything is compiled here first, so that the training loop's own times hold no compilation. The environments
    must be reset afterwards. A throw-away student acts and learns. In a run of one process `check_stop` is called
    between the parts and may raise; several processes go through this together.
    """
    if jax.process_count() > 1:
        check_stop = lambda: None  # noqa: E731
    key, num_steps = jax.random.key(0), stage.config.ppo.rollout_steps
    state, keys = stage.fresh_state(key), iteration_keys(key, 0)
    coefficients = stage.coefficients(stage.config.ppo.critic_first)  # nothing is labelled before
    labelled = coefficients.distill > 0.0
    position = collect.start(stage.envs, 0, stage.draws(labelled))
    for _ in range(2):  # the second pass is the measured one
        clock = StageClock()
        short, position, _ = stage.collect(state, position, _STEPS, keys, labelled, clock, check_stop)
        check_stop()
        state, _ = stage.update(state, _stretch(short, num_steps), keys, coefficients, clock)
    seconds = clock.totals
    return (seconds["simulate+render"] + seconds["label"]) * num_steps / _STEPS + seconds["update"]


@partial(jax.jit, static_argnums=1)
def _stretch(short: Rollout, num_steps: int) -> Rollout:
    """Repeats a short rollout in time until it has `num_steps` steps."""
    steps = np.arange(num_steps) % _STEPS
    stretched = {}
    for name, axes in AXES.items():
        array = getattr(short, name)
        if array is not None and "T" in axes:
            stretched[name] = jnp.take(array, steps, axes.index("T"), mode="clip")
    return short.replace(**stretched)
