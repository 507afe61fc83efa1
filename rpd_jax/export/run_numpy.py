"""Runs an exported student with numpy alone: act(rgb=uint8 [B, H, W, 3], state=float32 [B, D]) -> actions [B, 7]."""

from pathlib import Path

import numpy as np

weights = np.load(Path(__file__).parent / "weights.npz")
W = {name: weights[name] for name in weights.files}


def dense(x, layer):
    return x @ W[f"{layer}/kernel"] + W[f"{layer}/bias"]


def conv(images, layer, stride):
    size = W[f"{layer}/kernel"].shape[0]
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.maximum(np.tensordot(windows, W[f"{layer}/kernel"], ((4, 5, 3), (0, 1, 2))) + W[f"{layer}/bias"], 0)


def act(rgb=None, state=None):
    features = []
    if rgb is not None:
        images = rgb.astype(np.float32)
        if "resize" in W:
            images = np.einsum("yh,bhwc,xw->byxc", W["resize"], images, W["resize"], optimize=True)
            images = np.floor(images + (0.5 + 2**-9))  # whole levels; halves go up, in whatever order they were summed
        images = conv(conv(conv(images / 255, "conv1", 4), "conv2", 2), "conv3", 1)
        features.append(np.maximum(dense(images.reshape(len(images), -1), "image_dense"), 0))
    if state is not None and "state_mean" in W:
        normalized = np.clip((state - W["state_mean"]) / W["state_deviation"], -W["state_range"], W["state_range"])
        scaled = [np.tanh(scale * state / W["state_deviation"]) for scale in W["state_scales"]]
        state = np.concatenate([normalized, *scaled], axis=1)
    if state is not None and "trunk1/kernel" in W:
        features.append(np.tanh(dense(np.tanh(dense(state, "trunk1")), "trunk2")))
    elif state is not None:
        features.append(np.maximum(dense(state, "state_dense"), 0))
    hidden = np.maximum(dense(np.concatenate(features, axis=1), "actor_hidden"), 0)
    return np.clip(dense(hidden, "actor_output"), -1, 1)


if __name__ == "__main__":
    example = np.load(Path(__file__).parent / "example.npz")
    inputs = {name: example[name] for name in example.files if name != "actions"}
    print("actions:", act(**inputs), "largest difference from JAX:", np.abs(act(**inputs) - example["actions"]).max())
