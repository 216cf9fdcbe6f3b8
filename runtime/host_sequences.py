"""Sequences as Python lists, optionals as their element or None."""

from __future__ import annotations

from typing import Any

import numpy as np

from tcompile.runtime.host_ops import OURS, HostNode, host_op


def _position(position: Any, length: int, *, end: int) -> int:
    """A position in [0, end), counted from the end of the sequence where it is negative."""
    index = int(np.asarray(position).reshape(()))
    wrapped = index + length if index < 0 else index
    if not 0 <= wrapped < end:
        raise IndexError(f"position {index} is outside of a sequence of {length} elements")
    return wrapped


def _elements(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a sequence is expected, not {'nothing' if value is None else type(value).__name__}")
    return value


@host_op("SequenceEmpty")
def sequence_empty(inputs: list[Any], node: HostNode) -> list[Any]:
    """SequenceEmpty (opset 11)."""
    return []


@host_op("SequenceConstruct")
def sequence_construct(inputs: list[Any], node: HostNode) -> list[Any]:
    """SequenceConstruct (opset 11)."""
    return list(inputs)


@host_op("SequenceInsert")
def sequence_insert(inputs: list[Any], node: HostNode) -> list[Any]:
    """SequenceInsert (opset 11): before a position, at the end by default."""
    elements = _elements(inputs[0])
    given = inputs[2] if len(inputs) > 2 else None
    at = len(elements) if given is None else _position(given, len(elements), end=len(elements) + 1)
    return [*elements[:at], inputs[1], *elements[at:]]


@host_op("SequenceErase")
def sequence_erase(inputs: list[Any], node: HostNode) -> list[Any]:
    """SequenceErase (opset 11): at a position, the last by default."""
    elements = _elements(inputs[0])
    given = inputs[1] if len(inputs) > 1 else None
    at = _position(-1 if given is None else given, len(elements), end=len(elements))
    return [*elements[:at], *elements[at + 1 :]]


@host_op("SequenceAt")
def sequence_at(inputs: list[Any], node: HostNode) -> Any:
    """SequenceAt (opset 11)."""
    elements = _elements(inputs[0])
    return elements[_position(inputs[1], len(elements), end=len(elements))]


@host_op("SequenceLength")
def sequence_length(inputs: list[Any], node: HostNode) -> np.ndarray:
    """SequenceLength (opset 11)."""
    return np.array(len(_elements(inputs[0])), np.int64)


@host_op("ConcatFromSequence")
def concat_from_sequence(inputs: list[Any], node: HostNode) -> np.ndarray:
    """ConcatFromSequence (opset 11): along an axis, or along a new one."""
    elements, axis = _elements(inputs[0]), node.get("axis")
    return np.stack(elements, axis) if node.get("new_axis", 0) else np.concatenate(elements, axis)


@host_op("SplitToSequence")
def split_to_sequence(inputs: list[Any], node: HostNode) -> list[np.ndarray]:
    """SplitToSequence (opset 11, 24): pieces of 1, of a size, or of sizes."""
    x, sizes = inputs[0], inputs[1] if len(inputs) > 1 else None
    axis = node.get("axis", 0)
    extent = x.shape[axis]
    if sizes is None:
        if node.get("keepdims", 1):
            return np.split(x, extent, axis)
        return [np.take(x, k, axis) for k in range(extent)]
    if sizes.ndim == 0:
        return np.split(x, range(int(sizes), extent, int(sizes)), axis)
    if sizes.sum() != extent:
        raise ValueError(f"pieces of {sizes.tolist()} do not make up an extent of {extent}")
    return np.split(x, np.cumsum(sizes)[:-1], axis)


@host_op("Unstack", domain=OURS)
def unstack(inputs: list[Any], node: HostNode) -> list[np.ndarray]:
    """The slices of an array along axis 0."""
    return [inputs[0][k, ...] for k in range(len(inputs[0]))]


@host_op("Optional")
def optional(inputs: list[Any], node: HostNode) -> Any:
    """Optional (opset 15): an element, or none."""
    return inputs[0] if inputs else None


@host_op("OptionalHasElement")
def optional_has_element(inputs: list[Any], node: HostNode) -> np.ndarray:
    """OptionalHasElement (opset 15, 18)."""
    return np.array(bool(inputs) and inputs[0] is not None)


@host_op("OptionalGetElement")
def optional_get_element(inputs: list[Any], node: HostNode) -> Any:
    """OptionalGetElement (opset 15, 18)."""
    if inputs[0] is None:
        raise ValueError("the optional is empty")
    return inputs[0]


@host_op("Identity")
def identity(inputs: list[Any], node: HostNode) -> Any:
    """Identity of a sequence, an optional or strings."""
    return inputs[0]
