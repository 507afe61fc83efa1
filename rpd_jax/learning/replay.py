"""A ring of old frames with the teacher's labels, kept on the device."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int32, UInt8


@struct.dataclass
class Labelled:
    """Frames with their labels.

    Attributes:
        frames: at the student's size, or None where it sees no frames.
        states: or None.
        labels: S actions of the teacher for each frame.
    """

    frames: UInt8[Array, "B H W 3"] | None
    states: Float[Array, "B D"] | None
    labels: Float[Array, "B S A"]

    def newest(self, num: int) -> "Labelled":
        """The last `num` of them."""
        return jax.tree.map(lambda rows: rows[-num:], self)


@struct.dataclass
class Replay:
    """The last `capacity` frames and their labels; a pytree of device arrays, so that checkpoints can hold it.

    A label belongs to an observation and not to a policy: it stays right when the student has moved on.

    Attributes:
        frames: at the student's size, or None where it sees no frames.
        states: or None.
        labels: S actions of the teacher for each frame.
        count: frames added so far; the newest one lies at (count − 1) mod capacity.
    """

    frames: UInt8[Array, "capacity H W 3"] | None
    states: Float[Array, "capacity D"] | None
    labels: Float[Array, "capacity S A"]
    count: Int32[Array, ""]

    @property
    def capacity(self) -> int:
        return self.labels.shape[0]

    @classmethod
    def create(
        cls,
        capacity: int,
        num_samples: int,
        action_dim: int,
        frame_shape: tuple[int, ...] | None = None,
        state_dim: int | None = None,
    ) -> "Replay":
        """An empty ring for frames of `frame_shape` (H, W, 3) and states of `state_dim` numbers."""
        return cls(
            frames=None if frame_shape is None else jnp.zeros((capacity, *frame_shape), jnp.uint8),
            states=None if state_dim is None else jnp.zeros((capacity, state_dim), jnp.float32),
            labels=jnp.zeros((capacity, num_samples, action_dim), jnp.float32),
            count=jnp.zeros((), jnp.int32),
        )

    def sample(self, key: jax.Array, num: int, fresh: Labelled | None = None) -> tuple[Labelled, jax.Array]:
        """Draws frames from what the ring will hold when `fresh` has been added, uniformly and with repetitions.

        Returns:
            `num` frames, zeros while there are none, and how many there are to draw from, int32.

        Raises:
            ValueError: more fresh frames than the ring holds.
        """
        num_fresh = 0 if fresh is None else self._number_of(fresh)
        filled = jnp.minimum(self.count + num_fresh, self.capacity)
        slots = jax.random.randint(key, (num,), 0, jnp.maximum(filled, 1))
        kept = jax.tree.map(lambda ring: ring[slots], Labelled(self.frames, self.states, self.labels))
        if fresh is None:
            return kept, filled
        places = (slots - self.count) % self.capacity  # among the fresh ones, where they reach so far

        def overwrite(kept_rows, fresh_rows):
            is_fresh = (places < num_fresh).reshape(-1, *[1] * (kept_rows.ndim - 1))
            return jnp.where(is_fresh, fresh_rows[jnp.minimum(places, num_fresh - 1)], kept_rows)

        return jax.tree.map(overwrite, kept, fresh), filled

    def add(self, fresh: Labelled) -> "Replay":
        """Writes frames over the oldest ones; in place where it runs in a jit that donates the ring.

        Raises:
            ValueError: more frames than the ring holds.
        """
        num = self._number_of(fresh)
        slots = (self.count + jnp.arange(num)) % self.capacity

        def write(ring, rows):
            return None if ring is None else ring.at[slots].set(rows, unique_indices=True)

        count = self.count + num
        return self.replace(
            frames=write(self.frames, fresh.frames),
            states=write(self.states, fresh.states),
            labels=write(self.labels, fresh.labels),
            # Kept below 2·capacity, so that a long run does not overflow it.
            count=jnp.where(count >= 2 * self.capacity, count - self.capacity, count),
        )

    def _number_of(self, fresh):
        num = len(fresh.labels)
        if num > self.capacity:
            raise ValueError(f"{num} frames do not fit into a replay of {self.capacity}")
        return num
