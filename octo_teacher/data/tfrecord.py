"""TFRecord files and tf.train.Example messages, without TensorFlow.

Framing: uint64 length, its masked CRC-32C, the record, its masked CRC-32C, all little-endian; a mask turns a checksum c
into rotate_right(c, 15) + 0xa282ead8 (TensorFlow, tensorflow/core/lib/io/record_writer.h and lib/hash/crc32c.h).
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from rpd_jax.errors import UserError


def masked_crc(data: bytes) -> int:
    """The checksum that TFRecord files store, in [0, 2**32)."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path: Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file; raises UserError where it is cut off or damaged."""
    with path.open("rb") as file:
        index, size = 0, path.stat().st_size
        while header := file.read(12):
            length = _length(header, path, index)
            if length > size - file.tell():  # before memory is asked for it
                raise UserError(f"{path} is cut off in record {index}: copy it again.")
            data, footer = file.read(length), file.read(4)
            if len(data) < length or len(footer) < 4:
                raise UserError(f"{path} is cut off in record {index}: copy it again.")
            if masked_crc(data) != struct.unpack("<I", footer)[0]:
                raise UserError(f"{path} is damaged: the checksum of record {index} is wrong; copy it again.")
            yield data
            index += 1


def count_records(path: Path) -> int:
    """The number of records in a TFRecord file, by their headers alone; raises UserError as `read_records`."""
    with path.open("rb") as file:
        count, size = 0, path.stat().st_size
        while header := file.read(12):
            length = _length(header, path, count)
            if length + 4 > size - file.tell():
                raise UserError(f"{path} is cut off in record {count}: copy it again.")
            file.seek(length + 4, 1)
            count += 1
        return count


def _length(header: bytes, path: Path, index: int) -> int:
    """The length of record `index`, whose header is given."""
    if len(header) < 12:
        raise UserError(f"{path} is cut off in the header of record {index}: copy it again.")
    length, crc = struct.unpack("<QI", header)
    if masked_crc(header[:8]) != crc:
        raise UserError(f"{path} is damaged or no TFRecord file: the checksum of record {index}'s length is wrong.")
    return length


def parse_example(record: bytes) -> dict[str, np.ndarray | list[bytes]]:
    """Returns the features of a serialised tf.train.Example: float32 or int64 [n], or a list of bytes.

    Raises:
        ValueError: the bytes are no such message.
    """
    try:
        example = _EXAMPLE.FromString(record)
    except message.DecodeError as error:
        raise ValueError(str(error)) from None
    features: dict[str, np.ndarray | list[bytes]] = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        if kind == "float_list":
            features[name] = np.asarray(feature.float_list.value, np.float32)
        elif kind == "int64_list":
            features[name] = np.asarray(feature.int64_list.value, np.int64)
        else:
            features[name] = list(feature.bytes_list.value)
    return features


def _example_message() -> type[message.Message]:
    """tf.train.Example (tensorflow/core/example/{example,feature}.proto), in a pool of its own."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="example", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto

    def add(owner, name: str, number: int, kind: int, label: int = field.LABEL_OPTIONAL, of: str = "", **more) -> None:
        of = {"type_name": f".example.{of}"} if of else {}
        owner.field.add(name=name, number=number, type=kind, label=label, **of, **more)

    for name, kind in {"Bytes": field.TYPE_BYTES, "Float": field.TYPE_FLOAT, "Int64": field.TYPE_INT64}.items():
        add(file.message_type.add(name=f"{name}List"), "value", 1, kind, field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("Bytes", "Float", "Int64"), start=1):
        add(feature, f"{name.lower()}_list", number, field.TYPE_MESSAGE, of=f"{name}List", oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, of="Feature")
    add(features, "feature", 1, field.TYPE_MESSAGE, field.LABEL_REPEATED, of="Features.FeatureEntry")
    add(file.message_type.add(name="Example"), "features", 1, field.TYPE_MESSAGE, of="Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("example.Example"))


_EXAMPLE = _example_message()
