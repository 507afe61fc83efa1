"""Random numbers of each frame, whatever batch it is in: torch's draws inside a policy, row by row from seeds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from openvla_bridge.errors import BridgeError


class RowNoise(TorchFunctionMode):
    """Inside its context, torch's random functions draw row i of a batch from a generator with seed i.

    So a frame alone gets the numbers that it gets in a batch: those that `torch.manual_seed(seed)` and the same calls
    with a batch of one give on the CPU. Generators that a caller brings along are left alone.

    Attributes:
        used: whether anything was drawn.

    Args:
        seeds: of the B rows.
    """

    def __init__(self, seeds: Sequence[int]):
        super().__init__()
        self.used = False
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function not in _DRAWS or kwargs.get("generator") is not None:
            return function(*args, **kwargs)
        self.used = True
        if function is torch.multinomial:
            return self._multinomial(*args, **kwargs)
        return self._normal_or_uniform(function, args, kwargs)

    def _normal_or_uniform(self, function: Any, args: tuple, kwargs: dict) -> torch.Tensor:
        kwargs.pop("generator", None)
        # On the device "meta", the same call tells shape and type without drawing.
        alike = function(*args, **{**kwargs, "device": "meta"})
        device = kwargs.get("device") or (args[0].device if args and isinstance(args[0], torch.Tensor) else None)
        self._check(alike.shape)
        draw = torch.rand if function in (torch.rand, torch.rand_like) else torch.randn
        rows = len(alike) // len(self._generators)
        dtype = torch.float64 if alike.dtype == torch.float64 else torch.float32
        drawn = [draw((rows, *alike.shape[1:]), generator=each, dtype=dtype) for each in self._generators]
        whole = torch.cat(drawn).to(device=device or torch.get_default_device(), dtype=alike.dtype)
        if function is torch.normal:
            mean, std = (kwargs.get(name, default) for name, default in (("mean", 0.0), ("std", 1.0)))
            mean, std = (*args, *(mean, std)[len(args) :])[:2]
            return whole * std + mean
        return whole

    def _multinomial(self, weights: torch.Tensor, num_samples: int, replacement: bool = False) -> torch.Tensor:
        self._check(weights.shape)
        rows = weights.cpu().chunk(len(self._generators))
        drawn = [
            torch.multinomial(row, num_samples, replacement, generator=each)
            for row, each in zip(rows, self._generators, strict=True)
        ]
        return torch.cat(drawn).to(weights.device)

    def _check(self, shape: Sequence[int]) -> None:
        if not shape or shape[0] % len(self._generators):
            raise BridgeError(
                f"The policy draws random numbers {list(shape)} for {len(self._generators)} frames, so that a frame's "
                "own cannot be told: its labels would not follow from the seed."
            )


_DRAWS = {torch.randn, torch.randn_like, torch.rand, torch.rand_like, torch.normal, torch.multinomial}
