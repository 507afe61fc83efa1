"""The algorithms by name: which distillation term each has, and whether it reinforces."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax

from rpd_jax import registry
from rpd_jax.errors import UserError, nearest
from rpd_jax.learning import losses

GROUP = "rpd_jax.algorithms"
# What several samples of a frame become where an algorithm reads one label: their mean, or the one nearest to it.
LABELS = ("mean", "nearest")
# Imitation alone, of one label of each frame or of the spread of several.
IMITATION = {False: "dagger", True: "dagger_ppd"}


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """What an update minimises besides what the settings weigh.

    Attributes:
        distillation: the pull towards the teacher, or None without a teacher. A pure function of mean float [B, A],
            log_std [A], log_ratio [B] (log of the action's new to its old density), the teacher's samples [S, B, A],
            the clip range ε and the least standard deviation of samples; returns a scalar.
        num_samples: teacher samples that it reads of each frame, S; 0 without a teacher.
        reads_spread: it needs the spread of the samples: S is `distill.num_samples` then, and they are never averaged.
        reinforces: PPO's terms (policy gradient, entropy, critic) are part of the objective.
    """

    distillation: Callable[..., jax.Array] | None
    num_samples: int = 1
    reads_spread: bool = False
    reinforces: bool = True


def _ours(kind: str, **options) -> Algorithm:
    return Algorithm(partial(losses.distillation_loss, kind), **options)


ALGORITHMS = {
    "rpd_mse": _ours("mse"),
    "rpd_l1": _ours("l1"),
    "rpd_bc": _ours("bc"),
    "ppd": _ours("ppd", reads_spread=True),
    # The controls of rpd_mse: without a teacher, and without reinforcement. The latter is DAgger (Ross et al. 2011):
    # imitation of the teacher's labels for the frames that the student itself meets.
    "ppo": Algorithm(None, num_samples=0),
    "dagger": _ours("mse", reinforces=False),
    # The same for ppd: its divergence alone.
    "dagger_ppd": _ours("ppd", reads_spread=True, reinforces=False),
}


def algorithm_names() -> tuple[str, ...]:
    """The names that `config.algorithm` may have: ours, then those of other packages."""
    return (*ALGORITHMS, *(name for name in registry.names(GROUP) if name not in ALGORITHMS))


def find_algorithm(name: str) -> Algorithm:
    """The algorithm of a name, here or of a package (an entry point of `rpd_jax.algorithms`).

    Raises:
        UserError: there is none, or its package cannot be loaded or offers something else.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    names = algorithm_names()
    if name not in names:
        raise UserError(f"algorithm={name!r} is not one of {', '.join(names)}: did you mean {nearest(name, names)!r}?")
    return registry.load(GROUP, name, Algorithm)
