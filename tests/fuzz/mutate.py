"""Malformed files from good ones: bytes changed at random, ONNX models changed field by field, descriptors with a hash that fits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from random import Random

import onnx
from google.protobuf.message import EncodeError, Message

from tcompile.runtime.container import read_entries

NUMBERS = (0, 1, -1, 2, 7, 255, 65536, 2**31 - 1, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))
REALS = (0.0, -1.0, 1e30, float("inf"), float("-inf"), float("nan"))
_DEEPEST = 12
_HASH = 32


def mutated_bytes(rng: Random, data: bytes, other: bytes) -> bytes:
    """One to eight changes at random places; ``other`` is a file that parts may come from."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        rng.choice(_BYTE_CHANGES)(rng, made, other)
    return bytes(made)


def _place(rng: Random, made: bytearray) -> int:
    return rng.randrange(len(made)) if made else 0


def _flip(rng: Random, made: bytearray, other: bytes) -> None:
    if made:
        made[_place(rng, made)] ^= 1 << rng.randrange(8)


def _set(rng: Random, made: bytearray, other: bytes) -> None:
    if made:
        made[_place(rng, made)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(rng: Random, made: bytearray, other: bytes) -> None:
    at = _place(rng, made)
    del made[at : at + rng.choice((1, 2, 4, 16, 256, len(made)))]


def _insert(rng: Random, made: bytearray, other: bytes) -> None:
    made[_place(rng, made) : 0] = rng.randbytes(rng.choice((1, 2, 4, 16)))


def _repeat(rng: Random, made: bytearray, other: bytes) -> None:
    at = _place(rng, made)
    made[at:at] = made[at : at + rng.choice((1, 4, 32, 256))]


def _splice(rng: Random, made: bytearray, other: bytes) -> None:
    at, source = _place(rng, made), rng.randrange(len(other) or 1)
    part = other[source : source + rng.choice((4, 32, 256))]
    made[at : at + len(part)] = part


_BYTE_CHANGES: Sequence[Callable[[Random, bytearray, bytes], None]] = (_flip, _flip, _set, _set, _cut, _insert, _repeat, _splice)


def mutated_model(rng: Random, data: bytes, other: bytes) -> bytes:
    """A model with one to four fields changed: numbers, names, types, entries of lists."""
    model, donor = onnx.ModelProto.FromString(data), onnx.ModelProto.FromString(other)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change(rng, _descend(rng, model), _descend(rng, donor))
    try:
        return model.SerializeToString()
    except (EncodeError, ValueError):
        return data


def _descend(rng: Random, message: Message) -> Message:
    """A message within another one; mostly deep, in the graph."""
    for _ in range(_DEEPEST):
        inner = [part for field, value in message.ListFields() if field.message_type for part in _parts(value)]
        if not inner or rng.random() < 0.15:
            break
        message = rng.choice(inner)
    return message


def _parts(value) -> list[Message]:
    return [value] if isinstance(value, Message) else list(value)[:200]


def _change(rng: Random, message: Message, donor: Message) -> None:
    """Changes a field that is set, clears one, or takes all of another message of its kind."""
    if type(message) is type(donor) and rng.random() < 0.2:
        message.CopyFrom(donor)
        return
    fields = message.ListFields()
    if not fields:
        return
    field, value = rng.choice(fields)
    if rng.random() < 0.1:
        message.ClearField(field.name)
    elif not isinstance(value, str | bytes | int | float | Message):
        _change_list(rng, field, value)
    elif not field.message_type:
        _assign(rng, field, lambda new: setattr(message, field.name, new), value)


def _change_list(rng: Random, field, values) -> None:
    at = rng.randrange(len(values))
    match rng.choice(("drop", "swap", "repeat", "change")):
        case "drop":
            del values[at]
        case "repeat":
            values.extend([values[at]] * rng.choice((1, 1, 3)))
        case "swap" if not field.message_type:
            other = rng.randrange(len(values))
            values[at], values[other] = values[other], values[at]
        case _ if not field.message_type:
            _assign(rng, field, lambda new: values.__setitem__(at, new), values[at])


def _assign(rng: Random, field, put: Callable[[object], None], old) -> None:
    """Another value of the field's type."""
    try:
        if isinstance(old, bool | int):
            put(rng.choice((*NUMBERS, old + 1, old - 1, rng.randrange(32))))
        elif isinstance(old, float):
            put(rng.choice(REALS))
        elif isinstance(old, str):
            put(rng.choice(("", "x", old + "_", old[:-1], "\x00", *_WORDS)))
        elif isinstance(old, bytes):
            put(rng.choice((b"", old[:-1], old + b"\x00", old[1:], mutated_bytes(rng, old, old))))
    except ValueError:  # a number that the field does not hold
        return


_WORDS = (
    "Add",
    "Conv",
    "Gather",
    "Reshape",
    "Loop",
    "If",
    "Resize",
    "Concat",
    "Slice",
    "axis",
    "axes",
    "shape",
    "kernel_shape",
    "ai.onnx.ml",
)


def mutated_descriptor(rng: Random, data: bytes, other: bytes) -> bytes:
    """An artifact whose descriptor is changed and has a hash that fits, so that its parser must find the fault."""
    made = bytearray(data)
    extent = read_entries(memoryview(made))["descriptor.bin"]
    body = made[extent.offset : extent.offset + extent.size - _HASH]
    for _ in range(rng.choice((1, 1, 2, 4))):
        change = rng.choice((_flip, _set, _wide))
        change(rng, body, other)
    made[extent.offset : extent.offset + extent.size] = body + hashlib.sha256(body).digest()
    return bytes(made)


def _wide(rng: Random, made: bytearray, other: bytes) -> None:
    """A whole number of four or eight bytes."""
    size = rng.choice((4, 8))
    at = rng.randrange(max(len(made) - size, 0) // 4 + 1) * 4
    made[at : at + size] = (rng.choice(NUMBERS) % 2 ** (8 * size)).to_bytes(size, "little")[: len(made) - at]
