"""ONNX sequences and optionals. They exist at import time only: a sequence is its elements, an optional is there or not.

A sequence that a loop built has a run-time length: it is a stack of its elements along a new axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import GrowingSequence, HostConstant, Item, OpContext, OptionalValue, SequenceValue, StackedSequence
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term

_TABLE_LENGTH = 1024  # elements of the longest sequence that a run-time position may index


def _opened(item: Item | None) -> Item | None:
    return item.element if isinstance(item, OptionalValue) else item


@onnx_op("SequenceEmpty", since=11)
def sequence_empty(ctx: OpContext) -> SequenceValue:
    """SequenceEmpty (opset 11)."""
    number = ctx.attr("dtype", None)
    return SequenceValue((), dtypes.F32 if number is None else dtypes.from_onnx(number))


@onnx_op("SequenceConstruct", since=11)
def sequence_construct(ctx: OpContext) -> SequenceValue:
    """SequenceConstruct (opset 11)."""
    return SequenceValue(tuple(ctx.item(k) for k in range(ctx.input_count)))


def _position(ctx: OpContext, k: int, length: int, *, end: int) -> int:
    """Operand k as a constant position in [0, end), counted from the end where it is negative."""
    position = ctx.known(k)
    if isinstance(position, tuple):
        (position,) = position
    if not isinstance(position, int):
        ctx.fail("the position in a sequence is computed at run time", hint="sequences are resolved when compiling")
    wrapped = position + length if position < 0 else position
    if not 0 <= wrapped < end:
        ctx.invalid(f"position {position} is outside of a sequence of {length} elements")
    return wrapped


@onnx_op("SequenceInsert", since=11)
def sequence_insert(ctx: OpContext) -> Item:
    """SequenceInsert (opset 11): at a constant position, at the end by default."""
    sequence, element = _opened(ctx.item(0)), ctx.item(1)
    if isinstance(sequence, GrowingSequence):
        if ctx.has(2):
            ctx.fail("a loop inserts into a sequence at a position", hint="only appending at the end is supported")
        return GrowingSequence((*sequence.appended, ctx.input(1)), sequence.dtype)
    elements = ctx.sequence(0)
    position = _position(ctx, 2, len(elements), end=len(elements) + 1) if ctx.has(2) else len(elements)
    return SequenceValue((*elements[:position], element, *elements[position:]))


@onnx_op("SequenceErase", since=11)
def sequence_erase(ctx: OpContext) -> SequenceValue:
    """SequenceErase (opset 11): at a constant position, the last by default."""
    elements = ctx.sequence(0)
    position = _position(ctx, 1, len(elements), end=len(elements)) if ctx.has(1) else len(elements) - 1
    return SequenceValue((*elements[:position], *elements[position + 1 :]))


@onnx_op("SequenceLength", since=11)
def sequence_length(ctx: OpContext) -> Value:
    """SequenceLength (opset 11)."""
    sequence = _opened(ctx.item(0))
    return ctx.builder.dim(sequence.stack.shape[0] if isinstance(sequence, StackedSequence) else len(ctx.sequence(0)))


@onnx_op("SequenceAt", since=11)
def sequence_at(ctx: OpContext) -> Item:
    """SequenceAt (opset 11); a run-time position needs elements of one type."""
    sequence = _opened(ctx.item(0))
    if not isinstance(sequence, StackedSequence):
        elements = ctx.sequence(0)
        if ctx.constant(1) is not None:
            return elements[_position(ctx, 1, len(elements), end=len(elements))]
        sequence = StackedSequence(_stack(ctx, elements).value)
    stack = Term(ctx.builder, sequence.stack)
    position = Term(ctx.builder, ctx.input(1)).reshape().convert(dtypes.I64)
    return stack.take((position < 0).where(position + stack.shape[0], position), 0).value


def _stack(ctx: OpContext, elements: Sequence[Item]) -> Term:
    """Elements of one type along a new axis 0."""
    values = [element for element in elements if isinstance(element, Value)]
    if not values or len(values) < len(elements) or len({value.type for value in values}) > 1 or len(values) > _TABLE_LENGTH:
        ctx.fail("the elements of the sequence differ in type", hint="sequences are resolved when compiling")
    b = ctx.builder
    return Term(b, b.concat([b.reshape(value, (1, *value.shape)) for value in values], 0))


@onnx_op("ConcatFromSequence", since=11)
def concat_from_sequence(ctx: OpContext) -> Value:
    """ConcatFromSequence (opset 11): along an axis, or along a new one."""
    b, fresh = ctx.builder, bool(ctx.attr("new_axis", 0))
    sequence = _opened(ctx.item(0))
    if isinstance(sequence, StackedSequence):
        return _joined_stack(ctx, Term(b, sequence.stack), fresh=fresh)
    values = ctx.sequence(0)
    if not values:
        ctx.fail("ConcatFromSequence of a sequence that is empty")
    if not all(isinstance(value, Value) for value in values):
        ctx.fail("ConcatFromSequence of elements that are no tensors")
    axis = ctx.axis(ctx.attr("axis"), values[0].rank + fresh)
    if fresh:
        values = [b.reshape(value, (*value.shape[:axis], 1, *value.shape[axis:])) for value in values]
    return b.concat(values, axis)


def _joined_stack(ctx: OpContext, stack: Term, *, fresh: bool) -> Value:
    """[n, ...] -> the new axis put in its place, and merged with the next where the elements are joined along it."""
    axis = ctx.axis(ctx.attr("axis"), stack.rank - 1 + fresh)
    order = [*range(1, stack.rank)]
    order.insert(axis, 0)
    moved = stack.transpose(*order)
    if fresh:
        return moved.value
    shape = moved.shape
    return moved.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]).value


@onnx_op("SplitToSequence", since=11)
def split_to_sequence(ctx: OpContext) -> Item:
    """SplitToSequence (opset 11, 24): pieces of 1, of a constant size, or of constant sizes."""
    x = Term(ctx.builder, ctx.input(0))
    axis = ctx.axis(ctx.attr("axis", 0), x.rank)
    keep = bool(ctx.attr("keepdims", 1)) or ctx.has(1)
    extent = x.shape[axis]
    sizes = ctx.known(1) if ctx.has(1) else 1
    if sizes is None and ctx.input(1).rank == 1:
        sizes = tuple(ctx.shape_operand(1, "piece"))
    if sizes is None:
        ctx.fail("the size of the pieces is computed at run time, and so is their number", hint="sequences are resolved when compiling")
    if not isinstance(sizes, tuple):
        if not isinstance(extent, int) or not isinstance(sizes, int):
            return _unstacked(ctx, x, axis, sizes, keep=keep)
        sizes = tuple(min(sizes, extent - start) for start in range(0, extent, sizes))
    pieces, start = [], 0
    for size in sizes:
        piece = x.part(axis, start, size) if keep else x.at(axis, start)
        pieces.append(piece.value)
        start = start + size
    return SequenceValue(tuple(pieces), x.dtype)


def _unstacked(ctx: OpContext, x: Term, axis: int, size: DimLike, *, keep: bool) -> StackedSequence:
    """Single slices of a symbolic axis, as a stack."""
    if size != 1:
        ctx.fail(f"a symbolic extent {x.shape[axis]} is split into pieces of {size}", hint="pieces of 1 are supported")
    stack = x.transpose(axis, *(k for k in range(x.rank) if k != axis))
    return StackedSequence((stack.expand(axis + 1) if keep else stack).value)


@onnx_op("SequenceMap", since=17)
def sequence_map(ctx: OpContext) -> list[Item]:
    """SequenceMap (opset 17): the body once per element; operands that are tensors go to every turn."""
    operands = [ctx.item(k) for k in range(ctx.input_count)]
    if any(isinstance(_opened(operand), StackedSequence) for operand in operands):
        ctx.fail("SequenceMap over a sequence whose length is known at run time only")
    columns: list[list[Item]] = [[] for _ in range(ctx.output_count)]
    for k in range(len(ctx.sequence(0))):
        row = [operand.elements[k] if isinstance(operand, SequenceValue) else operand for operand in operands]
        for column, item in zip(columns, ctx.inline("body", row), strict=True):
            column.append(item)
    return [SequenceValue(tuple(column)) for column in columns]


# Optionals ------------------------------------------------------------------------------------------------------


@onnx_op("Optional", since=15)
def optional(ctx: OpContext) -> OptionalValue:
    """Optional (opset 15): of an element, or empty."""
    return OptionalValue(ctx.item(0))


@onnx_op("OptionalHasElement", since=15)
def optional_has_element(ctx: OpContext) -> Value:
    """OptionalHasElement (opset 15, 18): known at import time."""
    item = ctx.item(0)
    there = item.element is not None if isinstance(item, OptionalValue) else item is not None
    return ctx.builder.known(np.array(there), dtypes.BOOL)


@onnx_op("OptionalGetElement", since=15)
def optional_get_element(ctx: OpContext) -> Item:
    """OptionalGetElement (opset 15, 18)."""
    item = _opened(ctx.item(0))
    if item is None:
        ctx.invalid("the optional is empty")
    return item


# Items as lists of tensors --------------------------------------------------------------------------------------


def tensors_of(ctx: OpContext, item: Item | None) -> list[Value]:
    """The tensors in an item, in an order that ``like`` knows. Raises UnsupportedError for what holds no tensors."""
    if isinstance(item, Value):
        return [item]
    if isinstance(item, StackedSequence):
        return [item.stack]
    if isinstance(item, SequenceValue):
        return [value for element in item.elements for value in tensors_of(ctx, element)]
    if isinstance(item, OptionalValue):
        return [] if item.element is None else tensors_of(ctx, item.element)
    ctx.fail("strings, or a sequence that is built at run time, cross the border of a subgraph")


def like(item: Item, values: list[Value]) -> Item:
    """The item with its tensors replaced: takes them from the front of ``values``."""
    if isinstance(item, SequenceValue):
        return SequenceValue(tuple(like(element, values) for element in item.elements), item.dtype)
    if isinstance(item, OptionalValue):
        return OptionalValue(None if item.element is None else like(item.element, values))
    return StackedSequence(values.pop(0)) if isinstance(item, StackedSequence) else values.pop(0)


def same_structure(a: Item, b: Item) -> bool:
    """Whether two items hold tensors in the same places."""
    if isinstance(a, SequenceValue) and isinstance(b, SequenceValue):
        return len(a.elements) == len(b.elements) and all(map(same_structure, a.elements, b.elements))
    if isinstance(a, OptionalValue) and isinstance(b, OptionalValue):
        return (a.element is None) == (b.element is None) and (a.element is None or same_structure(a.element, b.element))
    return type(a) is type(b) and not isinstance(a, HostConstant)
