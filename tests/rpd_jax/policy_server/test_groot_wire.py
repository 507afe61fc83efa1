"""Messages are what GR00T's own code writes and reads (numpy's own .npy files), and nothing else is read."""

import contextlib
import io

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rpd_jax.policy_server.groot_wire import Modality, decode, encode
from rpd_jax.policy_server.wire import WireError


@given(
    arrays.arrays(
        st.sampled_from(["u1", "<f4", ">f8", "<i8", "bool", "<f2"]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    st.booleans(),
    st.booleans(),
)
def test_arrays_come_back_as_they_were(array, msgpack_numpy, transposed):
    array = array.T if transposed else array  # .npy files know columns first
    found = decode(encode({"x": array}, msgpack_numpy=msgpack_numpy))["x"]
    assert found.dtype == array.dtype and found.shape == array.shape
    assert found.tobytes() == array.tobytes()


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def test_numpy_reads_what_is_written_and_writes_what_is_read():
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    sent = msgpack.unpackb(encode(array))
    assert set(sent) == {"__ndarray_class__", "as_npy"} and sent["__ndarray_class__"] is True
    np.testing.assert_array_equal(np.load(io.BytesIO(sent["as_npy"]), allow_pickle=False), array)
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(2, 0))
    for data in (npy(array), file.getvalue(), npy(np.asfortranarray(array))):
        np.testing.assert_array_equal(decode(msgpack.packb({"__ndarray_class__": True, "as_npy": data})), array)


@pytest.mark.parametrize("mark", ["__ModalityConfig_class__", "__ModalityConfig__"])
@pytest.mark.parametrize("told", ['{"delta_indices": [0, 1], "modality_keys": ["a", "b"]}', None])
def test_modalities_are_read_as_either_generation_writes_them(mark, told):
    told = told or {"delta_indices": [0, 1], "modality_keys": ["a", "b"], "sin_cos_embedding_keys": None}
    found = decode(msgpack.packb({"video": {mark: True, "as_json": told}}))
    assert found == {"video": Modality(("a", "b"), 2, mark == "__ModalityConfig__")}


@pytest.mark.parametrize("array", [np.array([None]), np.zeros(2, "c8"), np.zeros(2, "i4,f4"), np.array("a"), {1, 2}])
@pytest.mark.parametrize("msgpack_numpy", [False, True])
def test_what_the_protocol_does_not_have_is_not_sent(array, msgpack_numpy):
    with pytest.raises(TypeError, match="cannot be sent"):
        encode({"x": array}, msgpack_numpy=msgpack_numpy)


def in_npy(data):
    return msgpack.packb({"__ndarray_class__": True, "as_npy": data})


def with_header(header, data=bytes(28)):
    text = header.encode().ljust(117) + b"\n"
    return in_npy(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data)


def claim(shape="(1, 7)", dtype="'<f4'"):
    return with_header(f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}")


def nd(dtype="<f4", shape=(2,), data=bytes(8)):
    return msgpack.packb({b"nd": True, b"type": dtype, b"kind": b"", b"shape": shape, b"data": data})


BAD = {
    "objects": in_npy(npy(np.array([None]), allow_pickle=True)),
    "records": claim(dtype="[('a', '<f4')]"),
    "shapes inside of the type": claim(dtype="('<f4', (1099511627776,))"),
    "complex": claim(dtype="'<c8'"),
    "2^40 numbers": claim("(1099511627776, 7)"),
    "nothing times 2^62": claim("(0, 4611686018427387904)"),
    "a negative length": claim("(-1, 7)"),
    "a length that is true": claim("(True, 7)"),
    "too few": claim("(2, 7)"),
    "code": with_header("__import__('os').getpid()"),
    "no header": in_npy(b"\x93NUMPY\x01\x00"),
    "a header of another version": in_npy(b"\x93NUMPY\x09\x00" + bytes(100)),
    "a zip of arrays": in_npy(b"PK\x03\x04" + bytes(100)),
    "a pickle in place of an array": in_npy(b"\x80\x04K\x01."),
    "text in place of an array": msgpack.packb({"__ndarray_class__": True, "as_npy": "text"}),
    "msgpack-numpy's objects": nd("|O"),
    "msgpack-numpy's records": nd([["a", "<f4"]]),
    "msgpack-numpy's 2^40 numbers": nd(shape=(2**40,)),
    "msgpack-numpy without bytes": nd(data=None),
    "msgpack-numpy's scalar of two": msgpack.packb({b"nd": False, b"type": "<f4", b"data": bytes(8)}),
    "a modality of text": msgpack.packb({"__ModalityConfig__": True, "as_json": "{"}),
    "a modality without names": msgpack.packb({"__ModalityConfig__": True, "as_json": {"delta_indices": [0]}}),
    "a pickle": b"\x80\x04K\x01.",
    "nothing": b"",
    "a list of 2^32 entries that ends at once": b"\xdd\xff\xff\xff\xff",
    "a deep nest": b"\x91" * 100_000,
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_in_the_protocol_is_not_read(name):
    with pytest.raises(WireError) as refusal:
        decode(BAD[name])
    assert 10 < len(str(refusal.value)) < 200 and "\n" not in str(refusal.value)


@given(st.data(), st.booleans())
def test_any_damage_to_a_message_is_read_or_refused(data, msgpack_numpy):
    message = bytearray(encode([{"x": np.zeros((1, 2, 7), np.float32)}, {}], msgpack_numpy=msgpack_numpy))
    for place in data.draw(st.lists(st.integers(0, len(message) - 1), min_size=1, max_size=4)):
        message[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        decode(bytes(message))
