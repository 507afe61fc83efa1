"""What changes over a run: the distillation coefficient λ and the learning rate."""

import math

from flax import struct
from ml_collections import ConfigDict


@struct.dataclass
class Coefficients:
    """What an update takes as numbers, so that it is compiled once.

    Attributes:
        distill: λ, the weight of the distillation term.
        replay: weight of the distillation term on replayed frames, λ·`distill.replay_coef`.
        learning_rate: of Adam's steps.
    """

    distill: float
    replay: float
    learning_rate: float


def coefficients(config: ConfigDict, step: int) -> Coefficients:
    """The coefficients of an update that follows `step` environment steps."""
    coef = distill_coef(config.distill, step)
    rate = learning_rate(config.ppo, step, config.total_steps)
    return Coefficients(distill=coef, replay=coef * config.distill.replay_coef, learning_rate=rate)


def distill_coef(distill: ConfigDict, step: int) -> float:
    """λ after `step` environment steps.

    constant: `coef`. cosine: coef_final + (coef − coef_final)(0.5 cos(π step / anneal_steps) + 0.5) until
    `anneal_steps`, then `coef_final`; with coef 1 and coef_final 0 it is the schedule of the published code.
    """
    if distill.schedule == "constant":
        return distill.coef
    if step >= distill.anneal_steps:
        return distill.coef_final
    share = 0.5 * math.cos(math.pi * step / distill.anneal_steps) + 0.5
    return distill.coef_final + (distill.coef - distill.coef_final) * share


def learning_rate(ppo: ConfigDict, step: int, total_steps: int) -> float:
    """Linear from `learning_rate` at step 0 to `learning_rate_final` at `total_steps`."""
    return ppo.learning_rate + (ppo.learning_rate_final - ppo.learning_rate) * min(1.0, step / total_steps)
