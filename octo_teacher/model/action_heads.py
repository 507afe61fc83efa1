"""Action heads: readout tokens to chunks of actions, and the losses that train them."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from octo_teacher.model.diffusion import ScoreActor, noise_schedule, noised
from octo_teacher.model.token_groups import TokenGroup
from octo_teacher.model.tokenizers import bin_thresholds, to_bins
from octo_teacher.model.transformer import MAPHead
from rpd_jax.errors import UserError

Outputs = Mapping[str, TokenGroup]
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class SamplingNoise:
    """The random numbers of one diffusion sampling, for repeating a run exactly.

    Attributes:
        initial: float32 [*S, B, W, horizon * action_dim].
        steps: float32 [diffusion_steps, *S, B, W, horizon * action_dim], in order of use: t = diffusion_steps - 1 .. 0.
    """

    initial: jax.Array
    steps: jax.Array


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """mean(x * mask) / max(mean(mask), 1e-5) over all entries."""
    mask = jnp.broadcast_to(mask, x.shape).astype(x.dtype)
    return jnp.mean(x * mask) / jnp.maximum(jnp.mean(mask), 1e-5)


def continuous_loss(
    prediction: jax.Array, target: jax.Array, mask: jax.Array, loss_type: str, action_dim: int
) -> tuple[jax.Array, Metrics]:
    """Masked mean of |error| ("l1") or error^2 ("mse"), times action_dim; metrics: loss, mse."""
    error = prediction - target
    mse = masked_mean(jnp.square(error), mask) * action_dim
    loss = mse if loss_type == "mse" else masked_mean(jnp.abs(error), mask) * action_dim
    return loss, {"loss": loss, "mse": mse}


def _check_loss_type(loss_type: str) -> None:
    if loss_type not in ("mse", "l1"):
        raise UserError(f"loss_type={loss_type!r} of an action head is not implemented: known are mse, l1.")


class TokenReader(nn.Module):
    """What all heads share: the tokens of one group.

    Fields of heads are in the order of the original's, in which a config.json may give them without names.

    Attributes:
        readout_key: the group: a readout, observations or tasks, see `octo_module.group_names`.
    """

    readout_key: str

    def tokens(self, outputs: Outputs) -> TokenGroup:
        """Returns the group that the head reads, tokens [B, W, n, d]; those of a task are the same at every timestep.

        Raises:
            UserError: the inputs lack what the group is made of.
        """
        if self.readout_key not in outputs:
            raise UserError(
                f"The action head reads the tokens {self.readout_key!r}, and the inputs have nothing that they are "
                f"made of: there are {', '.join(outputs)}."
            )
        group = outputs[self.readout_key]
        if group.tokens.ndim == 4:
            return group
        timestep_groups = (other.tokens for other in outputs.values() if other.tokens.ndim == 4)
        batch, window = next((tokens.shape[:2] for tokens in timestep_groups), (group.tokens.shape[0], 1))
        shape = (batch, window, *group.tokens.shape[1:])
        return TokenGroup(
            jnp.broadcast_to(group.tokens[:, None], shape), jnp.broadcast_to(group.mask[:, None], shape[:-1])
        )


class ActionHead(TokenReader):
    """Pools the tokens into one embedding per timestep.

    Attributes:
        use_map: attention pooling instead of the mean.
        action_horizon, action_dim: (of every head) shape of an action chunk.
    """

    use_map: bool = False

    def embed(self, outputs: Outputs, *, train: bool) -> jax.Array:
        """Returns float32 [B, W, d]: the mean over all tokens, or attention pooling of the visible ones."""
        group = self.tokens(outputs)
        if self.use_map:
            return self.map_head(group, train=train)[:, :, 0].astype(jnp.float32)
        return group.tokens.astype(jnp.float32).mean(axis=-2)


class ContinuousActionHead(ActionHead):
    """Regresses actions: tanh(x / max_action) * max_action of a linear map of the embedding."""

    action_horizon: int = 1
    action_dim: int = 7
    max_action: float = 5.0
    loss_type: str = "mse"

    def setup(self):
        _check_loss_type(self.loss_type)
        if self.use_map:
            self.map_head = MAPHead()
        self.mean_proj = nn.Dense(self.action_horizon * self.action_dim)

    def __call__(self, outputs: Outputs, *, train: bool = False) -> jax.Array:
        """Returns actions float32 [B, W, horizon, action_dim]."""
        mean = self.mean_proj(self.embed(outputs, train=train))
        mean = mean.reshape(*mean.shape[:2], self.action_horizon, self.action_dim)
        return jnp.tanh(mean / self.max_action) * self.max_action

    def loss(
        self,
        outputs: Outputs,
        actions: jax.Array,
        timestep_pad_mask: jax.Array,
        action_pad_mask: jax.Array,
        *,
        train: bool,
    ) -> tuple[jax.Array, Metrics]:
        """Masked regression loss of actions [B, W, horizon, action_dim]; masks bool [B, W] and as actions."""
        mask = timestep_pad_mask[:, :, None, None] & action_pad_mask
        return continuous_loss(self(outputs, train=train), actions, mask, self.loss_type, self.action_dim)

    def predict_action(
        self, outputs: Outputs, *, sample_shape: tuple[int, ...] = (), train: bool = False, **_: Any
    ) -> jax.Array:
        """Returns the actions of the last timestep, float32 [*sample_shape, B, horizon, action_dim]."""
        mean = self(outputs, train=train)[:, -1]
        return jnp.broadcast_to(mean, (*sample_shape, *mean.shape))


class MSEActionHead(ContinuousActionHead):
    """ContinuousActionHead with attention pooling and squared error."""

    use_map: bool = True


class L1ActionHead(ContinuousActionHead):
    """ContinuousActionHead with attention pooling and absolute error."""

    use_map: bool = True
    loss_type: str = "l1"


class DiscreteActionHead(ActionHead):
    """Classifies each action dimension into bins.

    Attributes:
        token_per: which outputs have a readout token of their own: "" (one token for all), "action_horizon", or
            "action_dim_and_action_horizon".
    """

    token_per: str = "action_dim_and_action_horizon"
    action_horizon: int = 1
    action_dim: int = 7
    vocab_size: int = 256
    normalization_type: str = "uniform"
    low: float | None = 0.0
    high: float | None = 1.0

    def setup(self):
        counts = {
            "": 1,
            "action_horizon": self.action_horizon,
            "action_dim_and_action_horizon": self.action_horizon * self.action_dim,
        }
        if self.token_per not in counts:
            raise UserError(f"token_per={self.token_per!r} of an action head is not implemented.")
        self.num_tokens = counts[self.token_per]
        if self.use_map:
            self.map_head = MAPHead(num_readouts=self.num_tokens)
        self.vocab_proj = nn.Dense(self.action_horizon * self.action_dim * self.vocab_size // self.num_tokens)
        self._thresholds()  # raises what is wrong with them when a checkpoint is loaded

    def __call__(self, outputs: Outputs, *, train: bool = False) -> jax.Array:
        """Returns logits float32 [B, W, horizon, action_dim, vocab_size]."""
        group = self.tokens(outputs)
        tokens = self.map_head(group, train=train) if self.use_map else group.tokens
        if tokens.shape[-2] != self.num_tokens:
            raise UserError(
                f"The discrete action head needs {self.num_tokens} readout tokens; config.json has {tokens.shape[-2]}."
            )
        logits = self.vocab_proj(tokens.astype(jnp.float32))
        return logits.reshape(*logits.shape[:2], self.action_horizon, self.action_dim, self.vocab_size)

    def _thresholds(self) -> jax.Array:
        return bin_thresholds(self.vocab_size, self.normalization_type, self.low, self.high)

    def _decode(self, bins: jax.Array) -> jax.Array:
        thresholds = self._thresholds()
        return ((thresholds[1:] + thresholds[:-1]) / 2)[bins]

    def loss(
        self,
        outputs: Outputs,
        actions: jax.Array,
        timestep_pad_mask: jax.Array,
        action_pad_mask: jax.Array,
        *,
        train: bool,
    ) -> tuple[jax.Array, Metrics]:
        """Masked cross-entropy of the bins of actions; metrics: loss, mse, accuracy."""
        mask = timestep_pad_mask[:, :, None, None] & action_pad_mask
        logits = self(outputs, train=train)
        values = actions
        if self.normalization_type == "uniform" and self.low is not None and self.high is not None:
            values = jnp.clip(actions, self.low + 1e-6, self.high - 1e-6)
        labels = to_bins(values, self._thresholds())
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
        loss = masked_mean(-chosen, mask)
        predicted = jnp.argmax(logits, axis=-1)
        mse = masked_mean(jnp.square(self._decode(predicted) - actions), mask) * self.action_dim
        accuracy = masked_mean((predicted == labels).astype(jnp.float32), mask)
        return loss, {"loss": loss, "mse": mse, "accuracy": accuracy}

    def predict_action(
        self,
        outputs: Outputs,
        *,
        rng: jax.Array | None = None,
        sample_shape: tuple[int, ...] = (),
        argmax: bool = False,
        temperature: float = 1.0,
        noise: jax.Array | None = None,
        train: bool = False,
        **_: Any,
    ) -> jax.Array:
        """Samples (argmax: picks the likeliest) actions of the last timestep, float32 [*S, B, horizon, action_dim].

        Args:
            rng: key of the sampling, unless `noise` is given.
            noise: Gumbel noise to sample with, float32 [*S, B, horizon, action_dim, vocab_size]: the bin of the
                greatest logit / temperature + noise (Gumbel 1954).
        """
        logits = self(outputs, train=train)[:, -1]
        if argmax:
            bins = jnp.broadcast_to(jnp.argmax(logits, axis=-1), (*sample_shape, *logits.shape[:-1]))
        elif noise is not None:
            bins = jnp.argmax(logits / temperature + noise, axis=-1)
        else:
            bins = jax.random.categorical(rng, logits / temperature, shape=(*sample_shape, *logits.shape[:-1]))
        return self._decode(bins)


class TokenPerDimActionHead(DiscreteActionHead):
    """DiscreteActionHead with one token per action dimension and step."""


class DiffusionActionHead(ActionHead):
    """Denoises actions, conditioned on the embedding (Ho et al. 2020, variance beta_t)."""

    action_horizon: int = 1
    action_dim: int = 7
    max_action: float = 5.0
    loss_type: str = "mse"
    time_dim: int = 32
    num_blocks: int = 3
    dropout_rate: float = 0.0
    hidden_dim: int = 256
    use_layer_norm: bool = True
    diffusion_steps: int = 20
    n_diffusion_samples: int = 1

    def setup(self):
        _check_loss_type(self.loss_type)
        if self.use_map:
            self.map_head = MAPHead()
        self.diffusion_model = ScoreActor(
            self.action_dim * self.action_horizon,
            self.time_dim,
            self.num_blocks,
            self.hidden_dim,
            self.dropout_rate or 0.0,
            self.use_layer_norm,
        )

    def schedule(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns betas, alphas and the cumulative products of alphas, float32 [diffusion_steps]."""
        return noise_schedule(self.diffusion_steps)

    def __call__(
        self,
        outputs: Outputs,
        time: jax.Array | None = None,
        noisy_actions: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Predicts the noise in noisy actions [..., B, W, horizon * action_dim] at `time` [..., 1]; same shape."""
        embeddings = self.embed(outputs, train=train)
        if self.is_initializing():
            time = jnp.zeros((*embeddings.shape[:2], 1))
            noisy_actions = jnp.zeros((*embeddings.shape[:2], self.action_dim * self.action_horizon))
        return self.diffusion_model(embeddings, noisy_actions, time, train=train)

    def loss(
        self,
        outputs: Outputs,
        actions: jax.Array,
        timestep_pad_mask: jax.Array,
        action_pad_mask: jax.Array,
        *,
        train: bool,
        time: jax.Array | None = None,
        noise: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """Masked error of the predicted noise.

        noisy = sqrt(alpha_hat_t) * clip(actions, ±max_action) + sqrt(1 - alpha_hat_t) * noise.

        Args:
            actions: float32 [B, W, horizon, action_dim].
            timestep_pad_mask: bool [B, W], False for padding.
            action_pad_mask: bool, as actions, False for padding.
            time: int [n_diffusion_samples, B, W, 1]; drawn from the "dropout" stream if None.
            noise: float32 [n_diffusion_samples, B, W, horizon * action_dim]; drawn likewise.
        """
        flat = actions.reshape(*actions.shape[:2], -1)
        flat = jnp.clip(flat, -self.max_action, self.max_action)
        time, noise, noisy = noised(
            flat, self.schedule()[2], lambda: self.make_rng("dropout"), time, noise, (self.n_diffusion_samples,)
        )
        prediction = self(outputs, time, noisy, train=train)
        mask = (timestep_pad_mask[:, :, None, None] & action_pad_mask).reshape(flat.shape)[None]
        return continuous_loss(prediction, noise, mask, self.loss_type, self.action_dim)

    def predict_action(
        self,
        outputs: Outputs,
        *,
        rng: jax.Array | None = None,
        sample_shape: tuple[int, ...] = (),
        embodiment_action_dim: int | None = None,
        noise: SamplingNoise | None = None,
        train: bool = False,
        **_: Any,
    ) -> jax.Array:
        """Samples actions of the last timestep, float32 [*sample_shape, B, horizon, action_dim].

        For t = T-1..0: x = (x - (1 - alpha_t) / sqrt(1 - alpha_hat_t) * eps(x, t)) / sqrt(alpha_t) + sqrt(beta_t) * z,
        without z at t = 0, clipped to ±max_action at every step.

        Args:
            rng: key of the noise, unless `noise` gives it.
            embodiment_action_dim: dimensions beyond this one are overwritten, after the clip of every step, with the
                noise that training would have shown there.
            noise: random numbers to use instead of drawing them.
        """
        betas, alphas, alpha_hats = self.schedule()
        embeddings = self.embed(outputs, train=train)
        shape = (*sample_shape, *embeddings.shape[:2], self.action_horizon * self.action_dim)
        wanted = np.ones((self.action_horizon, self.action_dim), bool)
        if embodiment_action_dim is not None:
            wanted[:, embodiment_action_dim:] = False
        wanted = jnp.asarray(wanted.reshape(-1))
        if noise is None:
            rng, key = jax.random.split(rng)
            initial, step_noise = jax.random.normal(key, shape), jax.random.split(rng, self.diffusion_steps)
        else:
            initial, step_noise = noise.initial, noise.steps

        def step(module: DiffusionActionHead, x: jax.Array, inputs: tuple[jax.Array, jax.Array]):
            t, z = inputs
            z = jax.random.normal(z, shape) if noise is None else z
            eps = module.diffusion_model(embeddings, x, jnp.broadcast_to(t, (*shape[:-1], 1)), train=train)
            x = (x - (1 - alphas[t]) / jnp.sqrt(1 - alpha_hats[t]) * eps) / jnp.sqrt(alphas[t])
            x = x + (t > 0) * jnp.sqrt(betas[t]) * z
            x = jnp.clip(x, -module.max_action, module.max_action)
            return jnp.where(wanted, x, jnp.sqrt(1 - alpha_hats[t]) * z), None

        times = jnp.arange(self.diffusion_steps - 1, -1, -1)
        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False, "dropout": True})
        actions, _ = scan(self, initial, (times, step_noise))
        return actions[..., -1, :].reshape(*sample_shape, embeddings.shape[0], self.action_horizon, self.action_dim)
