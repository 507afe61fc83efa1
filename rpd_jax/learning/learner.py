"""The learner: one compiled program turns a labelled rollout into a better student."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rpd_jax.learning import minibatches, sharding
from rpd_jax.learning.advantages import gae
from rpd_jax.learning.algorithms import find_algorithm
from rpd_jax.learning.finite import FINITE_TERMS, INPUT_TERMS, first_nonfinite_input
from rpd_jax.learning.replay import Labelled, Replay
from rpd_jax.learning.rollout import Rollout, check_arrays
from rpd_jax.learning.schedules import Coefficients
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


class Learner:
    """PPO with a distillation term.

    Attributes:
        network: the student.
        config: the training config; reads `algorithm`, `ppo`, `distill` and `teacher.refresh`.
        algorithm: what `config.algorithm` names.
        mesh: the devices that share the work.
    """

    def __init__(self, network: ActorCritic, config: ConfigDict, mesh: Mesh | None = None):
        """Builds the learner.

        Parameters are the same on all devices of `mesh` (default: this process's first one), and each device learns
        from the frames of its environments: a minibatch is the union of one part from each device, and the loss terms,
        their gradients and the normalisation of the advantages are those of the union.
        """
        self.network = network
        self.config = config
        self.mesh = sharding.one_device() if mesh is None else mesh
        self._axis = sharding.axis_name(self.mesh)
        self.algorithm = find_algorithm(config.algorithm)
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(config.ppo.max_grad_norm), optax.scale_by_adam(eps=config.ppo.adam_eps)
        )
        self._steps = Steps(network, config, self._optimizer, self._axis)
        self._update = jax.jit(self._update_on_mesh, static_argnames="per_minibatch")
        self._extend_replay = jax.jit(self._extend_replay_on_mesh, donate_argnums=0)
        self._fill_replay = jax.jit(self._fill_replay_on_mesh, donate_argnums=0)
        self._first_nonfinite_input = jax.jit(first_nonfinite_input)
        self._init_optimizer = jax.jit(self._optimizer.init)
        self.policy_step = jax.jit(partial(network.apply, method=ActorCritic.policy_step))
        self.mean_action = jax.jit(partial(network.apply, method=ActorCritic.mean_action))
        self.value = jax.jit(partial(network.apply, method=ActorCritic.value))
        self.value_where = jax.jit(self._value_where)

    @property
    def num_samples(self) -> int:
        """Teacher samples that the algorithm takes for each frame."""
        return self.config.distill.num_samples if self.algorithm.reads_spread else self.algorithm.num_samples

    @property
    def label_sets(self) -> int:
        """Independent labels of each frame: one for each update epoch, or one for all."""
        return self.config.ppo.update_epochs if self.config.teacher.refresh == "epoch" else 1

    @property
    def uses_replay(self) -> bool:
        return self.algorithm.distillation is not None and self.config.distill.replay > 0

    def init(self, key: jax.Array, rgb: jax.Array | None, state: jax.Array | None = None) -> LearnerState:
        """A fresh student for observations like `rgb` uint8 [B, H, W, 3] and `state` float32 [B, D]."""
        return self.init_from(_fresh_parameters(self.network, key, rgb, state))

    def init_from(self, params: dict) -> LearnerState:
        """A learner's state that starts from given parameters."""
        state = LearnerState(params, self._init_optimizer(params), np.int32(0), np.int32(0))
        return jax.device_put(state, sharding.shardings(self.mesh, REPLICATED))

    def local_params(self, state: LearnerState) -> dict:
        """The student's parameters on this process's first device, to act with."""
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), state.params)

    def spread(self, rollout: Rollout) -> Rollout:
        """The rollout of all processes and devices together, of which `rollout` is this process's part."""
        return sharding.spread(self.mesh, rollout, sharding.rollout_specs(rollout))

    def create_replay(self, action_dim: int, state_dim: int) -> Replay | None:
        """An empty replay of `distill.replay` frames, or None where it is off."""
        if not self.uses_replay:
            return None
        size, both = self.network.image_size, self.config.distill.replay_both
        create = partial(
            Replay.create,
            self.config.distill.replay,
            self.num_samples,
            action_dim,
            frame_shape=(size, size, 3) if self.network.sees_frames or both else None,
            state_dim=state_dim if self.network.reads_state or both else None,
        )
        specs = sharding.replay_specs(jax.eval_shape(create))
        return jax.jit(create, out_shardings=sharding.shardings(self.mesh, specs))()

    def extend_replay(self, replay: Replay, rollout: Rollout) -> Replay:
        """Adds a labelled rollout, in place: the old `replay` must not be used afterwards."""
        return self._extend_replay(replay, rollout if self.config.distill.replay_both else self._seen(rollout))

    def rows_of(self, rollout: Rollout) -> int:
        """Rows that `extend_replay` adds to each device's ring."""
        num_steps, num_envs, _ = rollout.actions.shape
        return min(num_steps * num_envs, self.config.distill.replay) // self.mesh.size

    def fill_replay(self, replay: Replay, frames: jax.Array, states: jax.Array, labels: jax.Array) -> Replay:
        """Adds frames labelled elsewhere, in place, spread over the devices of this process.

        The rings fill at the same pace: where B does not divide by the D devices, up to D - 1 frames come twice.

        Args:
            replay: must not be used afterwards.
            frames: uint8 [B, H, W, 3] at the student's size, or None where the replay keeps none.
            states: float32 [B, D], or None where it keeps none.
            labels: float32 [B, S, A].
        """
        rows = Labelled(
            frames=None if replay.frames is None else frames,
            states=None if replay.states is None else states,
            labels=labels,
        ).newest(replay.capacity)
        if missing := -len(rows.labels) % self.mesh.size:
            rows = jax.tree.map(lambda array: jnp.concatenate([array, array[:missing]]), rows)
        return self._fill_replay(replay, jax.device_put(rows, NamedSharding(self.mesh, PartitionSpec(AXIS))))

    def update(
        self,
        state: LearnerState,
        rollout: Rollout,
        key: jax.Array,
        coefficients: Coefficients,
        replay: Replay | None = None,
        permutations: jax.Array | None = None,
        per_minibatch: bool = False,
    ) -> tuple[LearnerState, dict]:
        """Improves the student on a rollout, in one compiled program without a round trip to the host.

        All epochs and minibatches, until a minibatch's approximate KL exceeds `ppo.target_kl` (0: never): the update
        ends before stepping on it. A minibatch whose loss or gradient is not finite undoes it: the new state is then
        `state`, and `nonfinite_term` names what it was.

        Args:
            state: left as it is, so that it can still be saved should the update fail.
            rollout: T·N frames, as `spread` returns it. Where `ppo.num_minibatches` does not divide them, each epoch
                leaves out the last few of its random order (the published code makes a small minibatch of them: 16 of
                6400 at its settings).
            key: JAX random key, for the sample order, the replayed frames and the shifts.
            coefficients: as `schedules.coefficients` makes them; they may change without recompilation.
            replay: labelled frames for the replayed term, if `distill.replay` is on; those of `rollout` count as added,
                though `extend_replay` adds them only afterwards, when the update is known to be good.
            permutations: int32 [epochs, T·N], the order of the samples (index t·N + n) in each epoch; default: random.
                On a mesh of D devices, D such orders side by side, of the N/D environments that each device holds.
            per_minibatch: also return metrics["minibatches"], the terms of each minibatch [epochs·num_minibatches],
                NaN for those that the target KL skipped.

        Returns:
            the new state, and scalars: means of the loss terms over the minibatches looked at, `optimizer_steps`
            taken, `clip_fraction`, `explained_variance`, `advantage_std`, `target_kl_stop` (1 if it ended the update)
            and, for ppd, `teacher_std_floored`, the share of teacher standard deviations below `distill.std_floor`.

        Raises:
            TypeError: arrays of other shapes or types than Rollout and Replay say.
        """
        replay = replay if self.uses_replay else None
        if replay is not None:
            replay = replay.replace(
                frames=replay.frames if self.network.sees_frames else None,
                states=replay.states if self.network.reads_state else None,
            )
        return self._update(
            state, self._seen(rollout), key, coefficients, replay, permutations, per_minibatch=per_minibatch
        )

    def nonfinite_term(self, metrics: dict) -> str | None:
        """Name of the first term that was NaN or infinite in an update, or None.

        The state that the update returned is then the one that it was given.
        """
        code = int(metrics["nonfinite"])
        return FINITE_TERMS[code - 1] if code else None

    def nonfinite_input(self, rollout: Rollout) -> str | None:
        """Name of the first of the rollout's arrays that holds a NaN or an infinite number, or None."""
        code = int(self._first_nonfinite_input(rollout))
        return INPUT_TERMS[code - 1] if code else None

    def _seen(self, rollout):
        """The rollout without what neither the student nor the algorithm looks at."""
        return rollout.replace(
            rgb=rollout.rgb if self.network.sees_frames else None,
            state=rollout.state if self.network.reads_state else None,
            teacher_actions=rollout.teacher_actions if self.algorithm.distillation else None,
        )

    def _value_where(self, params, where, rgb, state):
        """V float32 [B] of the observations that `where`, bool [B], chooses, else 0; if it chooses none, at no cost."""
        value = partial(self.network.apply, params, rgb, state, method=ActorCritic.value)
        nothing = partial(jnp.zeros, where.shape, jnp.float32)
        return jax.lax.cond(where.any(), lambda: jnp.where(where, value(), 0.0), nothing)

    def _update_on_mesh(self, state, rollout, key, coefficients, replay, permutations, *, per_minibatch):
        check_arrays(rollout)
        if replay is not None:
            check_arrays(replay)
        specs = (REPLICATED, sharding.rollout_specs(rollout), REPLICATED, REPLICATED, sharding.replay_specs(replay))
        compute = jax.shard_map(
            partial(self._update_on_device, per_minibatch=per_minibatch),
            mesh=self.mesh,
            in_specs=(*specs, PartitionSpec(None, AXIS)),
            out_specs=REPLICATED,
            check_vma=False,  # metrics and gradients are made equal by hand
        )
        return compute(state, rollout, key, coefficients, replay, permutations)

    def _extend_replay_on_mesh(self, replay, rollout):
        check_arrays(rollout)
        check_arrays(replay)
        specs = sharding.replay_specs(replay)
        compute = jax.shard_map(
            self._extend_replay_on_device,
            mesh=self.mesh,
            in_specs=(specs, sharding.rollout_specs(rollout)),
            out_specs=specs,
            check_vma=False,
        )
        return compute(replay, rollout)

    def _fill_replay_on_mesh(self, replay, rows):
        specs = sharding.replay_specs(replay)
        fill = jax.shard_map(
            Replay.add, mesh=self.mesh, in_specs=(specs, PartitionSpec(AXIS)), out_specs=specs, check_vma=False
        )
        return fill(replay, rows)

    def _extend_replay_on_device(self, replay, rollout):
        fresh = Labelled(
            frames=None if rollout.rgb is None else minibatches.flat_frames(rollout.rgb, self.network.image_size),
            states=None if rollout.state is None else minibatches.flat(rollout.state),
            labels=minibatches.flat_labels(rollout.teacher_actions)[0],
        )
        return replay.add(fresh.newest(replay.capacity))

    def _update_on_device(self, state, rollout, key, coefficients, replay, permutations, *, per_minibatch):
        """Advantages, minibatches, and a step on the objective of each."""
        ppo = self.config.ppo
        advantages = gae(
            rollout.rewards,
            rollout.values,
            rollout.dones,
            rollout.next_value,
            rollout.next_done,
            rollout.final_values,
            ppo.gamma,
            ppo.gae_lambda,
            ppo.finite_horizon,
        )
        samples = minibatches.make_samples(rollout, advantages, self.network.image_size)
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
            fresh = partial(self._optimizer.init, state.params)
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
        if self.algorithm.reads_spread and samples.labels is not None:
            floored = jnp.std(samples.labels, axis=2) < self.config.distill.std_floor
            share = jnp.mean(floored.astype(jnp.float32))
            metrics["teacher_std_floored"] = sharding.mean_of_devices(share, self._axis)
        return metrics


@partial(jax.jit, static_argnums=0)  # networks that are equal share it
def _fresh_parameters(network: ActorCritic, key: jax.Array, rgb: jax.Array | None, state: jax.Array | None) -> dict:
    return network.init(key, rgb, state)


def _mean_where(looked_at, term):
    """The mean of the entries looked at, 0 if there are none; the others may be NaN."""
    return jnp.sum(jnp.where(looked_at, term, 0.0)) / jnp.maximum(jnp.sum(looked_at), 1)
