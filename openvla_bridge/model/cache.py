"""A key-value cache that is allocated once: appending to it copies the new entries only."""

import torch
from transformers.cache_utils import Cache, DynamicLayer


class BufferedLayer(DynamicLayer):
    """One layer's keys and values, [B, heads, length, head_dim], inside buffers of a known greatest length."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, heads, _, head_dim = key_states.shape
        self.key_buffer = key_states.new_empty(batch, heads, self.capacity, head_dim)
        self.value_buffer = torch.empty_like(self.key_buffer)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends and returns all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        self.key_buffer[:, :, start : self.length] = key_states
        self.value_buffer[:, :, start : self.length] = value_states
        self.keys, self.values = self.key_buffer[:, :, : self.length], self.value_buffer[:, :, : self.length]
        return (key_states, value_states) if start == 0 else (self.keys, self.values)

    def get_seq_length(self) -> int:
        """Entries so far."""
        return self.length


def create_cache(num_layers: int, capacity: int) -> Cache:
    """Returns an empty cache for sequences of up to `capacity` tokens."""
    return Cache(layers=[BufferedLayer(capacity) for _ in range(num_layers)])
