"""A rollout's frames as samples, and the minibatches that the epochs of an update draw of them."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from rpd_jax.learning.replay import Labelled
from rpd_jax.learning.rollout import Rollout
from rpd_jax.student.convolution import resize_frames


@struct.dataclass
class Samples:
    """B frames and what is known of each; a rollout's T·N (index t·N + n), or a minibatch of them.

    Attributes:
        rgb: at the student's size, or None where it sees the state only.
        state: or None where it sees frames only.
        actions, logprobs, values: of the policy that drew the actions.
        advantages: not normalised.
        returns: what the value function should be.
        labels: S actions of the teacher in each of E sets; None without a teacher. A minibatch has one set.
    """

    rgb: UInt8[Array, "B H W 3"] | None
    state: Float[Array, "B D"] | None
    actions: Float[Array, "B A"]
    logprobs: Float[Array, " B"]
    values: Float[Array, " B"]
    advantages: Float[Array, " B"]
    returns: Float[Array, " B"]
    labels: Float[Array, "E B S A"] | None

    def minibatch(self, indices: Int[Array, " M"], epoch: Int[Array, ""]) -> "Samples":
        """The samples of these indices with the labels of an epoch."""
        chosen = jax.tree.map(lambda x: x[indices], self.replace(labels=None))
        if self.labels is None:
            return chosen
        return chosen.replace(labels=self.labels[epoch % self.labels.shape[0], indices][None])

    def labelled(self) -> Labelled:
        """The frames with their first set of labels."""
        return Labelled(self.rgb, self.state, self.labels[0])


def flat_frames(rgb: UInt8[Array, "T N H W 3"], image_size: int) -> UInt8[Array, "B {image_size} {image_size} 3"]:
    """All frames at the student's size."""
    if rgb.shape[2:4] != (image_size, image_size):
        # One step at a time, as a float copy of all would be large.
        rgb = jax.lax.map(lambda frames: resize_frames(frames, image_size), rgb)
    return flat(rgb)


def flat_labels(labels: Float[Array, "E S T N A"]) -> Float[Array, "E B S A"]:
    """Labels by frame."""
    sets, samples, *_, action_dim = labels.shape
    return labels.reshape(sets, samples, -1, action_dim).swapaxes(1, 2)


def flat(array: Array) -> Array:
    """[T, N, ...] -> [T·N, ...]."""
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def make_samples(rollout: Rollout, advantages: Float[Array, "T N"], image_size: int) -> Samples:
    """A rollout's frames, resized for a student of frames of `image_size` pixels."""
    advantages = advantages.astype(rollout.values.dtype)
    return Samples(
        rgb=None if rollout.rgb is None else flat_frames(rollout.rgb, image_size),
        state=None if rollout.state is None else flat(rollout.state),
        actions=flat(rollout.actions),
        logprobs=flat(rollout.logprobs),
        values=flat(rollout.values),
        advantages=flat(advantages),
        returns=flat(advantages + rollout.values),
        labels=None if rollout.teacher_actions is None else flat_labels(rollout.teacher_actions),
    )


def draw_minibatches(
    key: Key[Array, ""],
    num_frames: int,
    epochs: int,
    num_minibatches: int,
    valid: Bool[Array, " B"] | None,
    permutations: Int[Array, "epochs B"] | None,
) -> Int[Array, "steps M"]:
    """Indices of the samples of each minibatch, all epochs after each other.

    Args:
        key: of the random orders.
        num_frames: B. What `num_minibatches` does not divide of them is left over at the end of each order.
        epochs: each has an order of its own.
        num_minibatches: in each epoch.
        valid: samples that may be learnt from; the others make room for random ones that may. None: all.
        permutations: the order of each epoch, instead of random ones.
    """
    if permutations is None:
        epoch_keys = jax.random.split(key, epochs)
        permutations = jax.vmap(lambda key: jax.random.permutation(key, num_frames))(epoch_keys)
    size = num_frames // num_minibatches
    indices = permutations[:, : size * num_minibatches].reshape(epochs * num_minibatches, size)
    if valid is None:
        return indices
    substitute_key = jax.random.fold_in(key, epochs)
    substitutes = jax.random.choice(substitute_key, num_frames, indices.shape, p=valid / jnp.sum(valid))
    return jnp.where(valid[indices], indices, substitutes)
