"""The student: an actor-critic over camera frames, privileged state or both."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from rpd_jax.student.convolution import conv_stack, resize_frames
from rpd_jax.student.gaussian import gaussian_log_prob

OBSERVATIONS = ("rgb", "rgb+state", "state")
# Channels of the three convolutions: the paper's, and half of them, which learns as well from 128 px at 0.4x the work.
ENCODERS = {"nature": (32, 64, 64), "small": (16, 32, 32)}
PRECISIONS = ("float32", "bfloat16")  # of the convolutions; all else is float32
# Below, NatureCNN's third convolution has nothing left to look at.
SMALLEST_IMAGE = 36


def fan_in_uniform(fan_in: int):
    """PyTorch's default initialisation of convolutions and dense layers: uniform in ±1/√fan_in."""
    bound = 1.0 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class ConvParameters(nn.Module):
    """A convolution's kernel [size, size, channels, features] and bias [features]; PyTorch's default initialisation."""

    size: int
    channels: int
    features: int

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        init = fan_in_uniform(self.channels * self.size**2)
        kernel = self.param("kernel", init, (self.size, self.size, self.channels, self.features))
        return kernel, self.param("bias", init, (self.features,))


class FanInDense(nn.Module):
    """Dense layer with PyTorch's default initialisation, [..., C] -> [..., features]."""

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        init = fan_in_uniform(inputs.shape[-1])
        kernel = self.param("kernel", init, (inputs.shape[-1], self.features))
        return inputs @ kernel + self.param("bias", init, (self.features,))


class ConvEncoder(nn.Module):
    """Convolutions of the DQN paper (Mnih et al. 2015): frames uint8 [B, H, W, 3] -> features [B, 256]."""

    channels: tuple[int, int, int]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        first, second, third = self.channels
        layers = [
            ConvParameters(8, frames.shape[-1], first, name="conv1")(),
            ConvParameters(4, first, second, name="conv2")(),
            ConvParameters(3, second, third, name="conv3")(),
        ]
        hidden = conv_stack(frames, layers, strides=(4, 2, 1), dtype=self.dtype)
        hidden = hidden.reshape(hidden.shape[0], -1).astype(jnp.float32)
        return nn.relu(FanInDense(256, name="dense")(hidden))


class Head(nn.Module):
    """Dense 512, ReLU, dense `features`; orthogonal initialisation, zero bias: [B, C] -> [B, features]."""

    features: int
    output_scale: float

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(512, kernel_init=nn.initializers.orthogonal(math.sqrt(2.0)), name="hidden")(inputs))
        init = nn.initializers.orthogonal(self.output_scale)
        return nn.Dense(self.features, kernel_init=init, name="output")(hidden)


class ActorCritic(nn.Module):
    """Gaussian policy with a state-independent log-std, and a value function, on one encoder.

    Attributes:
        action_dim: A.
        observation: what it sees: "rgb", "rgb+state" or "state".
        encoder: "nature" or "small".
        image_size: frames are resized to this height and width.
        initial_log_std: log σ at the start.
        value_stop_gradient: keep the gradient of the value loss out of the encoder.
        dtype: of the convolutions.
    """

    action_dim: int = 7
    observation: str = "rgb"
    encoder: str = "nature"
    image_size: int = 256
    initial_log_std: float = -0.5
    value_stop_gradient: bool = False
    dtype: jnp.dtype = jnp.float32

    @classmethod
    def from_config(cls, student: ConfigDict, action_dim: int = 7) -> "ActorCritic":
        """The student that a resolved config's `student` describes, for actions of `action_dim` dimensions."""
        return cls(
            action_dim=action_dim,
            observation=student.observation,
            encoder=student.encoder,
            image_size=student.image_size,
            initial_log_std=student.initial_log_std,
            value_stop_gradient=student.value_stop_gradient,
            dtype=jnp.dtype(student.precision),
        )

    @property
    def sees_frames(self) -> bool:
        return "rgb" in self.observation

    @property
    def sees_state(self) -> bool:
        return "state" in self.observation

    def setup(self):
        if self.observation not in OBSERVATIONS:
            raise ValueError(f"observation={self.observation!r} is not one of {OBSERVATIONS}")
        if self.encoder not in ENCODERS:
            raise ValueError(f"encoder={self.encoder!r} is not one of {ENCODERS}")
        if "rgb" in self.observation:
            self.image_encoder = ConvEncoder(ENCODERS[self.encoder], self.dtype)
        if self.observation == "rgb+state":
            self.state_encoder = FanInDense(256)
        if self.observation == "state":
            self.trunk = [FanInDense(256), FanInDense(256)]
        self.actor = Head(self.action_dim, 0.01 * math.sqrt(2.0))
        self.critic = Head(1, math.sqrt(2.0))
        self.log_std = self.param("log_std", nn.initializers.constant(self.initial_log_std), (self.action_dim,))

    def __call__(self, rgb: jax.Array | None, state: jax.Array | None = None):
        """Looks at a batch of observations.

        Args:
            rgb: uint8 [B, H, W, 3], or None where the student sees the state only.
            state: float32 [B, D], or None where it sees frames only.

        Returns:
            μ float32 [B, A], log σ float32 [A], V float32 [B].
        """
        if self.observation == "state":
            features = state
            for layer in self.trunk:
                features = nn.tanh(layer(features))
        else:
            features = self.image_encoder(resize_frames(rgb, self.image_size))
            if self.observation == "rgb+state":
                features = jnp.concatenate([features, nn.relu(self.state_encoder(state))], axis=-1)
        critic_features = jax.lax.stop_gradient(features) if self.value_stop_gradient else features
        return self.actor(features), self.log_std, self.critic(critic_features)[:, 0]

    def policy_step(self, rgb: jax.Array | None, state: jax.Array | None, key: jax.Array):
        """Draws actions: [B, A] (not clipped: the environment clips), their log-probs [B] and values [B]."""
        mean, log_std, value = self(rgb, state)
        action = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)
        return action, gaussian_log_prob(action, mean, log_std), value

    def mean_action(self, rgb: jax.Array | None, state: jax.Array | None = None) -> jax.Array:
        """The deterministic policy: μ [B, A]."""
        return self(rgb, state)[0]

    def value(self, rgb: jax.Array | None, state: jax.Array | None = None) -> jax.Array:
        """The value function: V [B]."""
        return self(rgb, state)[2]
