"""The shared memory between a client and a worker: a few slots, each with the arrays of one request.

The memory has no name, so no end of any process leaves it behind.
"""

import dataclasses
import fcntl
import mmap
import os

import numpy as np

_ALIGNMENT = 4096


@dataclasses.dataclass(frozen=True)
class RingLayout:
    """Sizes of a ring: `slots` requests of up to `batch` frames [height, width, 3] with states [state_dim], and
    `samples` chunks of `steps` actions per frame."""

    slots: int
    batch: int
    height: int
    width: int
    samples: int
    action_dim: int
    steps: int = 1
    state_dim: int = 0


class Slot:
    """The arrays of one request, views of the shared memory.

    Attributes:
        frames: uint8 [batch, height, width, 3], written by the client.
        state: float32 [batch, state_dim], written by the client.
        uniforms: float32 [samples, batch, action_dim] in [0, 1), written by the client.
        actions: float32 [samples, batch, steps, action_dim], written by the worker.
    """

    def __init__(self, frames: np.ndarray, state: np.ndarray, uniforms: np.ndarray, actions: np.ndarray):
        self.frames, self.state, self.uniforms, self.actions = frames, state, uniforms, actions


def create_memory() -> int:
    """Returns the file descriptor of empty memory that can grow but never shrink under its readers."""
    memory = os.memfd_create("openvla_bridge", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return memory


def map_slots(memory: int, layout: RingLayout) -> list[Slot]:
    """Maps a ring; both processes call this with the same layout, and the memory grows as needed."""
    parts = [
        ((layout.batch, layout.height, layout.width, 3), np.uint8),
        ((layout.batch, layout.state_dim), np.float32),
        ((layout.samples, layout.batch, layout.action_dim), np.float32),
        ((layout.samples, layout.batch, layout.steps, layout.action_dim), np.float32),
    ]
    sizes = [-(-int(np.prod(shape)) * np.dtype(dtype).itemsize // _ALIGNMENT) * _ALIGNMENT for shape, dtype in parts]
    total = layout.slots * sum(sizes)
    if os.fstat(memory).st_size < total:
        os.ftruncate(memory, total)
    buffer = mmap.mmap(memory, total)
    slots = []
    for number in range(layout.slots):
        offset, arrays = number * sum(sizes), []
        for (shape, dtype), size in zip(parts, sizes, strict=True):
            arrays.append(np.ndarray(shape, dtype, buffer, offset))
            offset += size
        slots.append(Slot(*arrays))
    return slots
