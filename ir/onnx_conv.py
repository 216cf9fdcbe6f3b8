"""ONNX convolutions: Conv, ConvTranspose, DeformConv, Col2Im, in any number of spatial dimensions.

A transposed convolution is a core ``conv`` with dilated data and flipped weights whose channel axes changed places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term, arange, as_term, expand, full, reshape


@dataclass(frozen=True)
class Window:
    """How a window moves over the spatial axes, one entry per axis. ``same`` is "", "SAME_UPPER" or "SAME_LOWER"."""

    kernel: tuple[DimLike, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[DimLike, ...]
    high: tuple[DimLike, ...]
    same: str = ""

    @property
    def reach(self) -> tuple[DimLike, ...]:
        """The extent of the input that one window spans, per axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def read_window(ctx: OpContext, extents: Sequence[DimLike], kernel: Sequence[DimLike]) -> Window:
    """The attributes strides, dilations, pads and auto_pad of Conv and the pools; SAME_* becomes pads."""
    rank = len(extents)
    strides = tuple(ctx.attr("strides", None) or (1,) * rank)
    dilations = tuple(ctx.attr("dilations", None) or (1,) * rank)
    pads = tuple(ctx.attr("pads", None) or (0,) * (2 * rank))
    if not len(strides) == len(dilations) == len(kernel) == rank or len(pads) != 2 * rank:
        ctx.fail(f"kernel, strides and dilations of length {rank} and pads of length {2 * rank} were expected")
    same = ctx.attr("auto_pad", "NOTSET")
    window = Window(tuple(kernel), strides, dilations, pads[:rank], pads[rank:])
    if same == "VALID":
        return Window(window.kernel, strides, dilations, (0,) * rank, (0,) * rank)
    if same in ("SAME_UPPER", "SAME_LOWER"):
        return _same_pads(window, extents, same)
    return window


def _same_pads(window: Window, extents: Sequence[DimLike], same: str) -> Window:
    low, high = [], []
    for extent, stride, reach in zip(extents, window.strides, window.reach, strict=True):
        total = dims.maximum((dims.ceildiv(extent, stride) - 1) * stride + reach - extent, 0)
        small, large = dims.floordiv(total, 2), dims.ceildiv(total, 2)
        low.append(small if same == "SAME_UPPER" else large)
        high.append(large if same == "SAME_UPPER" else small)
    return Window(window.kernel, window.strides, window.dilations, tuple(low), tuple(high), same)


def _nonnegative_pads(b: Builder, x: Value, window: Window) -> tuple[Value, Window]:
    """Negative pads crop the input: a slice before the convolution."""
    cut_low = [-p if isinstance(p, int) and p < 0 else 0 for p in window.low]
    cut_high = [-p if isinstance(p, int) and p < 0 else 0 for p in window.high]
    if not any(cut_low) and not any(cut_high):
        return x, window
    sizes = [e - a - z for e, a, z in zip(x.shape[2:], cut_low, cut_high, strict=True)]
    x = b.slice(x, (0, 0, *cut_low), (*x.shape[:2], *sizes))
    low = tuple(p + c for p, c in zip(window.low, cut_low, strict=True))
    high = tuple(p + c for p, c in zip(window.high, cut_high, strict=True))
    return x, Window(window.kernel, window.strides, window.dilations, low, high)


def emit_conv(b: Builder, x: Value, w: Value, window: Window, groups: int, dtype: DType) -> Value:
    """A core convolution of x [N, C, ...] with w [O, C/groups, ...]."""
    x, window = _nonnegative_pads(b, x, window)
    rank = len(window.kernel)
    return b.emit(
        "conv", x, w, strides=window.strides, lhs_dilation=(1,) * rank, dilation=window.dilations,
        low=window.low, high=window.high, groups=groups, dtype=dtype,
    )  # fmt: skip


def add_bias(b: Builder, y: Value, bias: Value | None) -> Value:
    """y [N, O, ...] plus a bias [O]."""
    if bias is None:
        return y
    column = b.reshape(bias, (bias.shape[0], *(1,) * (y.rank - 2)))
    return b.nary("add", y, column)


@onnx_op("Conv")
def conv(ctx: OpContext) -> Value:
    """Conv (opset 1, 11, 22): x [N, C, ...], w [O, C/group, ...], optional bias [O]."""
    x, w, bias = ctx.input(0), ctx.input(1), ctx.optional(2)
    window = read_window(ctx, x.shape[2:], w.shape[2:])
    return add_bias(ctx.builder, emit_conv(ctx.builder, x, w, window, ctx.attr("group", 1), x.dtype), bias)


@onnx_op("ConvTranspose")
def conv_transpose(ctx: OpContext) -> Value:
    """ConvTranspose (opset 1, 11, 22): x [N, C, ...], w [C, O/group, ...], optional bias [O]."""
    b = ctx.builder
    x, w, bias = ctx.input(0), ctx.input(1), ctx.optional(2)
    extents, kernel, groups = x.shape[2:], w.shape[2:], ctx.attr("group", 1)
    rank = len(extents)
    strides = tuple(ctx.attr("strides", None) or (1,) * rank)
    dilations = tuple(ctx.attr("dilations", None) or (1,) * rank)
    extra = tuple(ctx.attr("output_padding", None) or (0,) * rank)
    full_extents = [(e - 1) * s + (k - 1) * d + 1 + o for e, s, k, d, o in zip(extents, strides, kernel, dilations, extra, strict=True)]
    low, high = _transposed_pads(ctx, full_extents, extents, strides)
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    # pad of the dilated data; what would be negative is cut from the result instead, whose stride is 1
    before = [r - p for r, p in zip(reach, low, strict=True)]
    after = [r - p + o for r, p, o in zip(reach, high, extra, strict=True)]
    y = b.emit(
        "conv", x, _transposed_weights(b, w, groups), strides=(1,) * rank, lhs_dilation=strides, dilation=dilations,
        low=tuple(dims.maximum(p, 0) for p in before), high=tuple(dims.maximum(p, 0) for p in after), groups=groups, dtype=x.dtype,
    )  # fmt: skip
    start = (0, 0, *(dims.maximum(0 - p, 0) for p in before))
    sizes = tuple(f - p - q for f, p, q in zip(full_extents, low, high, strict=True))
    return add_bias(b, b.slice(y, start, (*y.shape[:2], *sizes)), bias)


def _transposed_pads(ctx: OpContext, full_extents: Sequence[DimLike], extents: Sequence[DimLike], strides: Sequence[int]):
    """What is cut from both ends of the full result; ``output_shape`` and SAME_* decide the total."""
    rank = len(extents)
    same, wanted = ctx.attr("auto_pad", "NOTSET"), ctx.attr("output_shape", None)
    if wanted:
        wanted = tuple(wanted)[-rank:]
    elif same in ("SAME_UPPER", "SAME_LOWER"):
        wanted = tuple(e * s for e, s in zip(extents, strides, strict=True))
    else:
        pads = tuple(ctx.attr("pads", None) or (0,) * (2 * rank))
        return ((0,) * rank, (0,) * rank) if same == "VALID" else (pads[:rank], pads[rank:])
    total = [f - size for f, size in zip(full_extents, wanted, strict=True)]
    small = [dims.floordiv(t, 2) for t in total]
    large = [t - s for t, s in zip(total, small, strict=True)]
    return (small, large) if same == "SAME_UPPER" else (large, small)


def _transposed_weights(b: Builder, w: Value, groups: int) -> Value:
    """[C, O/g, ...] -> [O, C/g, ...] with every spatial axis reversed."""
    channels, out, *kernel = w.shape
    rank = len(kernel)
    w = b.slice(w, (0, 0, *(k - 1 for k in kernel)), w.shape, (1, 1, *(-1,) * rank))
    w = b.reshape(w, (groups, dims.floordiv(channels, groups), out, *kernel))
    w = b.transpose(w, (0, 2, 1, *range(3, 3 + rank)))
    return b.reshape(w, (groups * out, dims.floordiv(channels, groups), *kernel))


@onnx_op("Col2Im", since=18)
def col2im(ctx: OpContext) -> Value:
    """Col2Im (opset 18): columns [N, C*prod(block), L] summed into images [N, C, image...]."""
    b = ctx.builder
    image, block = ctx.shape_operand(1), ctx.shape_operand(2)
    rank = len(image)
    strides = tuple(ctx.attr("strides", None) or (1,) * rank)
    dilations = tuple(ctx.attr("dilations", None) or (1,) * rank)
    pads = tuple(ctx.attr("pads", None) or (0,) * (2 * rank))
    padded = [e + p + q for e, p, q in zip(image, pads[:rank], pads[rank:], strict=True)]
    flat, count, positions = _column_targets(b, padded, block, strides, dilations)
    x = Term(b, ctx.input(0))
    channels = dims.floordiv(x.shape[1], count)
    x = x.reshape(x.shape[0], channels, count * positions)
    target = full(b, (x.shape[0], channels, dims.product(padded)), 0, x.dtype)
    indices = as_term(b, reshape(flat, count * positions)).broadcast(*x.shape)
    y = b.emit("scatter_elements", target.value, indices.value, x.value, axis=2, combiner="add")
    y = b.reshape(y, (x.shape[0], channels, *padded))
    return b.slice(y, (0, 0, *pads[:rank]), (x.shape[0], channels, *image))


def _column_targets(b: Builder, padded, block, strides, dilations):
    """Flat position in the padded image of (block position, place of the window), with the counts of both."""
    rank = len(padded)
    places = [dims.floordiv(e - (k - 1) * d - 1, s) + 1 for e, k, s, d in zip(padded, block, strides, dilations, strict=True)]
    flat = None
    for k in range(rank):
        inner = expand(arange(b, block[k]), *(j for j in range(2 * rank) if j != k)) * dilations[k]
        outer = expand(arange(b, places[k]), *(j for j in range(2 * rank) if j != rank + k)) * strides[k]
        along = inner + outer
        flat = along if flat is None else flat * padded[k] + along
    return flat, dims.product(block), dims.product(places)


@onnx_op("DeformConv", since=19)
def deform_conv(ctx: OpContext) -> Value:
    """DeformConv (opset 19, 22) in two dimensions: bilinear samples at offset positions, then one contraction per group."""
    b, dtype = ctx.builder, ctx.input(0).dtype
    wide = [None if (value := ctx.optional(k)) is None else b.convert(value, dtype.compute) for k in range(5)]
    x, w, offset, bias, mask = wide
    if x is None or w is None or offset is None:
        ctx.invalid("it needs three operands")
    if x.rank != 4:
        ctx.fail("only two spatial dimensions are supported")
    window = read_window(ctx, x.shape[2:], w.shape[2:])
    groups, offset_groups = ctx.attr("group", 1), ctx.attr("offset_group", 1)
    places = offset.shape[2:]
    taps = dims.product(w.shape[2:])
    shift = Term(b, offset).reshape(x.shape[0], offset_groups, taps, 2, *places)
    rows, columns = (_sample_axis(b, window, k, places).convert(shift.dtype) + shift.at(3, k) for k in range(2))
    columns_of = _bilinear(Term(b, x), rows, columns, offset_groups)
    if mask is not None:
        columns_of = columns_of * Term(b, mask).reshape(x.shape[0], offset_groups, 1, taps, *places)
    y = _grouped_contraction(columns_of, Term(b, w), groups, taps, places)
    return b.convert(add_bias(b, y.value, bias), dtype)


def _sample_axis(b: Builder, window: Window, axis: int, places) -> Term:
    """Undisturbed positions along an axis, shaped [taps, OH, OW] (a window's taps are numbered row by row)."""
    height, width = window.kernel
    taps = arange(b, height if axis == 0 else width) * window.dilations[axis]
    table = as_term(b, expand(taps, 1) if axis == 0 else expand(taps, 0), dtypes.I64)
    table = table.broadcast(height, width).reshape(height * width, 1, 1)
    line = as_term(b, arange(b, places[axis]) * window.strides[axis] - window.low[axis], dtypes.I64)
    return table + (line.expand(1) if axis == 0 else line.expand(0))


def _bilinear(x: Term, rows: Term, columns: Term, groups: int) -> Term:
    """x [N, C, H, W] at [N, G, taps, OH, OW] positions, zero outside -> [N, G, C/G, taps, OH, OW]."""
    batch, channels, height, width = x.shape
    per_group = dims.floordiv(channels, groups)
    flat = x.reshape(batch, groups, per_group, height * width)
    rows, columns = rows.convert(x.dtype), columns.convert(x.dtype)
    top, left = rows.map("floor"), columns.map("floor")
    total = None
    for dy in (0, 1):
        for dx in (0, 1):
            r, c = top + dy, left + dx
            weight = (1 - (rows - r).map("abs")) * (1 - (columns - c).map("abs"))
            inside = (r >= 0) & (r <= height - 1) & (c >= 0) & (c <= width - 1)
            weight = inside.where(weight, 0.0)
            index = inside.where(r.convert(dtypes.I64) * width + c.convert(dtypes.I64), 0)
            size = dims.product(index.shape[2:])
            picked = flat.take_along(index.reshape(batch, groups, 1, size).broadcast(batch, groups, per_group, size), 3)
            part = picked.reshape(batch, groups, per_group, *index.shape[2:]) * weight.expand(2)
            total = part if total is None else total + part
    return total


def _grouped_contraction(columns: Term, w: Term, groups: int, taps: DimLike, places) -> Term:
    """[N, G', C/G', taps, OH, OW] with w [O, C/g, KH, KW] -> [N, O, OH, OW]."""
    batch, out = columns.shape[0], w.shape[0]
    depth = w.shape[1] * taps
    columns = columns.reshape(batch, groups, depth, dims.product(places))
    weights = w.reshape(groups, dims.floordiv(out, groups), depth)
    y = weights.dot(columns, batch=((0,), (1,)), contract=((2,), (2,)))  # [g, O/g, N, places]
    return y.transpose(2, 0, 1, 3).reshape(batch, out, *places)
