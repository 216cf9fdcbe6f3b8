"""ONNX operators about shapes: queries, reshapes, broadcasts, constants and ranges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tcompile.ir import dims, dtypes
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import F32, I64
from tcompile.ir.graph import Value
from tcompile.ir.onnx_axes import RunTimeAxes, unsqueeze_run_time
from tcompile.ir.onnx_context import HostConstant, Item, OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term, number

# Queries ----------------------------------------------------------------------------------------------


@onnx_op("Shape")
def import_shape(ctx: OpContext) -> Item:
    """The extents from ``start`` to ``end`` (opset 15), as i64."""
    item = ctx.item(0)
    shape = item.array.shape if isinstance(item, HostConstant) else ctx.input(0).shape
    start, end = ctx.attr("start", 0), ctx.attr("end", None)
    return ctx.builder.dim(shape[_clamped(start, len(shape)) : _clamped(len(shape) if end is None else end, len(shape))])


def _clamped(index: int, rank: int) -> int:
    return min(max(index + rank if index < 0 else index, 0), rank)


@onnx_op("Size")
def import_size(ctx: OpContext) -> Item:
    """The number of elements, as an i64 scalar."""
    item = ctx.item(0)
    return ctx.builder.dim(item.array.size if isinstance(item, HostConstant) else ctx.input(0).type.size)


# The same elements under another shape ----------------------------------------------------------------


@onnx_op("Reshape", since=5)
def import_reshape(ctx: OpContext) -> Item:
    """0 copies an input extent (unless ``allowzero``), -1 takes what is left."""
    x = ctx.input(0)
    if ctx.input(1).rank != 1 or not isinstance(ctx.input(1).shape[0], int):
        ctx.invalid(f"its shape operand has the type {ctx.input(1).type}", hint="it must have rank 1 and a constant length")
    known = ctx.known(1)
    if known is None:
        return ctx.builder.reshape(x, _run_time_shape(ctx, x))
    shape = list(known)
    if not ctx.attr("allowzero", 0):
        if any(extent == 0 and k >= x.rank for k, extent in enumerate(shape)):
            ctx.invalid(f"the shape {_text(shape)} copies an extent that the input {x.type} does not have")
        shape = [x.shape[k] if extent == 0 else extent for k, extent in enumerate(shape)]
    return ctx.builder.reshape(x, _with_inferred(ctx, x, shape))


def _run_time_shape(ctx: OpContext, x: Value) -> list[DimLike]:
    """A shape of which the run decides a part: 0 and -1 are resolved there, too."""
    b = ctx.builder
    shape = Term(b, ctx.input(1)).convert(I64)
    if not ctx.attr("allowzero", 0):
        length = ctx.input(1).shape[0]
        copied = b.dim([x.shape[k] if k < x.rank else 0 for k in range(length)])
        shape = shape.equals(0).where(Term(b, copied), shape)
    free = shape.equals(-1)
    rest = free.where(Term(b, b.dim([1] * shape.shape[0])), shape).reduce("mul", [0])
    quotient = number(b, x.type.size, I64).map("div", rest.map("max", 1))
    return ctx.expressions(free.where(quotient, shape).value, "reshaped")


def _with_inferred(ctx: OpContext, x: Value, shape: list[DimLike]) -> list[DimLike]:
    """The shape with -1 replaced by the size that is left, an expression where no division is exact."""
    if shape.count(-1) > 1 or any(isinstance(extent, int) and extent < -1 for extent in shape):
        ctx.invalid(f"the shape {_text(shape)} is none", hint="at most one extent may be -1")
    if -1 not in shape:
        return shape
    rest = dims.product(extent for extent in shape if extent != -1)
    if rest == 0:
        return [0 if extent == -1 else extent for extent in shape]
    if isinstance(x.type.size, int) and isinstance(rest, int) and x.type.size % rest:
        ctx.invalid(f"{x.type} cannot be reshaped to {_text(shape)}")
    return [_quotient(ctx, x, shape) if extent == -1 else extent for extent in shape]


def _quotient(ctx: OpContext, x: Value, shape: list[DimLike]) -> DimLike:
    """The extent of -1. Equal factors cancel first, which also keeps 0 / 0 away for empty tensors."""
    above, below = list(x.shape), [extent for extent in shape if extent != -1]
    for extent in list(below):
        if extent in above:
            above.remove(extent)
            below.remove(extent)
    return dims.floordiv(dims.product(above), dims.product(below), ctx.builder.symbols)


def _text(shape: list[DimLike]) -> str:
    return f"[{', '.join(map(str, shape))}]"


@onnx_op("Flatten")
def import_flatten(ctx: OpContext) -> Item:
    """A matrix: the axes before ``axis``, and those from it on."""
    x, axis = ctx.input(0), ctx.attr("axis")
    if not -x.rank <= axis <= x.rank:
        ctx.invalid(f"the axis {axis} is outside of rank {x.rank}")
    axis = axis + x.rank if axis < 0 else axis
    return ctx.builder.reshape(x, (dims.product(x.shape[:axis]), dims.product(x.shape[axis:])))


@onnx_op("Squeeze")
def import_squeeze(ctx: OpContext) -> Item:
    """Drops axes of extent 1: the given ones, or all that are 1."""
    x = ctx.input(0)
    if ctx.has(1) and ctx.known(1) is None:
        return RunTimeAxes(ctx, Term(ctx.builder, x), ctx.input(1)).drop(Term(ctx.builder, x)).value
    axes = ctx.axes_operand(1, "axes", x.rank)
    if axes is None:
        axes = [k for k, extent in enumerate(x.shape) if extent == 1]
    wrong = next((k for k in axes if isinstance(x.shape[k], int) and x.shape[k] != 1), None)
    if wrong is not None:
        ctx.invalid(f"axis {wrong} of {x.type} has the extent {x.shape[wrong]}, not 1")
    return ctx.builder.reshape(x, [extent for k, extent in enumerate(x.shape) if k not in axes])


@onnx_op("Unsqueeze")
def import_unsqueeze(ctx: OpContext) -> Item:
    """New axes of extent 1 at the given positions of the result."""
    x = ctx.input(0)
    if ctx.has(1) and ctx.known(1) is None:
        return unsqueeze_run_time(ctx, Term(ctx.builder, x), ctx.input(1)).value
    raw = ctx.known(1) if ctx.has(1) else ctx.attr("axes", ())
    count = len(raw) if isinstance(raw, Sequence) else 1
    axes = ctx.axes_operand(1, "axes", x.rank + count)
    if axes is None or len(set(axes)) != count:
        ctx.invalid(f"the axes {axes} are missing or repeated")
    rest = iter(x.shape)
    return ctx.builder.reshape(x, [1 if k in axes else next(rest) for k in range(x.rank + count)])


@onnx_op("Identity")
def import_identity(ctx: OpContext) -> Item:
    """The operand itself: a tensor, sequence, optional or string."""
    return ctx.item(0)


@onnx_op("Dropout")
def import_dropout(ctx: OpContext) -> tuple[Item, ...]:
    """The identity and a mask of ones; in training mode, elements dropped by a counter-based generator."""
    x, b = ctx.input(0), ctx.builder
    if ctx.opset < 7 and not ctx.attr("is_test", 0):
        ctx.fail("dropout in training mode is not supported", hint="export the model for inference")
    training = ctx.constant(2)
    if ctx.has(2) and (training is None or training.item()):
        return _training_dropout(ctx, Term(b, x))
    if not ctx.wants(1):
        return (x,)
    return x, b.broadcast_to(b.constant(True, dtypes.BOOL if ctx.opset >= 10 else x.dtype), x.shape)


def _training_dropout(ctx: OpContext, x: Term) -> tuple[Item, ...]:
    """x / (1 - ratio) where a uniform number is at least the ratio, else 0."""
    b = ctx.builder
    ratio = Term(b, b.reshape(ctx.input(1), ())).convert(F32) if ctx.has(1) else Term(b, b.constant(0.5, F32))
    bits = Term(b, b.emit("rng_bits", shape=x.shape, seed=ctx.attr("seed", 0) or 0))
    uniform = bits.map("shr", 8).convert(F32) * 2.0**-24
    kept = (uniform >= ratio) | ~Term(b, b.reshape(ctx.input(2), ()))
    scale = Term(b, b.reshape(ctx.input(2), ())).where(1 / (1 - ratio), 1.0)
    return kept.where(x * scale.convert(x.dtype), 0).value, kept.value


# Broadcasts and repetition ----------------------------------------------------------------------------


@onnx_op("Expand")
def import_expand(ctx: OpContext) -> Item:
    """Two-way broadcasting with the shape operand: an extent of 1 there keeps the input's."""
    x, shape = ctx.input(0), tuple(ctx.shape_operand(1, "expanded"))
    return ctx.builder.broadcast_to(x, ctx.builder.broadcast_shape(x.shape, shape))


@onnx_op("Tile", since=6)
def import_tile(ctx: OpContext) -> Item:
    """Repeats each axis: [d] -> [1, d] -> [r, d] -> [r d]."""
    x, repeats = ctx.input(0), ctx.shape_operand(1, "repeats")
    if len(repeats) != x.rank:
        ctx.invalid(f"{len(repeats)} repeats are given for {x.type}")
    b = ctx.builder
    repeated = [k for k, count in enumerate(repeats) if count != 1]
    split, target, axes = [], [], []
    for k, extent in enumerate(x.shape):
        if k in repeated:
            split.append(1)
            target.append(repeats[k])
        axes.append(len(target))
        split.append(extent)
        target.append(extent)
    if not repeated:
        return x
    wide = b.emit("broadcast", x, shape=tuple(target), axes=tuple(axes))
    return b.reshape(wide, [extent * count for extent, count in zip(x.shape, repeats, strict=True)])


# Constants --------------------------------------------------------------------------------------------


@onnx_op("Constant")
def import_constant(ctx: OpContext) -> Item:
    """The value attribute that is there: a tensor, a sparse tensor, numbers or strings."""
    names = ("value", "sparse_value", "value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings")
    given = [name for name in names if ctx.has_attr(name)]
    if len(given) != 1:
        ctx.invalid(f"it needs exactly one value attribute and has {given}")
    raw = ctx.attr(given[0])
    if "string" in given[0]:
        return HostConstant(np.array(raw, object))
    types = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return ctx.scope.constant(np.asarray(raw, types.get(given[0])))


@onnx_op("ConstantOfShape", since=9)
def import_constant_of_shape(ctx: OpContext) -> Item:
    """A tensor filled with the one element of ``value`` (0.0 by default)."""
    value = ctx.attr("value")
    fill = np.zeros((), np.float32) if value is None else np.asarray(value)
    if fill.size != 1:
        ctx.invalid(f"its value has {fill.size} elements, not one")
    if fill.dtype == object:
        ctx.fail("string tensors are not supported")
    return ctx.builder.broadcast_to(ctx.builder.constant(fill.reshape(())), ctx.shape_operand(0, "filled"))


@onnx_op("EyeLike", since=9)
def import_eye_like(ctx: OpContext) -> Item:
    """Ones on the diagonal k of a matrix of the operand's shape."""
    x, b = ctx.input(0), ctx.builder
    if x.rank != 2:
        ctx.invalid(f"its input has the type {x.type}, and must be a matrix")
    dtype = dtypes.from_onnx(ctx.attr("dtype")) if ctx.has_attr("dtype") else x.dtype
    rows, columns = Term(b, b.iota(x.shape, 0)), Term(b, b.iota(x.shape, 1))
    return (rows + ctx.attr("k")).equals(columns).convert(dtype).value


@onnx_op("Range", since=11)
def import_range(ctx: OpContext) -> Item:
    """start + i * delta for i < max(0, ceil((limit - start) / delta))."""
    b, dtype = ctx.builder, ctx.input(0).dtype
    start, delta = (Term(b, b.reshape(ctx.input(k), ())) for k in (0, 2))
    count = _range_count(ctx)
    if dtype.is_integer or dtype.bits >= 32:
        return (Term(b, b.iota((count,), 0, dtype)) * delta + start).value
    index = Term(b, b.iota((count,), 0, dtypes.F32))
    return (index * delta.convert(dtypes.F32) + start.convert(dtypes.F32)).convert(dtype).value


def _range_count(ctx: OpContext) -> DimLike:
    b = ctx.builder
    start, limit, delta = (Term(b, b.reshape(ctx.input(k), ())) for k in range(3))
    if start.dtype.is_integer:
        known = [b.contents.get(term.convert(I64).value) for term in (start, limit, delta)]
        if all(content is not None for content in known) and isinstance(step := known[2].item(), int) and step:
            first, last = (content.item() for content in known[:2])
            length = last - first if step > 0 else first - last
            return dims.maximum(0, dims.ceildiv(length, abs(step), b.symbols), b.symbols)
        first, last, step = (term.convert(I64) for term in (start, limit, delta))
        # ceil(a / d) == -floor(-a / d)
        turns = -((first - last) // step)
    else:
        wide = [term.convert(dtypes.F64) for term in (start, limit, delta)]
        turns = ((wide[1] - wide[0]) / wide[2]).map("ceil").convert(I64)
    return b.bind_dim(turns.map("max", number(b, 0, I64)).value, "range")
