"""The steps of an update, one minibatch after the other: its innermost loop, compiled with what is around it."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct
from ml_collections import ConfigDict

from rpd_jax.learning import objective, sharding
from rpd_jax.learning.augmentation import random_shift
from rpd_jax.learning.finite import FINITE_TERMS, INPUT_TERMS, first_nonfinite
from rpd_jax.learning.minibatches import Samples
from rpd_jax.learning.replay import Labelled, Replay
from rpd_jax.learning.schedules import Coefficients
from rpd_jax.student.networks import CRITIC_MODULES, ActorCritic


@struct.dataclass
class Sources:
    """What the minibatches of an update are drawn from, and the numbers that they are taken with."""

    samples: Samples
    replay: Replay | None
    fresh: Labelled | None  # the rollout's own part of the replay
    coefficients: Coefficients


@struct.dataclass
class Progress:
    """How far an update is."""

    params: dict
    opt_state: optax.OptState
    stopped: jax.Array  # bool, by the target KL or by a number that is not finite
    nonfinite: jax.Array  # int32, 1 + the place in FINITE_TERMS of what was not finite, or 0


@dataclasses.dataclass(frozen=True)
class Steps:
    """What a minibatch does to a student.

    Attributes:
        network: the student.
        config: the training config; reads `algorithm`, `ppo` and `distill`.
        optimizer: gives the directions that the learning rate is multiplied with.
        axis_name: of the devices that each hold a part of the minibatch; None: this one holds all.
    """

    network: ActorCritic
    config: ConfigDict
    optimizer: optax.GradientTransformation
    axis_name: str | None

    def step(self, sources, progress, inputs):
        """One minibatch, unless the update has stopped: its terms, whether it was looked at and stepped on."""

        # Traced once, for its shapes and as a branch.
        run = jax.jit(partial(self._learn_from_minibatch, sources), inline=True)
        _, terms = jax.eval_shape(run, progress, *inputs)

        def skip(progress, *inputs):
            if self.config.ppo.critic_continues:
                progress = self._critic_continues(sources, progress, *inputs)
            return progress, jax.tree.map(lambda term: jnp.full(term.shape, jnp.nan, term.dtype), terms)

        after, terms = jax.lax.cond(progress.stopped, skip, run, progress, *inputs)
        return after, (terms, ~progress.stopped, ~after.stopped)

    def _learn_from_minibatch(self, sources, progress, indices, epoch, key):
        target_kl = self.config.ppo.target_kl
        terms, grads, nonfinite = self._gradient(sources, progress.params, indices, epoch, key)
        exceeded = terms["approx_kl"] > target_kl if target_kl else jnp.zeros((), bool)
        stopped = exceeded | (nonfinite > 0)
        params, opt_state = self._stepped(progress, grads, sources.coefficients.learning_rate, ~stopped)
        if self.config.ppo.critic_first:
            # Neither the critic's loss nor the guess of the state moves what a resting policy sees by. (Their moments
            # are dropped when it begins to learn.)
            learns = sources.coefficients.policy > 0
            params = _where_of_policy(lambda old, new: jnp.where(learns, new, old), progress.params, params)
        return Progress(params, opt_state, stopped, jnp.maximum(progress.nonfinite, nonfinite)), terms

    def _critic_continues(self, sources, progress, indices, epoch, key):
        """The critic's step on a minibatch that comes after the target KL."""
        resting = sources.coefficients.replace(policy=0.0, distill=0.0, replay=0.0)
        sources = sources.replace(coefficients=resting, replay=None, fresh=None)
        _, grads, nonfinite = self._gradient(sources, progress.params, indices, epoch, key)
        nonfinite = jnp.maximum(progress.nonfinite, nonfinite)
        after = self._stepped(progress, grads, resting.learning_rate, nonfinite == 0)
        # Adam's moments would move the policy on. (Its count stays the policy's: what it corrects cancels, nearly.)
        params, opt_state = _where_of_policy(lambda old, new: old, (progress.params, progress.opt_state), after)
        return progress.replace(params=params, opt_state=opt_state, nonfinite=nonfinite)

    def _gradient(self, sources, params, indices, epoch, key):
        """The terms of a minibatch, the gradient of their sum, and the code of the first that is not finite."""
        minibatch, replayed = self._draw(sources, indices, epoch, key)
        gradient = jax.value_and_grad(objective.objective, has_aux=True)
        (_, terms), grads = gradient(
            params, self.network, self.config, minibatch, replayed, sources.coefficients, self.axis_name
        )
        terms, grads = sharding.mean_of_devices((terms, grads), self.axis_name)
        terms["grad_norm"] = optax.global_norm(grads)
        looked_at = [terms[name] for name in FINITE_TERMS[len(INPUT_TERMS) :]]
        return terms, grads, first_nonfinite(looked_at, len(INPUT_TERMS))

    def _stepped(self, progress, grads, rate, allowed):
        """Parameters and Adam's moments after a step, or as they are if it is not allowed."""

        def step():
            updates, opt_state = self.optimizer.update(grads, progress.opt_state, progress.params)
            return jax.tree.map(lambda p, u: p - rate * u, progress.params, updates), opt_state

        return jax.lax.cond(allowed, step, lambda: (progress.params, progress.opt_state))

    def _draw(self, sources, indices, epoch, key):
        """A minibatch, and the frames of the replay that join it."""
        distill = self.config.distill
        replay_key, shift_key, replay_shift_key = jax.random.split(key, 3)
        minibatch = sources.samples.minibatch(indices, epoch)
        if distill.augment_ppo and minibatch.rgb is not None:
            minibatch = minibatch.replace(rgb=random_shift(shift_key, minibatch.rgb, distill.augment))
        if sources.replay is None:
            return minibatch, None
        rows, filled = sources.replay.sample(replay_key, distill.replay_batch, sources.fresh)
        if rows.frames is not None:
            rows = rows.replace(frames=random_shift(replay_shift_key, rows.frames, distill.augment))
        # Nothing to learn from an empty ring.
        return minibatch, objective.Replayed(rows, (filled > 0).astype(jnp.float32))


def _where_of_policy(choose, before, after):
    """Parameters, or Adam's moments, after a step; `choose(before, after)` where they are not the critic's alone."""
    return jax.tree_util.tree_map_with_path(
        lambda path, old, new: new if _of_critic(path) else choose(old, new), before, after
    )


def _of_critic(path):
    """Whether a leaf of the parameters, or of Adam's moments of them, is the critic's alone."""
    return any(getattr(key, "key", None) in CRITIC_MODULES for key in path)
