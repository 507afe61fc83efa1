"""A student's parameters as a flat dictionary: what the ONNX graph and the numpy example are made from."""

import jax
import jax.numpy as jnp
import numpy as np

from rpd_jax.evaluate.trained_student import TrainedStudent
from rpd_jax.student.networks import ENCODERS
from rpd_jax.student.state_features import RANGE, SCALES, deviation

# Name in the file -> path in the parameters, for the layers that the mean action depends on.
_LAYERS = {
    "conv1": ("image_encoder", "conv1"),
    "conv2": ("image_encoder", "conv2"),
    "conv3": ("image_encoder", "conv3"),
    "image_dense": ("image_encoder", "dense"),
    "state_dense": ("state_encoder",),
    "trunk1": ("trunk_0",),
    "trunk2": ("trunk_1",),
    "actor_hidden": ("actor", "hidden"),
    "actor_output": ("actor", "output"),
}


def policy_weights(student: TrainedStudent) -> dict[str, np.ndarray]:
    """The arrays, float32, of the deterministic policy; the critic and log σ are left out.

    `<layer>/kernel` [k, k, C, O] or [C, O] and `<layer>/bias` [O]; `resize` [h, H], where the frames are scaled from
    H×H to h×h pixels: resized = resize · frame · resizeᵀ, rounded to whole levels, halves up. Where the state is
    normalised, `state_mean` [D], `state_deviation` [D], `state_range` and `state_scales` [k]: the layers see
    clip((s − mean)/deviation, ±range) and tanh(scale · s/deviation) for each scale, side by side.
    """
    weights = {}
    for name, path in _LAYERS.items():
        layer = student.params["params"]
        for part in path:
            layer = layer.get(part, {})
        for part, value in layer.items():
            weights[f"{name}/{part}"] = np.asarray(value, np.float32)
    if student.network.sees_frames:
        weights |= _convolutions(student.network.encoder, weights)
        resize = resize_matrix(student.config.env.image_size, student.network.image_size)
        if resize is not None:
            weights["resize"] = resize
    if student.network.sees_state and student.network.state == "scaled":
        statistics = student.params["statistics"]["state_features"]
        weights["state_mean"] = np.asarray(statistics["mean"], np.float32)
        weights["state_deviation"] = np.asarray(deviation(statistics["variance"]), np.float32)
        weights["state_range"] = np.float32(RANGE)
        weights["state_scales"] = np.asarray(SCALES, np.float32)
    return weights


def _convolutions(encoder: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The convolutions as what runs a policy has them: of frames in [0, 1], without a gain."""
    parts = ("kernel", "bias")
    layers = [[weights[f"conv{number}/{part}"] for part in parts] for number in (1, 2, 3)]
    effective = ENCODERS[encoder].effective(layers)
    return {
        f"conv{number}/{part}": np.asarray(array, np.float32)
        for number, layer in enumerate(effective, start=1)
        for part, array in zip(parts, layer, strict=True)
    }


def resize_matrix(size: int, new_size: int) -> np.ndarray | None:
    """The linear map [new_size, size] along one axis of `student.convolution.resize_frames`; None at the same size."""
    if size == new_size:
        return None
    if size % new_size == 0:
        block = size // new_size
        return np.repeat(np.eye(new_size, dtype=np.float32), block, axis=1) / block
    return np.asarray(jax.image.resize(jnp.eye(size), (new_size, size), "linear", antialias=True))
