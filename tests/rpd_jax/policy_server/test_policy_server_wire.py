"""Messages are what openpi's own packages write and read, and nothing else is read."""

import contextlib
import json
import subprocess

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rpd_jax.policy_server.observation import resized
from rpd_jax.policy_server.wire import WireError, decode, encode

# Reads a message of ours, writes its own, and says whether ours read the same.
OPENPI = """
import sys, numpy as np
from openpi_client import image_tools, msgpack_numpy
message = msgpack_numpy.unpackb(sys.stdin.buffer.read())
frames = message.pop("frames")
message["resized"] = [image_tools.resize_with_pad(frame, *size) for frame, size in zip(frames, message["sizes"])]
message["scalar"] = np.float32(0.5)
arrays = {key: value for key, value in message.items() if hasattr(value, "dtype")}
message["types"] = sorted(f"{key} {value.dtype} {value.shape}" for key, value in arrays.items())
sys.stdout.buffer.write(msgpack_numpy.packb(message))
"""


def test_openpi_s_own_package_reads_and_writes_the_same_and_resizes_the_same(python_of_openpi):
    rng = np.random.default_rng(0)
    shapes, sizes = [(128, 128), (64, 100), (100, 64), (33, 47)], [(224, 224), (224, 224), (180, 320), (31, 90)]
    frames = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    message = {"a": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.int64(3), "prompt": "pousse à gauche"}
    message |= {"empty": np.zeros((0, 7), np.float64), "flag": np.True_, "frames": frames, "sizes": sizes}
    answer = subprocess.run([python_of_openpi, "-c", OPENPI], input=encode(message), capture_output=True, check=True)
    found = decode(answer.stdout)
    types = ["a float32 (2, 3)", "b int64 ()", "empty float64 (0, 7)", "flag bool ()", "scalar float32 ()"]
    assert found["types"] == types
    np.testing.assert_array_equal(found["a"], message["a"])
    assert (found["b"], found["prompt"], found["flag"], found["scalar"]) == (3, message["prompt"], True, 0.5)
    for frame, size, theirs in zip(frames, sizes, found["resized"], strict=True):
        np.testing.assert_array_equal(resized(frame, *size, letterbox=True), theirs)


@given(
    arrays.arrays(
        st.sampled_from(["u1", "<f4", ">f8", "<i8", "bool", "<U3", "S2", "<f2"]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    )
)
def test_arrays_come_back_as_they_were(array):
    found = decode(encode({"x": array}))["x"]
    assert found.dtype == array.dtype and found.shape == array.shape
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("array", [np.array([None]), np.zeros(2, "c8"), np.zeros(2, "i4,f4"), object(), {1, 2}])
def test_what_the_protocol_does_not_have_is_not_sent(array):
    with pytest.raises(TypeError, match="cannot be sent"):
        encode({"x": array})


def claim(dtype="<f4", shape=(2,), data=bytes(8), **other):
    return msgpack.packb({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape} | other)


HUGE = 2**40
BAD = {
    "objects": claim("|O"),
    "records": claim("i4,f4"),
    "void": claim("|V8"),
    "complex": claim("<c8", (1,)),
    "a shape inside of the type": claim("(1099511627776,)f4"),
    "dates": claim("<M8[s]", (1,)),
    "no type": claim(None),
    "an unknown type": claim("f3"),
    "2^40 numbers": claim("<f4", (HUGE,)),
    "2^40 numbers of no size": claim("S0", (HUGE,), b""),
    "nothing times 2^62": claim("<f4", (0, 2**62), b""),
    "so many that the product is right in 64 bits": claim("|u1", (2**32, 2**32), b""),
    "a negative length": claim("<f4", (-1,)),
    "two negative lengths": claim("<f4", (-1, -2)),
    "a length that is true": claim("<f4", (True, 2)),
    "a length that is no whole number": claim("<f4", (2.0,)),
    "a shape that is a number": claim("<f4", 2),
    "65 dimensions": claim("<f4", (1,) * 64 + (2,)),
    "too few bytes": claim("<f4", (3,)),
    "text for bytes": claim("<f4", (2,), "12345678"),
    "bytes that are a list": claim("<f4", (2,), [0] * 8),
    "a scalar that is a list": msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}),
    "a scalar that is no number": msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}),
    "a scalar that is too large": msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}),
    "a pickle": b"\x80\x04K\x01.",
    "nothing": b"",
    "JSON": json.dumps({"actions": [0.0] * 7}).encode(),
    "a text of 2^32 bytes that ends at once": b"\xdb\xff\xff\xff\xff",
    "a list of 2^32 entries that ends at once": b"\xdd\xff\xff\xff\xff",
    "a deep nest": b"\x91" * 100_000,
    "half a message": claim()[:-3],
    "two messages": claim() + claim(),
    "text that is none": b"\xa2\xff\xff",
    "a map with numbers as keys": msgpack.packb({1: 2}),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_in_the_protocol_is_not_read(name):
    with pytest.raises(WireError) as refusal:
        decode(BAD[name])
    assert 10 < len(str(refusal.value)) < 200 and "\n" not in str(refusal.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    with contextlib.suppress(WireError):
        decode(data)


@given(st.data())
def test_any_damage_to_a_message_is_read_or_refused(data):
    message = bytearray(encode({"actions": np.zeros((2, 7), np.float32), "x": np.float64(1)}))
    for place in data.draw(st.lists(st.integers(0, len(message) - 1), min_size=1, max_size=4)):
        message[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        decode(bytes(message))
