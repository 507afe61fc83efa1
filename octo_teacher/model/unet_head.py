"""The action head whose denoising network is a U-Net over the steps of the chunk."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from octo_teacher.model.action_heads import Metrics, Outputs, SamplingNoise, TokenReader, continuous_loss
from octo_teacher.model.diffusion import noise_schedule, noised
from octo_teacher.model.unet import ConditionalUnet1D
from rpd_jax.errors import UserError


class UNetDDPMActionHead(TokenReader):
    """Denoises actions with a U-Net, conditioned on the tokens (Chi et al. 2023; sampled as Ho et al. 2020).

    The original's code trains with windows of one timestep only, and samples one row at a time: there, numbers are the
    same. Any window, batch and number of samples mean here what they mean for `DiffusionActionHead`.

    Attributes:
        action_dim, action_horizon: shape of an action chunk.
        use_map: attention pooling, which the original announces and lacks: must be false.
        flatten_tokens: condition on all tokens of the group side by side, instead of on their mean. Where config.json
            does not say, both are true: the original's defaults are `(False,)`.
        timesteps: of the diffusion.
        max_action: actions are clipped to ±max_action in training.
        clip_sample: bound of the actions that every step of sampling estimates; None for none.
        variance_type: of the noise of each step: "fixed_large", beta_t, or "fixed_small", that of the posterior.
    """

    action_dim: int
    action_horizon: int
    use_map: bool = True
    flatten_tokens: bool = True
    timesteps: int = 100
    max_action: float = 1.0
    clip_sample: float | None = None
    variance_type: str = "fixed_large"

    # Sizes of the network; no config.json sets them.
    down_features = (256, 512, 1024)
    time_features = 128

    def setup(self):
        if self.use_map:
            raise UserError(
                "The action head UNetDDPMActionHead has no attention pooling, and needs use_map=false in config.json."
            )
        if self.variance_type not in ("fixed_large", "fixed_small"):
            raise UserError(
                f"variance_type={self.variance_type!r} of an action head is not implemented: known are fixed_large, "
                "fixed_small."
            )
        multiple = 2 ** (len(self.down_features) - 1)
        if self.action_horizon % multiple:
            raise UserError(
                f"action_horizon={self.action_horizon} does not fit the action head UNetDDPMActionHead, whose network "
                f"needs a multiple of {multiple}."
            )
        self.action_proj = nn.Dense(self.action_dim)
        self.model = ConditionalUnet1D(
            self.down_features, mid_layers=2, kernel_size=5, time_features=self.time_features
        )

    @property
    def diffusion_steps(self) -> int:
        """`timesteps`, under the name that DiffusionActionHead has for it."""
        return self.timesteps

    def embed(self, outputs: Outputs) -> jax.Array:
        """Returns float32 [B, W, d], or [B, W, n * d] of flattened tokens."""
        tokens = self.tokens(outputs).tokens.astype(jnp.float32)
        return tokens.reshape(*tokens.shape[:2], -1) if self.flatten_tokens else tokens.mean(axis=-2)

    def __call__(
        self,
        outputs: Outputs,
        time: jax.Array | None = None,
        noisy_actions: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Predicts the noise in noisy actions [..., B, W, horizon, action_dim] at `time` [..., B, W, 1]; same shape."""
        embeddings = self.embed(outputs)
        if self.is_initializing():
            time = jnp.zeros((*embeddings.shape[:2], 1))
            noisy_actions = jnp.zeros((*embeddings.shape[:2], self.action_horizon, self.action_dim))
        return self._predict_noise(embeddings, noisy_actions, time)

    def _predict_noise(self, embeddings: jax.Array, noisy_actions: jax.Array, time: jax.Array) -> jax.Array:
        batch = noisy_actions.shape[:-2]

        def rows(x: jax.Array, last: int) -> jax.Array:
            """Samples and batch in one axis: the network's norms join the others."""
            return jnp.broadcast_to(x, (*batch, *x.shape[-last:])).reshape(-1, batch[-1], *x.shape[-last:])

        features = self.model(rows(embeddings, 1), rows(noisy_actions, 2), rows(time, 1))
        return self.action_proj(features).reshape(noisy_actions.shape)

    def schedule(self) -> tuple[jax.Array, jax.Array]:
        """Returns alphas and their cumulative products, float32 [timesteps]."""
        return noise_schedule(self.timesteps)[1:]

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
        """Masked squared error of the predicted noise.

        noisy = sqrt(alpha_hat_t) * clip(actions, ±max_action) + sqrt(1 - alpha_hat_t) * noise.

        Args:
            actions: float32 [B, W, horizon, action_dim].
            timestep_pad_mask: bool [B, W], False for padding.
            action_pad_mask: bool, as actions, False for padding.
            time: int [B, W, 1]; drawn from the "dropout" stream if None.
            noise: float32, as actions; drawn likewise.
        """
        actions = jnp.clip(actions, -self.max_action, self.max_action)
        time, noise, noisy = noised(actions, self.schedule()[1], lambda: self.make_rng("dropout"), time, noise)
        prediction = self(outputs, time, noisy, train=train)
        mask = timestep_pad_mask[:, :, None, None] & action_pad_mask
        return continuous_loss(prediction, noise, mask, "mse", self.action_dim)

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

        For t = T-1..0, with a_t = alpha_t, A_t = alpha_hat_t and A_-1 = 1:
            x0 = (x - sqrt(1 - A_t) * eps(x, t)) / sqrt(A_t), clipped to ±clip_sample;
            x = (sqrt(A_t-1) * (1 - a_t) * x0 + sqrt(a_t) * (1 - A_t-1) * x) / (1 - A_t) + sigma_t * z,
        sigma_t^2 = 1 - a_t ("fixed_large") or (1 - a_t) * (1 - A_t-1) / (1 - A_t) ("fixed_small"), without z at t = 0.

        Args:
            rng: key of the noise, unless `noise` gives it.
            embodiment_action_dim: dimensions beyond this one are overwritten at every step with the noise that training
                would have shown there.
            noise: random numbers to use instead of drawing them, the chunk as one axis.
        """
        embeddings = self.embed(outputs)
        shape = (*sample_shape, *embeddings.shape[:2], self.action_horizon, self.action_dim)
        wanted = jnp.asarray(np.arange(self.action_dim) < (embodiment_action_dim or self.action_dim))
        if noise is None:
            rng, key = jax.random.split(rng)
            initial, step_noise = jax.random.normal(key, shape), jax.random.split(rng, self.timesteps)
        else:
            initial, step_noise = noise.initial.reshape(shape), noise.steps.reshape(-1, *shape)
        alphas, alpha_hats = self.schedule()

        def step(module: UNetDDPMActionHead, x: jax.Array, inputs: tuple[jax.Array, jax.Array]):
            t, z = inputs
            z = jax.random.normal(z, shape) if noise is None else z
            eps = module._predict_noise(embeddings, x, jnp.broadcast_to(t, (*shape[:-2], 1)))
            alpha, now, before = alphas[t], alpha_hats[t], jnp.where(t > 0, alpha_hats[t - 1], 1.0)
            estimate = (x - jnp.sqrt(1 - now) * eps) / jnp.sqrt(now)
            if module.clip_sample is not None:
                estimate = jnp.clip(estimate, -module.clip_sample, module.clip_sample)
            x = (jnp.sqrt(before) * (1 - alpha) * estimate + jnp.sqrt(alpha) * (1 - before) * x) / (1 - now)
            variance = 1 - alpha
            if module.variance_type == "fixed_small":
                variance = jnp.maximum((1 - before) / (1 - now) * variance, 1e-20)
            x = x + (t > 0) * jnp.sqrt(variance) * z
            return jnp.where(wanted, x, jnp.sqrt(1 - now) * z), None

        times = jnp.arange(self.timesteps - 1, -1, -1)
        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        actions, _ = scan(self, initial, (times, step_noise))
        return actions[..., -1, :, :]
