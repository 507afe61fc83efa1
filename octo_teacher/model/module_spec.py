"""Reads the {module, name, args, kwargs} entries by which a checkpoint's config.json names its parts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from rpd_jax.errors import UserError

# Fields that we set ourselves; a config.json cannot.
OURS = ("parent", "name", "dtype", "t5")


@dataclasses.dataclass(frozen=True)
class ModuleSpec:
    """A class of ours and the arguments a checkpoint gives it; hashable, as a field of a linen module must be."""

    cls: type[nn.Module]
    kwargs: tuple[tuple[str, Any], ...]

    def build(self, **overrides: Any) -> nn.Module:
        """Returns the module; `overrides` win over the checkpoint's arguments."""
        return self.cls(**{**dict(self.kwargs), **overrides})


def parse_spec(spec: Any, allowed: Mapping[str, type[nn.Module]], where: str) -> ModuleSpec:
    """Turns one entry of config.json into a `ModuleSpec`.

    Only the class name decides, and only names in `allowed` are known: nothing is imported because a file says so.

    Args:
        spec: {"module": str, "name": str, "args": list, "kwargs": dict} as in config.json.
        allowed: class name -> class of ours.
        where: path of the entry in config.json, for messages.

    Raises:
        UserError: not such an entry, a class we do not have, or an argument it does not take.
    """
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise UserError(f"{where} in config.json is not a module entry with the keys module, name, args, kwargs.")
    name = spec["name"]
    if name not in allowed:
        raise UserError(
            f"{where} in config.json asks for {name!r}, which is not implemented: known are "
            f"{', '.join(sorted(allowed))}."
        )
    cls = allowed[name]
    fields = [field.name for field in dataclasses.fields(cls) if field.name not in OURS]
    args, kwargs = spec.get("args") or [], dict(spec.get("kwargs") or {})
    if len(args) > len(fields):
        raise UserError(
            f"{where} in config.json gives {name} {len(args)} positional arguments; it takes {len(fields)}."
        )
    kwargs = {**dict(zip(fields, args, strict=False)), **kwargs}
    unknown = sorted(set(kwargs) - set(fields))
    if unknown:
        raise UserError(
            f"{where} in config.json gives {name} the argument {unknown[0]!r}, which is not implemented: "
            f"known are {', '.join(fields)}."
        )
    return ModuleSpec(cls, tuple((key, freeze(value)) for key, value in kwargs.items()))


def freeze(value: Any) -> Any:
    """Returns lists as tuples and dicts as tuples of pairs, so that the result is hashable."""
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item) for item in value)
    if isinstance(value, Mapping):
        return FrozenSpec((key, freeze(item)) for key, item in value.items())
    return value


class FrozenSpec(tuple):
    """A dict of config.json as a hashable tuple of (key, value) pairs."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the dict again, with inner dicts."""
        return {key: value.to_dict() if isinstance(value, FrozenSpec) else value for key, value in self}
