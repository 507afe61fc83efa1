"""Environments of JAX arrays: a point is to reach a goal. Episodes end at different times, and steps get lost."""

import jax
import jax.numpy as jnp
import numpy as np

from rpd_jax.envs.vector_env import EpisodeMetrics, Step

SIZE, STATE_DIM, LIMIT = 16, 8, 6
_REACHED = 0.5


class ReachingEnv:
    """N points that actions move; implements VectorEnv.

    States hold point, goal, and the steps and rewards of the episode. Frames show the point as a bright square.
    Environment n's episodes end after LIMIT - n % 3 steps or at the goal; every seventh step is lost in environment 1.

    Args:
        num_envs: N.
        on_host: give and take NumPy's arrays, as the CPU backend does; else JAX's, as the GPU backend does.
        sharding: where JAX's arrays lie; None: on the first device.
    """

    image_size, action_dim, state_dim, max_episode_steps = SIZE, 7, STATE_DIM, LIMIT

    def __init__(self, num_envs: int, on_host: bool, sharding: jax.sharding.Sharding | None = None):
        self.num_envs, self.drawing = num_envs, True
        self._on_host, self._sharding = on_host, sharding
        self.reset(0)

    @property
    def state(self):
        return self._given(self._state)

    def set_drawing(self, on):
        self.drawing = on
        return self._frames(self._state)

    def reset(self, seed):
        number, count = 1000 * (seed % 10_000) + 100 * np.arange(self.num_envs, dtype=np.int32), np.int32(0)
        self._number, self._count = jax.device_put((number, count), self._sharding)
        self._state = _begin(self._number)
        return self._frames(self._state)

    def step(self, actions):
        if self._on_host:
            actions = jax.device_put(np.asarray(actions))
        (self._state, self._number, self._count), final_state, *outcome = _step(
            self._state, self._number, self._count, actions
        )
        reward, terminated, truncated, episode, valid = map(self._given, outcome)
        return Step(
            rgb=self._frames(self._state),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_rgb=self._frames(final_state),
            state=self._given(self._state),
            final_state=self._given(final_state),
            episode=episode,
            valid=valid,
        )

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _frames(self, state):
        return self._given(_draw(state)) if self.drawing else None

    def _given(self, tree):
        return jax.tree.map(np.array, tree) if self._on_host else tree


def any_parameters(network, envs):
    """A student's parameters, of the right shapes; its own first ones take long to compile."""
    rng, rgb = np.random.default_rng(0), envs.set_drawing(True)
    shapes = jax.eval_shape(network.init, jax.random.key(0), rgb, envs.state)
    params = jax.tree.map(lambda leaf: rng.uniform(-0.1, 0.1, leaf.shape).astype(leaf.dtype), shapes)
    return params | {"statistics": jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes["statistics"])}


def _begin(number):
    """The states that episodes begin in, by their number."""
    places = jnp.sin((1.0 + number[:, None]) * jnp.arange(1.0, 7.0))
    return jnp.concatenate([places, jnp.zeros((len(number), 2))], axis=1)


@jax.jit
def _step(state, number, count, actions):
    actions = jnp.clip(actions, -1.0, 1.0)
    point, goal, steps, earned = state[:, :3] + 0.3 * actions[:, :3], state[:, 3:6], state[:, 6] + 1, state[:, 7]
    distance = jnp.sqrt(jnp.sum(jnp.square(point - goal), axis=1))
    index, count = jnp.arange(len(state)), count + 1
    valid = ~((index == 1) & (count % 7 == 0))
    reward = jnp.where(valid, 1.0 - distance, 0.0)
    terminated = valid & (distance < _REACHED)
    truncated = valid & (steps >= LIMIT - index % 3)
    final_state = jnp.concatenate([point, goal, steps[:, None], (earned + reward)[:, None]], axis=1)
    over = terminated | truncated | ~valid
    number = number + over
    success = terminated.astype(jnp.float32)
    episode = EpisodeMetrics(success, success, earned + reward, steps.astype(jnp.int32))
    state = jnp.where(over[:, None], _begin(number), final_state)
    return (state, number, count), final_state, reward, terminated, truncated, episode, valid


@jax.jit
def _draw(state):
    pixels = jnp.linspace(-1.5, 1.5, SIZE)
    near_x = jnp.abs(pixels[None, None, :, None] - state[:, None, None, 0:1]) < 0.3
    near_y = jnp.abs(pixels[None, :, None, None] - state[:, None, None, 1:2]) < 0.3
    colour = jnp.clip(128.0 + 60.0 * state[:, None, None, 3:6], 0, 255)
    return jnp.where(near_x & near_y, 255.0, colour).astype(jnp.uint8)
