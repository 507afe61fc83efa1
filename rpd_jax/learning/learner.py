"""The learner: one compiled program turns a labelled rollout into a better student."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from rpd_jax.learning import losses, sharding
from rpd_jax.learning.advantages import gae
from rpd_jax.learning.augmentation import random_shift
from rpd_jax.learning.replay import Labelled, Replay
from rpd_jax.learning.sharding import AXIS, REPLICATED
from rpd_jax.student.convolution import resize_frames
from rpd_jax.student.gaussian import gaussian_entropy, gaussian_log_prob
from rpd_jax.student.networks import ActorCritic

INPUT_TERMS = ("actions", "logprobs", "values", "rewards", "final_values", "teacher_actions")
LOSS_TERMS = ("pg_loss", "v_loss", "entropy", "distill_loss", "replay_loss", "approx_kl", "grad_norm")


@struct.dataclass
class Rollout:
    """What T steps of N environments gave, labels included.

    Attributes:
        rgb: uint8 [T, N, H, W, 3] camera frames, or None where the student sees the state only.
        state: float32 [T, N, D], or None where it sees frames only.
        actions: float32 [T, N, A] as drawn by the policy, before the environment clips them.
        logprobs: float32 [T, N] log density of the actions under the policy that drew them.
        values: float32 [T, N] value of each observation.
        rewards: float32 [T, N].
        dones: bool or float32 [T, N]; dones[t]: an episode ended before step t.
        next_done: bool or float32 [N], the same flag for the observation after the last step.
        next_value: float32 [N], value of the observation after the last step.
        final_values: float32 [T, N], value of the last observation of an episode that ended at step t, else 0.
        valid: bool [T, N], False where the step was lost (see Step.valid), so that its sample is not to be learnt from;
            or None: all are valid.
        teacher_actions: float32 [S, T, N, A], S labels of each observation; or [epochs, S, T, N, A], other ones in
            each update epoch; or None.
    """

    rgb: jax.Array | None
    state: jax.Array | None
    actions: jax.Array
    logprobs: jax.Array
    values: jax.Array
    rewards: jax.Array
    dones: jax.Array
    next_done: jax.Array
    next_value: jax.Array
    final_values: jax.Array
    teacher_actions: jax.Array | None = None
    valid: jax.Array | None = None


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
        distillation: name of the distillation loss, or None for plain PPO.
        mesh: the devices that share the work, or None: one device.
    """

    def __init__(self, network: ActorCritic, config: ConfigDict, mesh: Mesh | None = None):
        """Builds the learner.

        On a mesh, parameters are the same on all devices, and each device learns from the frames of its environments:
        a minibatch is the union of one part from each device, and the loss terms, their gradients and the
        normalisation of the advantages are those of the union.
        """
        self.network = network
        self.config = config
        self.mesh = mesh
        self.distillation = losses.ALGORITHMS[config.algorithm][0]
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(config.ppo.max_grad_norm), optax.scale_by_adam(eps=config.ppo.adam_eps)
        )
        compute_update = self._compute_update if mesh is None else self._compute_update_on_mesh
        extend_replay = self._compute_extended_replay if mesh is None else self._compute_extended_replay_on_mesh
        self._update = jax.jit(compute_update, static_argnames="per_minibatch")
        self._extend_replay = jax.jit(extend_replay, donate_argnums=0)
        self._first_nonfinite_input = jax.jit(_first_nonfinite_input)
        self._init = jax.jit(network.init)
        self.policy_step = jax.jit(partial(network.apply, method=ActorCritic.policy_step))
        self.mean_action = jax.jit(partial(network.apply, method=ActorCritic.mean_action))
        self.value = jax.jit(partial(network.apply, method=ActorCritic.value))

    @property
    def num_samples(self) -> int:
        """Teacher samples that the algorithm takes for each frame."""
        return (
            self.config.distill.num_samples
            if self.distillation == "ppd"
            else losses.ALGORITHMS[self.config.algorithm][1]
        )

    @property
    def label_sets(self) -> int:
        """Independent labels of each frame: one for each update epoch, or one for all."""
        return self.config.ppo.update_epochs if self.config.teacher.refresh == "epoch" else 1

    @property
    def uses_replay(self) -> bool:
        return self.distillation is not None and self.config.distill.replay > 0

    def init(self, key: jax.Array, rgb: jax.Array | None, state: jax.Array | None = None) -> LearnerState:
        """A fresh student for observations like `rgb` uint8 [B, H, W, 3] and `state` float32 [B, D]."""
        return self.init_from(self._init(key, rgb, state))

    def init_from(self, params: dict) -> LearnerState:
        """A learner's state that starts from given parameters."""
        state = LearnerState(params, self._optimizer.init(params), *jnp.zeros((2,), jnp.int32))
        return state if self.mesh is None else jax.device_put(state, sharding.shardings(self.mesh, REPLICATED))

    def local_params(self, state: LearnerState) -> dict:
        """The student's parameters on this process's first device, to act with."""
        if self.mesh is None:
            return state.params
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), state.params)

    def spread(self, rollout: Rollout) -> Rollout:
        """The rollout of all processes and devices together, of which `rollout` is this process's part."""
        if self.mesh is None:
            return rollout
        return sharding.spread(self.mesh, rollout, sharding.rollout_specs(rollout))

    def create_replay(self, action_dim: int, state_dim: int) -> Replay | None:
        """An empty replay of `distill.replay` frames, or None where it is off."""
        if not self.uses_replay:
            return None
        size = self.network.image_size
        create = partial(
            Replay.create,
            self.config.distill.replay,
            self.num_samples,
            action_dim,
            frame_shape=(size, size, 3) if self.network.sees_frames else None,
            state_dim=state_dim if self.network.sees_state else None,
        )
        if self.mesh is None:
            return create()
        specs = sharding.replay_specs(jax.eval_shape(create))
        return jax.jit(create, out_shardings=sharding.shardings(self.mesh, specs))()

    def extend_replay(self, replay: Replay | None, rollout: Rollout) -> Replay | None:
        """Adds a labelled rollout, in place: the old `replay` must not be used afterwards; None where it is off."""
        return None if replay is None else self._extend_replay(replay, rollout)

    def update(
        self,
        state: LearnerState,
        rollout: Rollout,
        key: jax.Array,
        replay: Replay | None = None,
        distill_coef: float | None = None,
        replay_coef: float | None = None,
        learning_rate: float | None = None,
        permutations: jax.Array | None = None,
        per_minibatch: bool = False,
    ) -> tuple[LearnerState, dict]:
        """Improves the student on a rollout, in one compiled program without a round trip to the host.

        All epochs and minibatches, until a minibatch's approximate KL exceeds `ppo.target_kl` (0: never): the update
        ends before stepping on it. A minibatch whose loss or gradient is not finite undoes it: the new state is then
        `state`, and `nonfinite_term` names what it was.

        Args:
            state: left as it is, so that it can still be saved should the update fail.
            rollout: T·N frames; on a mesh, as `spread` returns it. Where `ppo.num_minibatches` does not divide them,
                each epoch leaves out the last few of its random order (the published code makes a small minibatch of
                them: 16 of 6400 at its settings).
            key: JAX random key, for the sample order, the replayed frames and the shifts.
            replay: labelled frames for the replayed term, if `distill.replay` is on; those of `rollout` count as added,
                though `extend_replay` adds them only afterwards, when the update is known to be good.
            distill_coef: λ, the weight of the distillation term; default `distill.coef`.
            replay_coef: weight of the distillation term on replayed frames; default `distill.replay_coef`.
            learning_rate: default `ppo.learning_rate`. The three may change from call to call without recompilation.
            permutations: int32 [epochs, T·N], the order of the samples (index t·N + n) in each epoch; default: random.
                On a mesh of D devices, D such orders side by side, of the N/D environments that each device holds.
            per_minibatch: also return metrics["minibatches"], the terms of each minibatch [epochs·num_minibatches],
                NaN for those that the target KL skipped.

        Returns:
            the new state, and scalars: means of the loss terms over the minibatches looked at, `optimizer_steps`
            taken, `clip_fraction`, `explained_variance`, `advantage_std`, `target_kl_stop` (1 if it ended the update)
            and, for ppd, `teacher_std_floored`, the share of teacher standard deviations below `distill.std_floor`.
        """
        config = self.config
        coefs = (
            config.distill.coef if distill_coef is None else distill_coef,
            config.distill.replay_coef if replay_coef is None else replay_coef,
            config.ppo.learning_rate if learning_rate is None else learning_rate,
        )
        coefs = tuple(jnp.asarray(coef, jnp.float32) for coef in coefs)
        if not self.uses_replay:
            replay = None
        seen = rollout.replace(
            rgb=rollout.rgb if self.network.sees_frames else None,
            state=rollout.state if self.network.sees_state else None,
        )
        return self._update(state, seen, key, replay, *coefs, permutations, per_minibatch=per_minibatch)

    def nonfinite_term(self, metrics: dict) -> str | None:
        """Name of the first term that was NaN or infinite in an update, or None.

        The state that the update returned is then the one that it was given.
        """
        code = int(metrics["nonfinite"])
        return (INPUT_TERMS + LOSS_TERMS)[code - 1] if code else None

    def nonfinite_input(self, rollout: Rollout) -> str | None:
        """Name of the first of the rollout's arrays that holds a NaN or an infinite number, or None."""
        code = int(self._first_nonfinite_input(rollout))
        return INPUT_TERMS[code - 1] if code else None

    def _compute_update_on_mesh(self, state, rollout, key, replay, *arguments, per_minibatch):
        *coefs, permutations = arguments
        specs = (REPLICATED, sharding.rollout_specs(rollout), REPLICATED, sharding.replay_specs(replay))
        specs += (REPLICATED,) * len(coefs) + (PartitionSpec(None, AXIS),)
        compute = jax.shard_map(
            partial(self._compute_update, per_minibatch=per_minibatch),
            mesh=self.mesh,
            in_specs=specs,
            out_specs=REPLICATED,
            check_vma=False,  # metrics and gradients are made equal by hand
        )
        return compute(state, rollout, key, replay, *coefs, permutations)

    def _compute_extended_replay_on_mesh(self, replay, rollout):
        specs = sharding.replay_specs(replay)
        compute = jax.shard_map(
            self._compute_extended_replay,
            mesh=self.mesh,
            in_specs=(specs, sharding.rollout_specs(rollout)),
            out_specs=specs,
            check_vma=False,
        )
        return compute(replay, rollout)

    def _mean_of_devices(self, tree):
        return tree if self.mesh is None else jax.lax.pmean(tree, AXIS)

    def _of_all_devices(self, array):
        """The parts [B/D, ...] that the devices hold of an array [B, ...], put together."""
        return array if self.mesh is None or array is None else jax.lax.all_gather(array, AXIS, tiled=True)

    def _compute_update(
        self,
        state,
        rollout,
        key,
        replay,
        distill_coef,
        replay_coef,
        learning_rate,
        permutations,
        *,
        per_minibatch,
    ):
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
        num_frames = advantages.size
        samples = {
            "rgb": None if rollout.rgb is None else self._student_frames(rollout.rgb),
            "state": rollout.state,
            "actions": rollout.actions,
            "logprobs": rollout.logprobs,
            "values": rollout.values,
            "advantages": advantages,
            "returns": advantages + rollout.values,
        }
        samples = jax.tree.map(lambda x: x.reshape(num_frames, *x.shape[2:]), samples)
        label_sets = None
        if self.distillation is not None and rollout.teacher_actions is not None:
            labels = rollout.teacher_actions
            if labels.ndim == 4:
                labels = labels[None]
            # [epochs or 1, T·N, S, A]
            label_sets = labels.reshape(*labels.shape[:2], num_frames, -1).swapaxes(1, 2)

        fresh = None
        if replay is not None and label_sets is not None:
            fresh = Labelled(samples["rgb"], samples["state"], label_sets[0])
            fresh = jax.tree.map(lambda rows: rows[-replay.capacity :], fresh)

        if self.mesh is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        order_key, step_key = jax.random.split(key)
        if permutations is None:
            epoch_keys = jax.random.split(order_key, ppo.update_epochs)
            permutations = jax.vmap(lambda key: jax.random.permutation(key, num_frames))(epoch_keys)
        num_steps = ppo.update_epochs * ppo.num_minibatches
        size = num_frames // ppo.num_minibatches
        indices = permutations[:, : size * ppo.num_minibatches].reshape(num_steps, size)
        valid = None if rollout.valid is None else rollout.valid.reshape(num_frames)
        if valid is not None:
            indices = _without_lost_samples(indices, valid, jax.random.fold_in(order_key, ppo.update_epochs))

        def loss_fn(params, batch, replayed):
            return self._loss(params, batch, replayed, distill_coef, replay_coef)

        def run_minibatch(params, opt_state, indices, epoch, key):
            replay_key, shift_key, replay_shift_key = jax.random.split(key, 3)
            batch = jax.tree.map(lambda x: x[indices], samples)
            if label_sets is not None:
                batch["labels"] = label_sets[epoch % label_sets.shape[0], indices]
            replayed = None
            if replay is not None:
                drawn, filled = replay.sample(replay_key, self.config.distill.replay_batch, fresh)
                # Nothing to learn from an empty ring.
                weight = (filled > 0).astype(jnp.float32)
                replayed = {"rgb": drawn.frames, "state": drawn.states, "labels": drawn.labels, "weight": weight}
                if replay.frames is not None:
                    replayed["rgb"] = random_shift(replay_shift_key, replayed["rgb"], self.config.distill.augment)
            if self.config.distill.augment_ppo and batch["rgb"] is not None:
                batch["rgb"] = random_shift(shift_key, batch["rgb"], self.config.distill.augment)
            (_, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, replayed)
            terms, grads = self._mean_of_devices((terms, grads))
            terms["grad_norm"] = optax.global_norm(grads)
            nonfinite = _first_nonfinite([terms[name] for name in LOSS_TERMS], len(INPUT_TERMS))
            exceeded = terms["approx_kl"] > ppo.target_kl if ppo.target_kl else jnp.zeros((), bool)

            def step():
                updates, new_opt_state = self._optimizer.update(grads, opt_state, params)
                return jax.tree.map(lambda p, u: p - learning_rate * u, params, updates), new_opt_state

            stop = exceeded | (nonfinite > 0)
            params, opt_state = jax.lax.cond(stop, lambda: (params, opt_state), step)
            return params, opt_state, stop, nonfinite, terms

        def skip_minibatch(params, opt_state, indices, epoch, key):
            skipped = {name: jnp.full((), jnp.nan) for name in ("loss", *LOSS_TERMS, "clip_fraction")}
            return params, opt_state, jnp.ones((), bool), jnp.zeros((), jnp.int32), skipped

        def minibatch_step(carry, inputs):
            params, opt_state, stopped, nonfinite = carry
            params, opt_state, stop, new_nonfinite, terms = jax.lax.cond(
                stopped, skip_minibatch, run_minibatch, params, opt_state, *inputs
            )
            looked_at, stepped = ~stopped, ~stop
            carry = params, opt_state, stop, jnp.maximum(nonfinite, new_nonfinite)
            return carry, (terms, looked_at, stepped)

        nonfinite = _first_nonfinite_input(rollout)
        if self.mesh is not None:
            nonfinite = jax.lax.pmax(nonfinite, AXIS)
        carry = state.params, state.opt_state, nonfinite > 0, nonfinite
        epochs = jnp.arange(num_steps) // ppo.num_minibatches
        carry, (terms, looked_at, stepped) = jax.lax.scan(
            minibatch_step, carry, (indices, epochs, jax.random.split(step_key, num_steps))
        )
        params, opt_state, stopped, nonfinite = carry
        num_looked_at = jnp.maximum(jnp.sum(looked_at), 1)
        metrics = {name: jnp.sum(jnp.where(looked_at, term, 0.0)) / num_looked_at for name, term in terms.items()}
        returns, values, advantages, valid = map(
            self._of_all_devices, (samples["returns"], samples["values"], samples["advantages"], valid)
        )
        metrics |= {
            "optimizer_steps": jnp.sum(stepped),
            "explained_variance": 1.0
            - jnp.var(returns - values, where=valid) / jnp.maximum(jnp.var(returns, where=valid), 1e-12),
            "advantage_std": jnp.std(advantages, where=valid),
            "target_kl_stop": (stopped & (nonfinite == 0)).astype(jnp.float32),
            "nonfinite": nonfinite,
        }
        if self.distillation == "ppd" and label_sets is not None:
            floored = jnp.std(label_sets, axis=2) < self.config.distill.std_floor
            metrics["teacher_std_floored"] = self._mean_of_devices(jnp.mean(floored.astype(jnp.float32)))
        if per_minibatch:
            metrics["minibatches"] = terms
        new_state = LearnerState(
            params=params,
            opt_state=opt_state,
            updates=state.updates + 1,
            optimizer_steps=state.optimizer_steps + metrics["optimizer_steps"],
        )
        undone = nonfinite > 0
        new_state = jax.tree.map(lambda old, new: jnp.where(undone, old, new), state, new_state)
        return new_state, metrics

    def _compute_extended_replay(self, replay, rollout):
        num_frames = rollout.rewards.size
        frames = None if replay.frames is None else self._student_frames(rollout.rgb)
        rows = {"frames": frames, "states": None if replay.states is None else rollout.state}
        rows = jax.tree.map(lambda x: x.reshape(num_frames, *x.shape[2:])[-replay.capacity :], rows)
        labels = rollout.teacher_actions
        labels = labels if labels.ndim == 4 else labels[0]
        labels = labels.reshape(labels.shape[0], num_frames, -1)[:, -replay.capacity :]
        return replay.add(rows["frames"], rows["states"], labels)

    def _student_frames(self, rgb):
        """Frames [T, N, H, W, 3] at the student's size; one step at a time, as a float copy of all would be large."""
        if rgb.shape[2] == rgb.shape[3] == self.network.image_size:
            return rgb
        return jax.lax.map(lambda frames: resize_frames(frames, self.network.image_size), rgb)

    def _loss(self, params, batch, replayed, distill_coef, replay_coef):
        ppo = self.config.ppo
        size = batch["actions"].shape[0]
        rgb, state = batch["rgb"], batch["state"]
        if replayed is not None:
            # One pass through the network for both kinds of frames.
            rgb = None if rgb is None else jnp.concatenate([rgb, replayed["rgb"]])
            state = None if state is None else jnp.concatenate([state, replayed["state"]])
        means, log_std, values = self.network.apply(params, rgb, state)
        mean, value = means[:size], values[:size]

        log_ratio = gaussian_log_prob(batch["actions"], mean, log_std) - batch["logprobs"]
        advantages = batch["advantages"]
        if ppo.normalize_advantages:
            axis_name = None if self.mesh is None else AXIS
            advantages = losses.normalize_advantages(advantages, ppo.advantage_std_floor, axis_name)
        pg_loss = losses.clipped_surrogate(log_ratio, advantages, ppo.clip)
        if ppo.clip_value_loss:
            v_loss = losses.clipped_value_loss(value, batch["values"], batch["returns"], ppo.clip)
        else:
            v_loss = losses.value_loss(value, batch["returns"])
        entropy = gaussian_entropy(log_std)
        loss = pg_loss - ppo.entropy_coef * entropy + ppo.value_coef * v_loss

        distill_loss = replay_loss = jnp.zeros(())
        if "labels" in batch:
            distill_loss = self._distillation_loss(mean, log_std, log_ratio, batch["labels"])
            loss = loss + distill_coef * distill_loss
        if replayed is not None:
            replay_mean = means[size:]
            # The policy that met these frames is gone: PPD's ratio is taken as one.
            no_ratio = jnp.zeros(replay_mean.shape[0])
            replay_loss = self._distillation_loss(replay_mean, log_std, no_ratio, replayed["labels"])
            replay_loss = replayed["weight"] * replay_loss
            loss = loss + replay_coef * replay_loss
        return loss, {
            "loss": loss,
            "pg_loss": pg_loss,
            "v_loss": v_loss,
            "entropy": entropy,
            "distill_loss": distill_loss,
            "replay_loss": replay_loss,
            "approx_kl": losses.approx_kl(jax.lax.stop_gradient(log_ratio)),
            "clip_fraction": losses.clip_fraction(jax.lax.stop_gradient(log_ratio), ppo.clip),
        }

    def _distillation_loss(self, mean, log_std, log_ratio, labels):
        """The algorithm's distillation term for labels [B, S, A]."""
        samples = labels.swapaxes(0, 1)
        floor = self.config.distill.std_floor
        return losses.distillation_loss(
            self.distillation, mean, log_std, log_ratio, samples, self.config.ppo.clip, floor
        )


def _without_lost_samples(indices, valid, key):
    """Indices in which each that is not `valid` has made room for a random one that is."""
    substitutes = jax.random.choice(key, valid.size, indices.shape, p=valid / jnp.sum(valid))
    return jnp.where(valid[indices], indices, substitutes)


def _first_nonfinite_input(rollout):
    return _first_nonfinite([getattr(rollout, name) for name in INPUT_TERMS], 0)


def _first_nonfinite(terms, offset):
    """int32: 1 + offset + index of the first term that is not finite everywhere, 0 if all are (None: finite)."""
    code = jnp.zeros((), jnp.int32)
    for index, term in reversed(list(enumerate(terms))):
        if term is not None:
            code = jnp.where(jnp.all(jnp.isfinite(term)), code, offset + index + 1)
    return code
