"""GR00T's messages: msgpack maps, with arrays of numbers inside. Imports no JAX.

As github.com/NVIDIA/Isaac-GR00T writes them (gr00t/policy/server_client.py): an array is a map with the keys
`__ndarray_class__` and `as_npy` (the bytes of an .npy file), and what a policy sees and gives of one kind is a map with
`__ModalityConfig_class__` and `as_json`. Later servers write arrays as the package msgpack-numpy does (`nd`, `type`,
`kind`, `shape` and `data`, all of them bytes) and `__ModalityConfig__`. Both are read, and each server is written to as
it writes itself. There are no objects in them, and none are read.
"""

import dataclasses
import io
import json
from typing import Any

import msgpack
import numpy as np

from rpd_jax.policy_server.wire import WireError, plain_array, plain_dtype, unpacked

_NPY, _NPY_BYTES = "__ndarray_class__", "as_npy"
_ND, _TYPE, _KIND, _SHAPE, _DATA = b"nd", b"type", b"kind", b"shape", b"data"
# Marks of a modality -> whether that server writes arrays as msgpack-numpy does.
_MODALITIES = {"__ModalityConfig_class__": False, "__ModalityConfig__": True}
_KINDS = "biuf"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclasses.dataclass(frozen=True)
class Modality:
    """What a policy sees or gives of one kind (video, state, language, action).

    Attributes:
        names: its parts.
        moments: how many moments of each.
        msgpack_numpy: whether the server that says so writes arrays as msgpack-numpy does.
    """

    names: tuple[str, ...]
    moments: int
    msgpack_numpy: bool = False


def encode(message: Any, *, msgpack_numpy: bool = False) -> bytes:
    """Writes a message of maps, lists, text, numbers and numpy's arrays of numbers.

    Raises:
        TypeError: something else is in it.
    """
    return msgpack.packb(message, default=_as_msgpack_numpy if msgpack_numpy else _as_npy)


def decode(data: bytes) -> Any:
    """Reads a message; arrays share its memory and cannot be written.

    No array is made before the size that its shape claims was compared with the bytes that are there.

    Raises:
        WireError: it is not in the protocol.
    """
    return unpacked(data, _unpack)


def _numbers(value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in _KINDS:
        raise TypeError(f"{getattr(value, 'dtype', type(value).__name__)} cannot be sent")
    return value


def _as_npy(value: Any) -> dict:
    file = io.BytesIO()
    np.lib.format.write_array(file, _numbers(value), version=(1, 0), allow_pickle=False)
    return {_NPY: True, _NPY_BYTES: file.getvalue()}


def _as_msgpack_numpy(value: Any) -> dict:
    array = _numbers(value)
    return {_ND: True, _TYPE: array.dtype.str, _KIND: b"", _SHAPE: array.shape, _DATA: array.tobytes()}


def _unpack(found: dict) -> Any:
    if _NPY in found:
        return _from_npy(found.get(_NPY_BYTES))
    if _ND in found:
        return _from_msgpack_numpy(found)
    for mark, msgpack_numpy in _MODALITIES.items():
        if mark in found:
            return _modality(found.get("as_json"), msgpack_numpy)
    return found


def _from_npy(data: Any) -> np.ndarray:
    if not isinstance(data, bytes):
        raise WireError("an array without bytes")
    file = io.BytesIO(data)
    try:
        shape, column_first, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    except Exception:  # its header is a Python literal, and numpy's reader of it raises what it comes upon
        raise WireError("an array that is no .npy file of numbers") from None
    lengths = list(shape)
    array = plain_array(data[file.tell() :], plain_dtype(dtype.str), lengths[::-1] if column_first else lengths)
    return array.T if column_first else array


def _from_msgpack_numpy(found: dict) -> np.ndarray | np.generic:
    data, dtype = found.get(_DATA), plain_dtype(found.get(_TYPE))
    if found[_ND] is True:
        return plain_array(data, dtype, found.get(_SHAPE))
    return plain_array(data, dtype, [])[()]


def _modality(told: Any, msgpack_numpy: bool) -> Modality:
    if isinstance(told, str):
        try:
            told = json.loads(told)
        except (ValueError, RecursionError):
            raise WireError("a modality that is no JSON") from None
    names, moments = (told.get(key) if isinstance(told, dict) else None for key in ("modality_keys", "delta_indices"))
    if not isinstance(names, list) or not isinstance(moments, list) or any(type(name) is not str for name in names):
        raise WireError("a modality without modality_keys or delta_indices")
    return Modality(tuple(names), len(moments), msgpack_numpy)
