"""ONNX sampling at computed positions: GridSample, AffineGrid, RoiAlign."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term, arange, as_term, floats, number

_CUBIC = -0.75  # the coefficient of Keys' kernel that GridSample fixes


# GridSample -----------------------------------------------------------------------------------------------------


@onnx_op("GridSample", since=16)
def grid_sample(ctx: OpContext) -> Value:
    """GridSample (opset 16, 20, 22): x [N, C, spatial...] at grid [N, out..., axes], whose last axis is reversed (x, y, z)."""
    x, grid = Term(ctx.builder, ctx.input(0)), Term(ctx.builder, ctx.input(1))
    rank, mode = x.rank - 2, {"bilinear": "linear", "bicubic": "cubic"}.get(ctx.attr("mode"), ctx.attr("mode"))
    aligned, padding = bool(ctx.attr("align_corners", 0)), ctx.attr("padding_mode", "zeros")
    work = _sampling_type(x.dtype, grid.dtype, mode)
    places = grid.shape[1:-1]
    size = dims.product(places)
    columns = []
    for axis in range(rank):
        place = grid.at(grid.rank - 1, rank - 1 - axis).reshape(x.shape[0], size).convert(work)
        place = _denormalised(place, x.shape[2 + axis], aligned=aligned)
        place = place.map("round") if mode == "nearest" else place
        # the border of a cubic holds for each tap, as in PyTorch, not for the position
        if (mode, padding) != ("cubic", "border"):
            place = _moved_inside(place, x.shape[2 + axis], padding, aligned=aligned)
        columns.append(place)
    flat = x.reshape(*x.shape[:2], dims.product(x.shape[2:]))
    taps = [_axis_taps(place, mode) for place in columns]
    total = None
    for corner in itertools.product(*taps):
        part = _corner(flat, corner, x.shape[2:], padding, aligned=aligned)  # of integers: exact where nearest, else summed in float
        total = part if total is None else total + part
    return total.convert(x.dtype).reshape(*x.shape[:2], *places).value


def _sampling_type(data: DType, grid: DType, mode: str) -> DType:
    """What positions and weights are computed in; sums of wide integers keep their digits."""
    if data.is_float:
        return data.compute
    return grid.compute if mode == "nearest" or data.bits < 32 else dtypes.F64


def _denormalised(place: Term, extent: DimLike, *, aligned: bool) -> Term:
    """Positions from [-1, 1] to elements."""
    length = number(place.b, extent, place.dtype)
    return (place + 1) / 2 * (length - 1) if aligned else ((place + 1) * length - 1) / 2


def _moved_inside(place: Term, extent: DimLike, padding: str, *, aligned: bool) -> Term:
    """Positions outside of the data moved by the padding mode; ``zeros`` leaves them."""
    last = number(place.b, extent, place.dtype) - 1
    if padding == "border":
        return place.map("max", 0).map("min", last)
    return _reflected(place, last, aligned=aligned) if padding == "reflection" else place


def _reflected(place: Term, last: Term, *, aligned: bool) -> Term:
    """Positions folded back at the borders: the outer elements' centres, or half an element beyond."""
    low = 0.0 if aligned else -0.5
    span = last if aligned else last + 1
    away = (place - low).map("abs")
    turns = (away / span).map("floor")
    rest = away - turns * span
    odd = turns - (turns / 2).map("floor") * 2
    folded = odd.equals(0).where(rest, span - rest) + low
    folded = span.equals(0).where(0.0, folded)
    inside = (place >= low) & (place <= span + low)
    return inside.where(place, folded)


def _axis_taps(place: Term, mode: str) -> list[tuple[Term, Term | None]]:
    """(element, weight) of each tap along an axis."""
    if mode == "nearest":
        return [(place, None)]
    base = place.map("floor")
    ratio = place - base
    if mode == "linear":
        return [(base, 1 - ratio), (base + 1, ratio)]
    return [(base + offset, _keys((ratio - offset).map("abs"), far=offset in (-1, 2))) for offset in (-1, 0, 1, 2)]


def _keys(distance: Term, *, far: bool) -> Term:
    """Keys' cubic kernel between 0 and 1, or between 1 and 2."""
    if far:
        return ((distance * _CUBIC - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
    return ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1


def _corner(flat: Term, corner: Sequence[tuple[Term, Term | None]], extents: Sequence[DimLike], padding: str, *, aligned: bool) -> Term:
    """The elements at one combination of taps times their weights: [N, C, size]."""
    index, weight, inside = None, None, None
    for (place, factor), extent in zip(corner, extents, strict=True):
        last = number(place.b, extent, place.dtype) - 1
        if padding == "reflection":
            place = _reflected(place, last, aligned=aligned)
        ok = (place >= 0) & (place <= last)
        inside = ok if inside is None else inside & ok
        whole = place.map("max", 0).map("min", last).convert(dtypes.I64)
        index = whole if index is None else index * extent + whole
        weight = factor if weight is None or factor is None else weight * factor
    batch, channels, _ = flat.shape
    picked = flat.take_along(index.expand(1).broadcast(batch, channels, index.shape[1]), 2)
    picked = picked if weight is None else picked.convert(weight.dtype) * weight.expand(1)
    return inside.expand(1).where(picked, 0) if padding == "zeros" else picked


# AffineGrid -----------------------------------------------------------------------------------------------------


@onnx_op("AffineGrid", since=20)
def affine_grid(ctx: OpContext) -> Value:
    """AffineGrid (opset 20): theta [N, axes, axes + 1] applied to the regular grid of ``size`` (N, C, spatial...)."""
    b, theta = ctx.builder, Term(ctx.builder, ctx.input(0))
    places = ctx.shape_operand(1)[2:]
    rank, aligned = len(places), bool(ctx.attr("align_corners", 0))
    total = None
    for axis in range(rank):
        line = _regular(b, places[axis], aligned=aligned).convert(theta.dtype)
        line = line.reshape(1, *(places[axis] if k == axis else 1 for k in range(rank)), 1)
        column = theta.at(2, rank - 1 - axis).reshape(theta.shape[0], *(1,) * rank, rank)
        part = line * column
        total = part if total is None else total + part
    shift = theta.at(2, rank).reshape(theta.shape[0], *(1,) * rank, rank)
    return (total + shift).broadcast(theta.shape[0], *places, rank).value


def _regular(b: Builder, extent: DimLike, *, aligned: bool) -> Term:
    """The centres of equal cells of [-1, 1], or equal steps from -1 to 1."""
    place = floats(arange(b, extent))
    length = number(b, extent, dtypes.F32)
    if aligned:
        return as_term(b, place) * (number(b, 2.0, dtypes.F32) / (length - 1)) - 1
    return (as_term(b, place) * 2 + 1) / length - 1


# RoiAlign -------------------------------------------------------------------------------------------------------


@onnx_op("RoiAlign", since=10)
def roi_align(ctx: OpContext) -> Value:
    """RoiAlign (opset 10, 16, 22): x [N, C, H, W], rois [R, 4] (x1, y1, x2, y2), the image of each region.

    Each cell of a region is the mean (or maximum) of a grid of samples; without a sampling_ratio the grid follows
    the size of the region, so the largest one is laid over all and the samples in excess do not count.
    """
    b, x = ctx.builder, Term(ctx.builder, ctx.input(0))
    rois, image = Term(b, ctx.input(1)), Term(b, ctx.input(2)).convert(dtypes.I64)
    half = (ctx.attr("coordinate_transformation_mode") or "output_half_pixel") == "half_pixel"
    edges = rois * ctx.attr("spatial_scale", 1.0) - (0.5 if half else 0.0)
    counts = (ctx.attr("output_height", 1), ctx.attr("output_width", 1))
    axes = [_RoiAxis(ctx, edges, axis, x.shape[2 + axis], counts[axis], half=half) for axis in (0, 1)]
    height, width = axes
    channels, plane = x.shape[1], x.shape[2] * x.shape[3]
    flat = x.transpose(1, 0, 2, 3).reshape(channels, x.shape[0] * plane)
    used = height.used.expand(3, 4) & width.used.expand(1, 2)  # [R, 1|h, samples, 1|w, samples]
    kept = height.inside.expand(3, 4) & width.inside.expand(1, 2)
    parts = []
    for (row, row_weight), (column, column_weight) in itertools.product(height.taps, width.taps):
        index = image.reshape(image.shape[0], 1, 1, 1, 1) * plane + row.expand(3, 4) * x.shape[3] + column.expand(1, 2)
        weight = (kept & used).where(row_weight.expand(3, 4) * column_weight.expand(1, 2), 0)
        parts.append(flat.take(index, 1) * weight.expand(0))
    if ctx.attr("mode", "avg") == "max":
        y = _largest(parts, used)
    else:
        total = ((parts[0] + parts[1]) + parts[2]) + parts[3]
        y = total.sum(3, 5) / (height.samples.expand(1, 2) * width.samples.expand(1, 2)).map("max", 1)
    return y.transpose(1, 0, 2, 3).value


def _largest(parts: Sequence[Term], used: Term) -> Term:
    """The maximum of the weighted corners over the samples in use."""
    best = parts[0]
    for part in parts[1:]:
        best = best.map("max", part)
    best = used.expand(0).where(best, float("-inf")).max(3, 5)
    return best.equals(float("-inf")).where(0, best)


class _RoiAxis:
    """One axis of all regions: two taps for each [region, cell, sample], and which samples are in use and inside."""

    def __init__(self, ctx: OpContext, edges: Term, axis: int, extent: DimLike, cells: int, *, half: bool) -> None:
        b = ctx.builder
        begin, end = edges.at(1, 1 - axis), edges.at(1, 3 - axis)
        length = end - begin if half else (end - begin).map("max", 1)
        cell = length / cells
        ratio = ctx.attr("sampling_ratio", 0)
        self.samples = number(b, ratio, cell.dtype).broadcast(*cell.shape) if ratio > 0 else cell.map("ceil")
        most = ratio if ratio > 0 else self._most(b)
        sample = as_term(b, floats(arange(b, most)), cell.dtype)
        place = as_term(b, floats(arange(b, cells)), cell.dtype)
        start = begin.expand(1) + place * cell.expand(1)  # [R, cells]
        inner = (sample + 0.5) * cell.expand(1) / self.samples.expand(1)  # [R, samples]
        at = start.expand(2) + inner.expand(1)
        self.used = (sample < self.samples.expand(1)).expand(1)
        self.inside = (at >= -1) & (at <= number(b, extent, at.dtype))
        self.taps = self._two_taps(at.map("max", 0), extent)

    def _most(self, b) -> DimLike:
        count = self.samples.max(0).map("max", 0).convert(dtypes.I64)
        return b.bind_dim(count.value, "samples")

    @staticmethod
    def _two_taps(at: Term, extent: DimLike) -> list[tuple[Term, Term]]:
        last = number(at.b, extent, at.dtype) - 1
        low = at.map("floor").map("min", last)
        ratio = (at - low) * (low < last).convert(at.dtype)
        high = (low + 1).map("min", last)
        return [(low.convert(dtypes.I64), 1 - ratio), (high.convert(dtypes.I64), ratio)]
