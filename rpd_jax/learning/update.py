"""An update as a program: advantages, minibatches, and a step on the objective of each, on all devices of a mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from rpd_jax.learning import minibatches, sharding
from rpd_jax.learning.advantages import advantages_of
from rpd_jax.learning.algorithms import find_algorithm
from rpd_jax.learning.finite import first_nonfinite_input
from rpd_jax.learning.rollout import check_arrays
from rpd_jax.learning.sharding import AXIS, REPLICATED
from rpd_jax.learning.steps import Progress, Sources, Steps
from rpd_jax.student.networks import ActorCritic
from rpd_jax.student.state_features import with_statistics


@struct.dataclass
class LearnerState:
    """What the learner carries from update to update.

    Attributes:
        params: parameters of the student.
        opt_state: Adam's moments.
        updates: int32, rollouts seen.
        optimizer_steps: int32, minibatches stepped on.
    """

    params: dict
    opt_state: optax.OptState
    updates: jax.Array
    optimizer_steps: jax.Array


class Update:
    """What `Learner.update` compiles.

    Attributes:
        optimizer: gives the directions that the learning rate is multiplied with.
    """

    def __init__(self, network: ActorCritic, config: ConfigDict, mesh: Mesh):
        """Reads `algorithm`, `ppo` and `distill` of the training config."""
        self._network = network
        self._config = config
        self._mesh = mesh
        self._axis = sharding.axis_name(mesh)
        self._algorithm = find_algorithm(config.algorithm)
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(config.ppo.max_grad_norm), optax.scale_by_adam(eps=config.ppo.adam_eps)
        )
        self._steps = Steps(network, config, self.optimizer, self._axis)

    def on_mesh(self, state, rollout, key, coefficients, replay, permutations, *, per_minibatch: bool):
        """`Learner.update` of what the student sees; see there."""
        check_arrays(rollout)
        if replay is not None:
            check_arrays(replay)
        specs = (REPLICATED, sharding.rollout_specs(rollout), REPLICATED, REPLICATED, sharding.replay_specs(replay))
        compute = jax.shard_map(
            partial(self._on_device, per_minibatch=per_minibatch),
            mesh=self._mesh,
            in_specs=(*specs, PartitionSpec(None, AXIS)),
            out_specs=REPLICATED,
            check_vma=False,  # metrics and gradients are made equal by hand
        )
        return compute(state, rollout, key, coefficients, replay, permutations)

    def _on_device(self, state, rollout, key, coefficients, replay, permutations, *, per_minibatch):
        """Advantages, minibatches, and a step on the objective of each."""
        ppo = self._config.ppo
        advantages = advantages_of(rollout, ppo)
        samples = minibatches.make_samples(rollout, advantages, self._network.image_size)
        valid = None if rollout.valid is None else minibatches.flat(rollout.valid)
        order_key, step_key = jax.random.split(sharding.device_key(key, self._axis))
        indices = minibatches.draw_minibatches(
            order_key, advantages.size, ppo.update_epochs, ppo.num_minibatches, valid, permutations
        )
        num_steps = len(indices)
        epochs = jnp.arange(num_steps) // ppo.num_minibatches

        nonfinite = sharding.max_of_devices(first_nonfinite_input(rollout), self._axis)
        opt_state = state.opt_state
        if ppo.critic_first:
            fresh = partial(self.optimizer.init, state.params)
            opt_state = jax.lax.cond(coefficients.restart, fresh, lambda: state.opt_state)
        progress = Progress(state.params, opt_state, nonfinite > 0, nonfinite)
        sources = Sources(samples, replay, self._fresh(samples, replay), coefficients)
        progress, (terms, looked_at, stepped) = jax.lax.scan(
            partial(self._steps.step, sources), progress, (indices, epochs, jax.random.split(step_key, num_steps))
        )

        metrics = {name: _mean_where(looked_at, term) for name, term in terms.items()}
        metrics["optimizer_steps"] = jnp.sum(stepped, dtype=jnp.int32)
        metrics["nonfinite"] = progress.nonfinite
        metrics["target_kl_stop"] = (progress.stopped & (progress.nonfinite == 0)).astype(jnp.float32)
        metrics |= self._rollout_metrics(samples, valid)
        if per_minibatch:
            metrics["minibatches"] = terms
        params = progress.params
        if samples.state is not None:
            # Only now: the policy that acted and the one that learnt from it saw the same normalisation.
            params = with_statistics(params, *sharding.of_all_devices((samples.state, valid), self._axis))
        improved = LearnerState(
            params=params,
            opt_state=progress.opt_state,
            updates=state.updates + 1,
            optimizer_steps=state.optimizer_steps + metrics["optimizer_steps"],
        )
        # A number that was not finite undoes all steps before it.
        return jax.lax.cond(progress.nonfinite == 0, lambda: improved, lambda: state), metrics

    def _fresh(self, samples, replay):
        """What the rollout will add to the replay."""
        if replay is None or samples.labels is None:
            return None
        return samples.labelled().newest(replay.capacity)

    def _rollout_metrics(self, samples, valid):
        """What does not depend on the minibatches, of all devices together."""
        everyone = (samples.returns, samples.values, samples.advantages, valid)
        returns, values, advantages, valid = sharding.of_all_devices(everyone, self._axis)
        unexplained = jnp.var(returns - values, where=valid)
        metrics = {
            "explained_variance": 1.0 - unexplained / jnp.maximum(jnp.var(returns, where=valid), 1e-12),
            "advantage_std": jnp.std(advantages, where=valid),
        }
        if self._algorithm.reads_spread and samples.labels is not None:
            floored = jnp.std(samples.labels, axis=2) < self._config.distill.std_floor
            share = jnp.mean(floored.astype(jnp.float32))
            metrics["teacher_std_floored"] = sharding.mean_of_devices(share, self._axis)
        return metrics


def _mean_where(looked_at, term):
    """The mean of the entries looked at, 0 if there are none; the others may be NaN."""
    return jnp.sum(jnp.where(looked_at, term, 0.0)) / jnp.maximum(jnp.sum(looked_at), 1)
