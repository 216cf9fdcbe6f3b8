"""ONNX files without their tensors' data: large ``raw_data`` stays in the file, where it can be mapped.

Parsing a model with protobuf copies all of it. Here the file is walked first, and each large tensor of the graph gets
``external_data`` that tells where in the file its bytes stand.

Source: the protobuf wire format (varints, lengths); field numbers of ``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import StringStringEntryProto, TensorProto

SMALLEST = 1 << 16  # bytes of data that are worth it
INSIDE = "tcompile.offset"  # key of external data: where the tensor's bytes begin in the model's own file
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_RAW_DATA, _TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 9, 13, 14
_LENGTH = 2  # wire type of strings, bytes and messages
_FIXED = {1: 8, 5: 4}

Field = tuple[int, int, int, int]  # number, start of the field, start and end of its payload


def without_data(data: memoryview) -> bytes | None:
    """A model's bytes with the data of large initializers left out; None for what is no protobuf."""
    try:
        return b"".join(_replaced(data, 0, len(data), _MODEL_GRAPH, _graph))
    except (ValueError, IndexError):
        return None


def _graph(data: memoryview, start: int, end: int) -> bytes:
    return b"".join(_replaced(data, start, end, _GRAPH_INITIALIZER, _tensor))


def _tensor(data: memoryview, start: int, end: int) -> bytes:
    if end - start < SMALLEST:
        return bytes(data[start:end])
    parts, place = [], None
    for number, first, begin, stop in _fields(data, start, end):
        if number == _TENSOR_RAW_DATA and stop - begin >= SMALLEST:
            place = begin, stop - begin
        else:
            parts.append(bytes(data[first:stop]))
    if place is None:
        return b"".join(parts)
    outside = TensorProto(data_location=TensorProto.EXTERNAL)
    for key, value in ((INSIDE, place[0]), ("length", place[1])):
        outside.external_data.append(StringStringEntryProto(key=key, value=str(value)))
    return b"".join(parts) + outside.SerializeToString()


def _replaced(data: memoryview, start: int, end: int, wanted: int, make) -> Iterator[bytes]:
    """A message with what ``make`` gives for the fields of one number."""
    for number, first, begin, stop in _fields(data, start, end):
        if number == wanted:
            content = make(data, begin, stop)
            yield _varint_bytes(number << 3 | _LENGTH) + _varint_bytes(len(content)) + content
        else:
            yield bytes(data[first:stop])


def _fields(data: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of a message. Raises ValueError for one that does not end where it should, IndexError past the data."""
    at = start
    while at < end:
        first = at
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _LENGTH:
            size, at = _varint(data, at)
        elif kind == 0:
            size = _varint(data, at)[1] - at
        else:
            size = _FIXED.get(kind, -1)
        if size < 0 or at + size > end:
            raise ValueError("not a protobuf message")
        yield tag >> 3, first, at, at + size
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("not a protobuf number")


def _varint_bytes(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
