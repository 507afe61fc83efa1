"""What changes over a run: the distillation coefficient λ and the learning rate."""

import math

from flax import struct
from ml_collections import ConfigDict

from rpd_jax.learning.algorithms import find_algorithm


@struct.dataclass
class Coefficients:
    """What an update takes as numbers, so that it is compiled once.

    Attributes:
        distill: λ, the weight of the distillation term.
        replay: weight of the distillation term on replayed frames, λ·`distill.replay_coef`.
        learning_rate: of Adam's steps.
        policy: 1, or 0 while the critic alone learns: weight of PPO's terms for the policy. λ is 0 then, too.
        restart: Adam's moments begin anew: those of a policy that rested would make its first steps several times too
            large, since the bias of their zeros is no longer corrected.
    """

    distill: float
    replay: float
    learning_rate: float
    policy: float = 1.0
    restart: bool = False


def coefficients(config: ConfigDict, step: int, success: float = 0.0) -> Coefficients:
    """The coefficients of an update that follows `step` environment steps.

    Args:
        config: of the training.
        step: environment steps so far.
        success: of the sampled actions, lately; read where `distill.schedule` goes by it.
    """
    critic_first = config.ppo.critic_first if find_algorithm(config.algorithm).reinforces else 0
    policy = 0.0 if step < critic_first else 1.0
    restart = 0 < critic_first <= step < critic_first + config.env.num_envs * config.ppo.rollout_steps
    coef = policy * distill_coef(config.distill, step, success)
    rate = learning_rate(config.ppo, step, config.total_steps)
    return Coefficients(
        distill=coef, replay=coef * config.distill.replay_coef, learning_rate=rate, policy=policy, restart=restart
    )


def distill_coef(distill: ConfigDict, step: int, success: float = 0.0) -> float:
    """λ after `step` environment steps, where the sampled actions' success is s.

    constant: `coef`. cosine: coef_final + (coef − coef_final)(0.5 cos(π step / anneal_steps) + 0.5) until
    `anneal_steps`, then `coef_final`; with coef 1 and coef_final 0 it is the schedule of the published code. success:
    coef_final + (coef − coef_final)(1 − s / anneal_success) below a success of `anneal_success`, then `coef_final`.
    """
    if distill.schedule == "constant":
        return distill.coef
    if distill.schedule == "success":
        share = max(0.0, 1.0 - success / distill.anneal_success)
        return distill.coef_final + (distill.coef - distill.coef_final) * share
    if step >= distill.anneal_steps:
        return distill.coef_final
    share = 0.5 * math.cos(math.pi * step / distill.anneal_steps) + 0.5
    return distill.coef_final + (distill.coef - distill.coef_final) * share


def guide_share(config: ConfigDict, step: int) -> float:
    """The share of episodes that the teacher acts in: linear from `distill.guide` to `guide_final` at `total_steps`."""
    return _linear(config.distill.guide, config.distill.guide_final, step, config.total_steps)


def learning_rate(ppo: ConfigDict, step: int, total_steps: int) -> float:
    """Linear from `learning_rate` at step 0 to `learning_rate_final` at `total_steps`."""
    return _linear(ppo.learning_rate, ppo.learning_rate_final, step, total_steps)


def _linear(begin: float, end: float, step: int, total_steps: int) -> float:
    return begin + (end - begin) * min(1.0, step / total_steps)
