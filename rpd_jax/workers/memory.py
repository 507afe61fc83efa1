"""Arrays that the trainer and its environment workers share: anonymous memory, so nothing is left behind by any end."""

import mmap
import os
import tempfile

import numpy as np

_ALIGNMENT = 64


def create_memory() -> int:
    """Returns the file descriptor of empty memory without a name, which lives until its last holder is gone."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("rpd_jax.envs")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class SharedArrays:
    """The arrays of one step of N environments; every process that makes one from the same arguments sees the same.

    Attributes:
        action: float32 [N, 7].
        rgb, final_rgb: uint8 [N, H, W, 3].
        state, final_state: float32 [N, D].
        reward, success, success_at_end, episode_return: float32 [N].
        terminated, truncated: bool [N].
        length: int32 [N].
    """

    def __init__(self, memory: int, num_envs: int, image_size: int, state_dim: int):
        image, vector, scalar = (num_envs, image_size, image_size, 3), (num_envs, state_dim), (num_envs,)
        layout = {
            "action": ((num_envs, 7), np.float32),
            "rgb": (image, np.uint8),
            "final_rgb": (image, np.uint8),
            "state": (vector, np.float32),
            "final_state": (vector, np.float32),
            "reward": (scalar, np.float32),
            "success": (scalar, np.float32),
            "success_at_end": (scalar, np.float32),
            "episode_return": (scalar, np.float32),
            "terminated": (scalar, np.bool_),
            "truncated": (scalar, np.bool_),
            "length": (scalar, np.int32),
        }
        offsets, size = {}, 0
        for name, (shape, dtype) in layout.items():
            offsets[name] = size
            size += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // _ALIGNMENT) * _ALIGNMENT
        if os.fstat(memory).st_size < size:
            os.ftruncate(memory, size)
        buffer = mmap.mmap(memory, size)
        for name, (shape, dtype) in layout.items():
            setattr(self, name, np.ndarray(shape, dtype, buffer, offsets[name]))
