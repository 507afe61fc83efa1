"""The student: an actor-critic over camera frames, privileged state or both."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from rpd_jax.student.convolution import conv_stack, resize_frames
from rpd_jax.student.gaussian import gaussian_log_prob
from rpd_jax.student.state_features import KINDS, StateFeatures
from rpd_jax.student.still import held

OBSERVATIONS = ("rgb", "rgb+state", "state")
# shared: on the actor's features | state: on the simulator's state, with layers of its own (Pinto et al. 2017).
CRITICS = ("shared", "state")
# Names of what no actor reads, in the parameters of either.
CRITIC_MODULES = ("critic", "critic_trunk")
PRECISIONS = ("float32", "bfloat16")  # of the convolutions; all else is float32
# Below, NatureCNN's third convolution has nothing left to look at.
SMALLEST_IMAGE = 36


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Three convolutions.

    Attributes:
        channels: of each of them.
        gain: kernels are so many times their parameters, at the start and in each of Adam's steps.
        centred: they see pixels in [-0.5, 0.5] instead of [0, 1].
    """

    channels: tuple[int, int, int]
    gain: float = 1.0
    centred: bool = False

    def effective(self, layers: Sequence[tuple[jax.Array, jax.Array]]) -> list[tuple[jax.Array, jax.Array]]:
        """Kernels and biases that do to frames in [0, 1] what those of the parameters are to do."""
        layers = [(self.gain * kernel, bias) for kernel, bias in layers]
        if self.centred:
            (kernel, bias), *others = layers
            layers = [(kernel, bias - 0.5 * kernel.sum((0, 1, 2))), *others]
        return layers


ENCODERS = {
    "nature": Encoder((32, 64, 64)),  # the paper's
    "small": Encoder((16, 32, 32)),  # learns as well from 128 px at 0.4x the work
    # Imitates as well after half as many updates: the gain is that of He et al. 2015 over PyTorch's initialisation.
    "small_scaled": Encoder((16, 32, 32), gain=math.sqrt(6.0), centred=True),
}


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

    encoder: Encoder
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        first, second, third = self.encoder.channels
        layers = [
            ConvParameters(8, frames.shape[-1], first, name="conv1")(),
            ConvParameters(4, first, second, name="conv2")(),
            ConvParameters(3, second, third, name="conv3")(),
        ]
        hidden = conv_stack(frames, self.encoder.effective(layers), strides=(4, 2, 1), dtype=self.dtype)
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


class Trunk(nn.Module):
    """Two dense layers of 256 with tanh, [B, C] -> [B, 256]."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        for layer in range(2):
            inputs = nn.tanh(FanInDense(256, name=f"dense{layer}")(inputs))
        return inputs


class StateError(nn.Module):
    """How far a linear guess from features [B, C] is off the simulator's state [B, D]: mean square over D, [B]."""

    @nn.compact
    def __call__(self, features: jax.Array, state: jax.Array) -> jax.Array:
        guess = nn.Dense(state.shape[-1], name="guess")(features)
        return jnp.mean(jnp.square(guess - state), axis=-1)


class ActorCritic(nn.Module):
    """Gaussian policy with a state-independent log-std, and a value function.

    Attributes:
        action_dim: A.
        observation: what it sees: "rgb", "rgb+state" or "state".
        encoder: of ENCODERS.
        image_size: frames are resized to this height and width.
        initial_log_std: log σ at the start.
        value_stop_gradient: keep the gradient of the value loss out of the encoder.
        critic: "shared", on the actor's features, or "state", on the simulator's state with layers of its own: then the
            actor's gradient and actions do not depend on the state beyond what `observation` says.
        state: "raw", as the simulator gives it, or "scaled", see StateFeatures.
        state_coef: weight in training of a guess of the state from what the actor sees, see `look`; 0: none.
        dtype: of the convolutions.
    """

    action_dim: int = 7
    observation: str = "rgb"
    encoder: str = "nature"
    image_size: int = 256
    initial_log_std: float = -0.5
    value_stop_gradient: bool = False
    critic: str = "shared"
    state: str = "raw"
    state_coef: float = 0.0
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
            critic=student.critic,
            state=student.state,
            state_coef=student.state_coef,
            dtype=jnp.dtype(student.precision),
        )

    @property
    def sees_frames(self) -> bool:
        """The actor sees them."""
        return "rgb" in self.observation

    @property
    def sees_state(self) -> bool:
        """The actor sees it."""
        return "state" in self.observation

    @property
    def reads_state(self) -> bool:
        """Training reads it: the actor or the critic sees it, or it is guessed."""
        return self.sees_state or self.critic == "state" or self.state_coef > 0

    def setup(self):
        for name, known in (
            ("observation", OBSERVATIONS),
            ("encoder", tuple(ENCODERS)),
            ("critic", CRITICS),
            ("state", KINDS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {known}")
        if self.reads_state and self.state == "scaled":
            self.state_features = StateFeatures()
        if "rgb" in self.observation:
            self.image_encoder = ConvEncoder(ENCODERS[self.encoder], self.dtype)
        if self.observation == "rgb+state":
            self.state_encoder = FanInDense(256)
        if self.observation == "state":
            self.trunk = [FanInDense(256), FanInDense(256)]
        self.actor = Head(self.action_dim, 0.01 * math.sqrt(2.0))
        self.value_head = Head(1, math.sqrt(2.0), name="critic")
        if self.critic == "state":
            self.critic_trunk = Trunk()
        if self.state_coef > 0:
            self.state_error = StateError()
        self.log_std = self.param("log_std", nn.initializers.constant(self.initial_log_std), (self.action_dim,))

    def __call__(self, rgb: jax.Array | None, state: jax.Array | None = None):
        """Looks at a batch of observations.

        Args:
            rgb: uint8 [B, H, W, 3], or None where the student sees the state only.
            state: float32 [B, D], or None where neither actor nor critic sees it.

        Returns:
            μ float32 [B, A], log σ float32 [A], V float32 [B].
        """
        return self.look(rgb, state)[:3]

    def look(self, rgb: jax.Array | None, state: jax.Array | None = None):
        """As `__call__`, and the squared error [B] of a guess of the state from the actor's features (None: no guess,
        or no state to compare it with).

        The guess trains the encoder to see where things are. It is of the normalised state where that is normalised.
        """
        features, seen = self._features(rgb, state)
        if self.critic == "state":
            critic_features = self.critic_trunk(seen)
        else:
            critic_features = jax.lax.stop_gradient(features) if self.value_stop_gradient else features
        error = None
        if self.state_coef > 0 and state is not None:
            error = self.state_error(features, jax.lax.stop_gradient(seen[:, : state.shape[-1]]))
        mean, log_std = held(self.actor(features), self.log_std)
        return mean, log_std, self.value_head(critic_features)[:, 0], error

    def _features(self, rgb, state):
        """What the actor's head sees, and the state as the networks see it."""
        if state is not None and self.reads_state and self.state == "scaled":
            state = self.state_features(state)
        if self.observation == "state":
            features = state
            for layer in self.trunk:
                features = nn.tanh(layer(features))
        else:
            features = self.image_encoder(resize_frames(rgb, self.image_size))
            if self.observation == "rgb+state":
                features = jnp.concatenate([features, nn.relu(self.state_encoder(state))], axis=-1)
        return features, state

    def policy_step(self, rgb: jax.Array | None, state: jax.Array | None, key: jax.Array):
        """Draws actions: [B, A] (not clipped: the environment clips), their log-probs [B] and values [B]."""
        mean, log_std, value = self(rgb, state)
        action = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)
        return action, gaussian_log_prob(action, mean, log_std), value

    def mean_action(self, rgb: jax.Array | None, state: jax.Array | None = None) -> jax.Array:
        """The deterministic policy: μ [B, A]; needs the state only where the actor sees it."""
        return self.actor(self._features(rgb, state)[0])

    def value(self, rgb: jax.Array | None, state: jax.Array | None = None) -> jax.Array:
        """The value function: V [B]."""
        return self(rgb, state)[2]
