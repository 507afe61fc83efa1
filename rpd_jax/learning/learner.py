"""The learner: one compiled program turns a labelled rollout into a better student."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict, FrozenConfigDict

from rpd_jax.learning import replay_on_mesh, sharding
from rpd_jax.learning.algorithms import find_algorithm
from rpd_jax.learning.finite import FINITE_TERMS, INPUT_TERMS, first_nonfinite_input
from rpd_jax.learning.replay import Labelled, Replay
from rpd_jax.learning.rollout import Rollout
from rpd_jax.learning.schedules import Coefficients
from rpd_jax.learning.sharding import AXIS, REPLICATED
from rpd_jax.learning.update import LearnerState, Update
from rpd_jax.student.networks import ActorCritic


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
        self.algorithm = find_algorithm(config.algorithm)
        read = FrozenConfigDict({"algorithm": config.algorithm, "ppo": config.ppo, "distill": config.distill})
        self._compiled = _compiled(network, read, self.mesh)
        self.policy_step = self._compiled.policy_step
        self.mean_action = self._compiled.mean_action
        self.value = self._compiled.value
        self.value_where = self._compiled.value_where

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
        state = LearnerState(params, self._compiled.init_optimizer(params), np.int32(0), np.int32(0))
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
        rollout = rollout if self.config.distill.replay_both else self._seen(rollout)
        return replay_on_mesh.extend(replay, rollout, mesh=self.mesh, image_size=self.network.image_size)

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
        rows = jax.device_put(rows, NamedSharding(self.mesh, PartitionSpec(AXIS)))
        return replay_on_mesh.fill(replay, rows, mesh=self.mesh)

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
        return self._compiled.update(
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
        code = int(_first_nonfinite_input(rollout))
        return INPUT_TERMS[code - 1] if code else None

    def _seen(self, rollout):
        """The rollout without what neither the student nor the algorithm looks at."""
        return rollout.replace(
            rgb=rollout.rgb if self.network.sees_frames else None,
            state=rollout.state if self.network.reads_state else None,
            teacher_actions=rollout.teacher_actions if self.algorithm.distillation else None,
        )


class _Compiled:
    """Programs of a network, settings and a mesh."""

    def __init__(self, network: ActorCritic, settings: FrozenConfigDict, mesh: Mesh):
        update = Update(network, settings, mesh)
        self.update = jax.jit(update.on_mesh, static_argnames="per_minibatch")
        self.init_optimizer = jax.jit(update.optimizer.init)
        self.policy_step = jax.jit(partial(network.apply, method=ActorCritic.policy_step))
        self.mean_action = jax.jit(partial(network.apply, method=ActorCritic.mean_action))
        self.value = jax.jit(partial(network.apply, method=ActorCritic.value))
        self.value_where = jax.jit(partial(_value_where, network))


_compiled = lru_cache(_Compiled)  # learners that are equal share it
_first_nonfinite_input = jax.jit(first_nonfinite_input)


def _value_where(network, params, where, rgb, state):
    """V float32 [B] of the observations that `where`, bool [B], chooses, else 0; if it chooses none, at no cost."""
    value = partial(network.apply, params, rgb, state, method=ActorCritic.value)
    nothing = partial(jnp.zeros, where.shape, jnp.float32)
    return jax.lax.cond(where.any(), lambda: jnp.where(where, value(), 0.0), nothing)


@partial(jax.jit, static_argnums=0)  # networks that are equal share it
def _fresh_parameters(network: ActorCritic, key: jax.Array, rgb: jax.Array | None, state: jax.Array | None) -> dict:
    return network.init(key, rgb, state)
