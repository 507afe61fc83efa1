"""openpi's messages: msgpack maps, with arrays of numbers inside. Imports no JAX.

As github.com/Physical-Intelligence/openpi writes them (openpi-client 0.1.2, msgpack_numpy.py): an array is a map with
the keys `__ndarray__`, `data` (its bytes in C order), `dtype` (numpy's `str`) and `shape`, all of them bytes; a numpy
scalar has `__npgeneric__`, `data` and `dtype`. There are no objects in it, and none are read.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

# Both ends refuse longer messages; openpi itself knows no limit.
MAX_MESSAGE = 64 << 20
_ARRAY, _SCALAR, _DATA, _DTYPE, _SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
# Booleans, numbers and text, by numpy's names; there are no objects (O), records (V) or complex numbers (c).
_KINDS = "biufSU"
_PLAIN_DTYPE = re.compile(r"[<>|=]?[biufSU][0-9]{1,6}")
_MAX_DIMENSIONS = 32


class WireError(Exception):
    """A message is not what the protocol allows; says in a few words what it is instead."""


def encode(message: Any) -> bytes:
    """Writes a message.

    Args:
        message: maps, lists, text, numbers, and numpy's arrays and scalars.

    Raises:
        TypeError: something else is in it, or an array of what the protocol does not have.
    """
    return msgpack.packb(message, default=_pack)


def decode(data: bytes) -> Any:
    """Reads a message; arrays share its memory and cannot be written.

    No array is made before the size that its shape claims was compared with the bytes that are there.

    Raises:
        WireError: it is not in the protocol.
    """
    return unpacked(data, _unpack)


def unpacked(data: bytes, read_map: Callable[[dict], Any]) -> Any:
    """Reads msgpack whose maps `read_map` turns into what they stand for; raises WireError if it is none."""
    try:
        return msgpack.unpackb(data, object_hook=read_map)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.exceptions.UnpackException) as error:
        cause = " ".join(str(error).split())[:100] or type(error).__name__
        raise WireError(f"bytes that are no msgpack ({cause})") from None


def _pack(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"{type(value).__name__} cannot be sent")
    if value.dtype.kind not in _KINDS:
        raise TypeError(f"numbers of type {value.dtype} cannot be sent")
    if isinstance(value, np.generic):
        return {_SCALAR: True, _DATA: value.item(), _DTYPE: value.dtype.str}
    return {_ARRAY: True, _DATA: value.tobytes(), _DTYPE: value.dtype.str, _SHAPE: value.shape}


def _unpack(found: dict) -> Any:
    if _ARRAY in found:
        return plain_array(found.get(_DATA), plain_dtype(found.get(_DTYPE)), found.get(_SHAPE))
    if _SCALAR in found:
        return _scalar(found.get(_DATA), plain_dtype(found.get(_DTYPE)))
    return found


def plain_dtype(name: Any) -> np.dtype:
    """The type of that name; raises WireError unless it is one of booleans, numbers or text."""
    # numpy reads records, objects and whole shapes out of such names: only plain ones reach it.
    if not isinstance(name, str) or not _PLAIN_DTYPE.fullmatch(name):
        raise WireError(f"an array of type {str(name)[:40]!r}, which is not in the protocol")
    try:
        return np.dtype(name)
    except TypeError:
        raise WireError(f"an array of type {name!r}, which numpy does not know") from None


def plain_array(data: Any, dtype: np.dtype, shape: Any) -> np.ndarray:
    """An array of bytes; raises WireError unless they are as many as its shape claims."""
    lengths = shape if isinstance(shape, list) and len(shape) <= _MAX_DIMENSIONS else [-1]
    if not isinstance(data, bytes) or any(type(length) is not int or length < 0 for length in lengths):
        raise WireError("an array without bytes or without a shape")
    claimed = math.prod(lengths) * dtype.itemsize
    if claimed != len(data) or dtype.itemsize == 0 or max(lengths, default=0) > MAX_MESSAGE:
        raise WireError(f"an array that claims {claimed:,} bytes and has {len(data):,}")
    return np.frombuffer(data, dtype).reshape(lengths)


def _scalar(data: Any, dtype: np.dtype) -> np.generic:
    if not isinstance(data, bool | int | float | str | bytes):
        raise WireError("a scalar that is no number and no text")
    return dtype.type(data)
