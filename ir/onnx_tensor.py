"""ONNX operators that cut, join, pad and rearrange tensors."""

from __future__ import annotations

import numpy as np

from tcompile.ir import dims, dtypes
from tcompile.ir.dims import Dim, DimLike
from tcompile.ir.dtypes import I64
from tcompile.ir.graph import Value
from tcompile.ir.onnx_axes import by_axis, spread
from tcompile.ir.onnx_context import Item, OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term, number

_ENDLESS = 10**9  # "to the end": tf2onnx writes this, others the largest i32 or i64; no axis is as long

# Join and split ---------------------------------------------------------------------------------------


@onnx_op("Concat", since=4)
def import_concat(ctx: OpContext) -> Item:
    """Joins tensors along ``axis``."""
    values = ctx.tensors()
    if not values:
        ctx.invalid("it needs at least one input")
    return ctx.builder.concat(values, ctx.axis(ctx.attr("axis"), values[0].rank))


@onnx_op("Split", since=2)
def import_split(ctx: OpContext) -> list[Item]:
    """Consecutive parts of an axis: of given sizes, or as equal as ``num_outputs`` (else the node's outputs) allow."""
    x = ctx.input(0)
    axis = ctx.axis(ctx.attr("axis"), x.rank)
    parts, start = [], 0
    for size in _split_sizes(ctx, x.shape[axis]):
        parts.append(ctx.builder.slice_axis(x, axis, start, size))
        start = start + size
    return parts


def _split_sizes(ctx: OpContext, extent: DimLike) -> list[DimLike]:
    given = ctx.shape_operand(1, "part") if ctx.has(1) else ctx.attr("split", None)
    if given is not None:
        total = sum(given, start=0)
        if len(given) != ctx.output_count or (isinstance(total - extent, int) and total != extent):
            ctx.invalid(f"the parts {given} do not make {ctx.output_count} outputs of an extent of {extent}")
        return list(given)
    count = ctx.attr("num_outputs", None) or ctx.output_count
    if count != ctx.output_count:
        ctx.invalid(f"num_outputs is {count}, and the node has {ctx.output_count} outputs")
    if ctx.opset < 18 and isinstance(extent, int) and extent % count:
        ctx.invalid(f"an extent of {extent} does not split into {count} equal parts")
    symbols = ctx.builder.symbols
    size = dims.ceildiv(extent, count, symbols)
    # the last parts take what is left
    return [dims.maximum(0, dims.minimum(size, extent - size * k, symbols), symbols) if k else size for k in range(count)]


# Slice ------------------------------------------------------------------------------------------------


@onnx_op("Slice", since=1)
def import_slice(ctx: OpContext) -> Item:
    """NumPy's slicing of the given axes; operands from opset 10 on, attributes before."""
    x = ctx.input(0)
    starts, ends, axes, steps = _slice_operands(ctx, x)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        ctx.invalid(f"it has {len(starts)} starts, {len(ends)} ends, {len(axes)} axes and {len(steps)} steps")
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        x = _slice_axis(ctx, x, ctx.axis(axis, x.rank), start, end, step)
    return x


def _slice_operands(ctx: OpContext, x: Value) -> tuple[list[DimLike], list[DimLike], list[int], list[DimLike]]:
    """Starts, ends, axes and steps. Axes that the run decides become all axes, with defaults for those not named."""
    if ctx.opset < 10:
        starts, ends = ctx.attr("starts"), ctx.attr("ends")
        return starts, ends, ctx.attr("axes", None) or list(range(len(starts))), [1] * len(starts)
    values = [ctx.input(1), ctx.input(2), ctx.optional(4)]
    axes = ctx.known(3) if ctx.has(3) else None
    if ctx.has(3) and axes is None:
        defaults: list[list[DimLike]] = [[0] * x.rank, list(x.shape), [1] * x.rank]
        values = [spread(ctx, ctx.input(3), v, default) if v is not None else None for v, default in zip(values, defaults, strict=True)]
    starts, ends = ctx.expressions(values[0], "start", signed=True), ctx.expressions(values[1], "end", signed=True)
    steps = [1] * len(starts) if values[2] is None else ctx.expressions(values[2], "step", signed=True)
    return starts, ends, list(range(len(starts))) if axes is None else list(axes), steps


def _slice_axis(ctx: OpContext, x: Value, axis: int, start: DimLike, end: DimLike, step: DimLike) -> Value:
    if step == 0:
        ctx.invalid("a step is 0")
    if isinstance(step, Dim):
        return _slice_any_step(ctx, x, axis, start, end, step)
    first, size = _slice_extent(ctx, x.shape[axis], start, end, step)
    return ctx.builder.slice_axis(x, axis, first, size, step)


def _slice_any_step(ctx: OpContext, x: Value, axis: int, start: DimLike, end: DimLike, step: Dim) -> Value:
    """A step that the run decides: its sign picks the start, and the elements are gathered."""
    b, extent = ctx.builder, x.shape[axis]
    backwards = negative(step)
    up, down = (_bounds(ctx, extent, start, end, sign) for sign in (1, -1))
    first, last = (a + backwards * (c - a) for a, c in zip(up, down, strict=True))
    stride = step * (1 - backwards * 2)
    distance = (last - first) * (1 - backwards * 2)
    size = b.shorten(dims.maximum(0, dims.ceildiv(distance, dims.maximum(1, stride))), "sliced", 0, extent)
    index = Term(b, b.iota((size,))) * number(b, step, I64) + number(b, first, I64)
    return b.emit("gather", x, index.value, axis=axis)


def _slice_extent(ctx: OpContext, extent: DimLike, start: DimLike, end: DimLike, step: int) -> tuple[DimLike, DimLike]:
    """The first element and the count of ``start:end:step``."""
    symbols = ctx.builder.symbols
    first, last = _bounds(ctx, extent, start, end, step)
    distance = _distance(ctx, first, last) if step > 0 else _distance(ctx, last, first)
    size = dims.maximum(0, dims.ceildiv(distance, abs(step), symbols), symbols)
    if ctx.is_run_time(first, size):
        size = ctx.builder.shorten(size, "sliced", 0, extent)
    return first, size


def _distance(ctx: OpContext, low: DimLike, high: DimLike) -> DimLike:
    # n - max(0, n - 1) == min(n, 1), of which more can be proved
    parts = dims.arguments(low, "max")
    symbols = ctx.builder.symbols
    return dims.minimum(high - parts[0], high - parts[1], symbols) if parts else high - low


def _bounds(ctx: OpContext, extent: DimLike, start: DimLike, end: DimLike, step: int) -> tuple[DimLike, DimLike]:
    # NumPy: both ends are kept in [0, d] going up, in [-1, d - 1] going down
    low, high = (0, extent) if step > 0 else (-1, extent - 1)
    return tuple(_clamped_index(ctx, index, extent, low, high) for index in (start, end))


def _clamped_index(ctx: OpContext, index: DimLike, extent: DimLike, low: DimLike, high: DimLike) -> DimLike:
    symbols = ctx.builder.symbols
    if isinstance(index, int) and abs(index) >= _ENDLESS:
        return high if index > 0 else low
    if dims.nonnegative(-1 - index, symbols):
        return dims.maximum(low, index + extent, symbols)
    if not dims.nonnegative(index, symbols):
        index = index + extent * negative(index)
        return dims.maximum(low, dims.minimum(index, high, symbols), symbols)
    return dims.minimum(index, high, symbols)


def negative(d: DimLike) -> DimLike:
    """1 where d < 0, else 0, as an expression."""
    return -dims.maximum(-1, dims.minimum(0, d))


# Transpose, blocks ------------------------------------------------------------------------------------


@onnx_op("Transpose")
def import_transpose(ctx: OpContext) -> Item:
    """Axes in the order of ``perm``, reversed without it."""
    x = ctx.input(0)
    perm = ctx.attr("perm", None)
    if perm is None:
        perm = range(x.rank)[::-1]
    if sorted(perm) != list(range(x.rank)):
        ctx.invalid(f"perm {list(perm)} is no permutation of the {x.rank} axes of {x.type}")
    return ctx.builder.transpose(x, perm)


@onnx_op("DepthToSpace")
def import_depth_to_space(ctx: OpContext) -> Item:
    """[N, C bb, H, W] -> [N, C, H b, W b]; DCR puts the block in front of the channels, CRD behind."""
    x, block = ctx.input(0), ctx.attr("blocksize")
    n, c, h, w = _image(ctx, x)
    depth = dims.floordiv(c, block * block, ctx.builder.symbols)
    if ctx.attr("mode", "DCR") == "CRD":
        split, perm = (n, depth, block, block, h, w), (0, 1, 4, 2, 5, 3)
    else:
        split, perm = (n, block, block, depth, h, w), (0, 3, 4, 1, 5, 2)
    moved = Term(ctx.builder, x).reshape(*split).transpose(*perm)
    return moved.reshape(n, depth, h * block, w * block).value


@onnx_op("SpaceToDepth")
def import_space_to_depth(ctx: OpContext) -> Item:
    """[N, C, H b, W b] -> [N, bb C, H, W]; CRD (opset 28) puts the block behind the channels."""
    x, block = ctx.input(0), ctx.attr("blocksize")
    n, c, h, w = _image(ctx, x)
    rows, columns = (dims.floordiv(extent, block, ctx.builder.symbols) for extent in (h, w))
    perm = (0, 1, 3, 5, 2, 4) if ctx.attr("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    moved = Term(ctx.builder, x).reshape(n, c, rows, block, columns, block).transpose(*perm)
    return moved.reshape(n, c * block * block, rows, columns).value


def _image(ctx: OpContext, x: Value) -> tuple[DimLike, ...]:
    if x.rank != 4:
        ctx.invalid(f"its input has the type {x.type}, and must be [N, C, H, W]")
    return x.shape


# Pad --------------------------------------------------------------------------------------------------


@onnx_op("Pad", since=2)
def import_pad(ctx: OpContext) -> Item:
    """Amounts before and after each axis; negative ones cut. Operands from opset 11 on, attributes before."""
    x, b = ctx.input(0), ctx.builder
    mode = ctx.attr("mode", "constant")
    if mode not in ("constant", "edge", "reflect", "wrap"):
        ctx.invalid(f"the mode {mode!r} is not constant, edge, reflect or wrap")
    low, high = _pad_amounts(ctx, x)
    if not any(isinstance(amount, Dim) or amount for amount in (*low, *high)):
        return x
    cut_low, cut_high = _positive(ctx, [-amount for amount in low]), _positive(ctx, [-amount for amount in high])
    x = b.slice(x, cut_low, [extent - p - q for extent, p, q in zip(x.shape, cut_low, cut_high, strict=True)])
    attrs = {"low": _positive(ctx, low), "high": _positive(ctx, high), "mode": mode}
    if mode != "constant":
        return b.emit("pad", x, **attrs)
    return b.emit("pad", x, _pad_fill(ctx, x), **attrs)


def _positive(ctx: OpContext, amounts: list[DimLike]) -> tuple[DimLike, ...]:
    return tuple(dims.maximum(0, amount, ctx.builder.symbols) for amount in amounts)


def _pad_amounts(ctx: OpContext, x: Value) -> tuple[list[DimLike], list[DimLike]]:
    if ctx.has(3) and ctx.known(3) is None:
        halves = [ctx.builder.slice_axis(ctx.input(1), 0, k * ctx.input(3).shape[0], ctx.input(3).shape[0]) for k in (0, 1)]
        low, high = (ctx.expressions(spread(ctx, ctx.input(3), half, [0] * x.rank), "pad", signed=True) for half in halves)
        return low, high
    amounts = ctx.attr("pads") if ctx.opset < 11 else ctx.expressions(ctx.input(1), "pad", signed=True)
    axes = ctx.axes_operand(3, "axes", x.rank) if ctx.opset >= 18 else None
    axes = list(range(x.rank)) if axes is None else axes
    if len(amounts) != 2 * len(axes):
        ctx.invalid(f"it has {len(amounts)} pads for {len(axes)} axes")
    low: list[DimLike] = [0] * x.rank
    high: list[DimLike] = [0] * x.rank
    for k, axis in enumerate(axes):
        low[axis], high[axis] = amounts[k], amounts[k + len(axes)]
    return low, high


def _pad_fill(ctx: OpContext, x: Value) -> Value:
    if ctx.opset < 11:
        return ctx.builder.constant(ctx.attr("value", 0.0), x.dtype)
    fill = ctx.optional(2)
    return ctx.builder.constant(0, x.dtype) if fill is None else ctx.builder.reshape(fill, ())


@onnx_op("CenterCropPad", since=18)
def import_center_crop_pad(ctx: OpContext) -> Item:
    """Crops or zero-pads axes around the middle to a shape."""
    x, b = ctx.input(0), ctx.builder
    axes = [ctx.axis(axis, x.rank) for axis in ctx.attr("axes", None) or range(x.rank)]
    target = ctx.shape_operand(1, "cropped")
    if len(target) != len(axes):
        ctx.invalid(f"it has {len(target)} extents for {len(axes)} axes")
    for axis, extent in zip(axes, target, strict=True):
        cut = dims.maximum(0, x.shape[axis] - extent, b.symbols)
        kept = x.shape[axis] - cut
        x = b.slice_axis(x, axis, dims.floordiv(cut, 2, b.symbols), kept)
        missing = extent - kept
        if missing == 0:
            continue
        low, high = [0] * x.rank, [0] * x.rank
        low[axis] = dims.floordiv(missing, 2, b.symbols)
        high[axis] = missing - low[axis]
        x = b.emit("pad", x, b.constant(0, x.dtype), low=tuple(low), high=tuple(high), mode="constant")
    return x


# By position ------------------------------------------------------------------------------------------


@onnx_op("Trilu", since=14)
def import_trilu(ctx: OpContext) -> Item:
    """Zeros below (upper) or above (lower) the diagonal k of the last two axes."""
    x, b = ctx.input(0), ctx.builder
    if x.rank < 2:
        ctx.invalid(f"its input has the type {x.type}, and needs two axes")
    rows, columns = (Term(b, b.iota(x.shape[-2:], axis)) for axis in (0, 1))
    distance = columns - rows
    k = Term(b, b.reshape(ctx.input(1), ())) if ctx.has(1) else number(b, 0, I64)
    kept = distance >= k if ctx.attr("upper") else distance <= k
    return b.nary("where", kept.value, x, b.constant(0, x.dtype))


@onnx_op("OneHot", since=9)
def import_one_hot(ctx: OpContext) -> Item:
    """A new axis of extent depth: the on value at the index, the off value elsewhere; negative indices count from the end."""
    b = ctx.builder
    indices, depth = ctx.input(0), b.convert(b.reshape(ctx.input(1), ()), I64)
    extent = b.bind_dim(depth, "depth")
    axis = ctx.axis(ctx.attr("axis"), indices.rank + 1)
    index = Term(b, indices).convert(I64)
    index = (index < 0).where(index + extent, index).expand(axis)
    places = Term(b, b.iota((extent,))).reshape(*(extent if k == axis else 1 for k in range(indices.rank + 1)))
    off, on = (Term(b, ctx.input(2)).at(0, k) for k in (0, 1))
    return index.equals(places).where(on, off).value


@onnx_op("CumSum", "CumProd", since=11)
def import_cumulative(ctx: OpContext) -> Item:
    """Running sums or products along an axis."""
    x = ctx.input(0)
    attrs = {"exclusive": bool(ctx.attr("exclusive", 0)), "reverse": bool(ctx.attr("reverse", 0))}
    fn = "add" if ctx.op == "CumSum" else "mul"
    return by_axis(ctx, ctx.input(1), x, lambda b, value, axis: b.emit("cumulative", value, fn=fn, axis=axis, **attrs))


@onnx_op("ReverseSequence", since=10)
def import_reverse_sequence(ctx: OpContext) -> Item:
    """Reverses the first ``lengths[batch]`` elements of the time axis of each batch."""
    x, b = ctx.input(0), ctx.builder
    batch, time = ctx.axis(ctx.attr("batch_axis"), x.rank), ctx.axis(ctx.attr("time_axis"), x.rank)
    if {batch, time} != {0, 1}:
        ctx.invalid(f"the axes {batch} and {time} must be 0 and 1")
    step = Term(b, b.iota(x.shape, time))
    length = Term(b, ctx.input(1)).convert(I64).reshape(*(x.shape[batch] if k == batch else 1 for k in range(x.rank)))
    index = (step < length).where(length - 1 - step, step)
    return b.emit("gather_elements", x, index.value, axis=time)


def as_bool(b, value: Value) -> Value:
    """Whether elements differ from zero."""
    return value if value.dtype == dtypes.BOOL else b.nary("ne", value, b.constant(np.zeros((), value.dtype.numpy)))
