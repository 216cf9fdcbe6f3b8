"""ONNX Resize and Upsample: one axis after the other, because interpolation is separable.

An axis becomes gathers with tables of source positions and weights, constant where its extents are; many taps
(antialias) become one contraction with a constant matrix instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Value
from tcompile.ir.onnx_content import UNKNOWN, Ratio
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term, absolute, arange, as_term, ceil, expand, floats, floor, integers, maximum, minimum, number, where

_FEW_TAPS = 4  # up to here a sum of gathers; beyond, a contraction
Table = Term | np.ndarray


@dataclass(frozen=True)
class Sampling:
    """The attributes that are the same for all axes."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    antialias: bool
    exclude_outside: bool
    extrapolation: float


@dataclass(frozen=True)
class AxisPlan:
    """One axis to resize: extents, the scale (a number where known), and the borders of the region of interest."""

    axis: int
    source: DimLike
    target: DimLike
    scale: float | Term
    begin: float | Term = 0.0
    end: float | Term = 1.0


@onnx_op("Upsample", since=7)
def upsample(ctx: OpContext) -> Value:
    """Upsample (opset 7 with a ``scales`` attribute, 9 with an operand): asymmetric coordinates."""
    return _resize(ctx, _simple_sampling(ctx), _scale_plans(ctx, 1), range(ctx.input(0).rank))


@onnx_op("Resize", since=10)
def resize_10(ctx: OpContext) -> Value:
    """Resize (opset 10): as Upsample, and may shrink."""
    return upsample(ctx)


@onnx_op("Resize", since=11)
def resize(ctx: OpContext) -> Value:
    """Resize (opset 11, 13, 18, 19): operands X, roi, scales, sizes."""
    x = ctx.input(0)
    axes = [ctx.axis(axis, x.rank) for axis in ctx.attr("axes", None) or range(x.rank)]
    sampling = Sampling(
        ctx.attr("mode", "nearest"), ctx.attr("coordinate_transformation_mode", "half_pixel"),
        ctx.attr("nearest_mode", "round_prefer_floor"), ctx.attr("cubic_coeff_a", -0.75),
        bool(ctx.attr("antialias", 0)), bool(ctx.attr("exclude_outside", 0)),
        ctx.attr("extrapolation_value", 0.0),
    )  # fmt: skip
    sized = ctx.has(3) and ctx.input(3).shape != (0,)
    plans = _size_plans(ctx, axes) if sized else _scale_plans(ctx, 2, axes)
    if sampling.coordinates == "tf_crop_and_resize":
        plans = _with_roi(ctx, plans, axes)
    return _resize(ctx, sampling, plans, axes)


def _simple_sampling(ctx: OpContext) -> Sampling:
    mode = ctx.attr("mode", "nearest")
    return Sampling("linear" if mode in ("linear", "bilinear") else mode, "asymmetric", "simple", -0.75, False, False, 0.0)


def _resize(ctx: OpContext, sampling: Sampling, plans: Sequence[AxisPlan], axes: Sequence[int]) -> Value:
    """Applies the plans of the axes that change."""
    x = Term(ctx.builder, ctx.input(0))
    crop = sampling.coordinates == "tf_crop_and_resize"
    active = [plan for plan in plans if (crop and (plan.begin, plan.end) != (0.0, 1.0)) or not _is_identity(plan)]
    if not crop:
        x, active = _repeated(x, active)
    if sampling.mode == "nearest":
        for plan in active:
            x = _nearest(x, plan, sampling)
        return x.value
    work = x if x.dtype.is_float and x.dtype.bits >= 32 else x.convert(dtypes.F32)
    for plan in active:
        work = _interpolate(work, plan, sampling)
    return _back(work, x, rounds=sampling.antialias).value


def _repeated(x: Term, plans: Sequence[AxisPlan]) -> tuple[Term, list[AxisPlan]]:
    """Axes of one element repeat it in every mode, since weights add up to 1: resized by a broadcast, and the plans that are left."""
    single = {plan.axis: plan.target for plan in plans if plan.source == 1}
    if not single:
        return x, list(plans)
    kept = [axis for axis in range(x.rank) if axis not in single]
    rows = x.reshape(*(x.shape[axis] for axis in kept))
    shape = tuple(single.get(axis, extent) for axis, extent in enumerate(x.shape))
    made = x.b.emit("broadcast", rows.value, shape=shape, axes=tuple(kept))
    return Term(x.b, made), [plan for plan in plans if plan.axis not in single]


def _is_identity(plan: AxisPlan) -> bool:
    return plan.source == plan.target and (isinstance(plan.scale, Term) or plan.scale == 1.0)


def _back(work: Term, x: Term, *, rounds: bool) -> Term:
    """The result in the operand's type. Integers are clipped, because a cubic overshoots, and cut off unless ``rounds``."""
    if x.dtype.is_integer:
        work = (work + 0.5).map("floor") if rounds else work
        info = np.iinfo(x.dtype.numpy)
        work = work.map("max", float(info.min)).map("min", float(info.max))
    return work.convert(x.dtype)


# What the operands say ------------------------------------------------------------------------------------------


def _scale_plans(ctx: OpContext, operand: int, axes: Sequence[int] | None = None) -> list[AxisPlan]:
    x = ctx.input(0)
    axes = range(x.rank) if axes is None else axes
    if ctx.has_attr("scales"):
        content = np.array(ctx.attr("scales"), object)
    else:
        content = ctx.content(operand)
        content = np.full(len(axes), UNKNOWN, object) if content is None else content.astype(object)
    if len(content) != len(axes):
        ctx.invalid(f"{len(content)} scales for {len(axes)} axes")
    return [_scale_plan(ctx, operand, k, axis, item) for k, (axis, item) in enumerate(zip(axes, content, strict=True))]


def _scale_plan(ctx: OpContext, operand: int, k: int, axis: int, item) -> AxisPlan:
    """The plan of one axis from an element of ``scales``: a number, an exact ratio of dimensions, or known at run time only."""
    b, source = ctx.builder, ctx.input(0).shape[axis]
    if isinstance(item, Ratio) and isinstance(item.num, int):
        item = item.num / item.den
    if isinstance(item, int | float | np.generic):
        return AxisPlan(axis, source, scaled_extent(source, float(item)), float(np.float32(item)))
    scale = Term(b, ctx.input(operand)).at(0, k).convert(dtypes.F32)
    if item is not UNKNOWN:
        return AxisPlan(axis, source, dims.floordiv(source * item.num, item.den), scale)
    target = (number(b, source, dtypes.F32) * scale).map("floor").convert(dtypes.I64)
    return AxisPlan(axis, source, b.bind_dim(target.value, "resized"), scale)


def scaled_extent(extent: DimLike, scale: float) -> DimLike:
    """floor(extent * scale) as float32 computes it: for a symbol, with the simplest fraction that is this float32."""
    if isinstance(extent, int):
        return int(np.floor(np.float32(extent) * np.float32(scale)))
    candidates = (Fraction(scale).limit_denominator(bound) for bound in (10, 100, 1000, 10**5, 10**9))
    fraction = next(fraction for fraction in candidates if np.float32(float(fraction)) == np.float32(scale))
    return dims.floordiv(extent * fraction.numerator, fraction.denominator)


def _size_plans(ctx: OpContext, axes: Sequence[int]) -> list[AxisPlan]:
    b, x = ctx.builder, ctx.input(0)
    targets = ctx.shape_operand(3, "resized")
    if len(targets) != len(axes):
        ctx.invalid(f"{len(targets)} sizes for {len(axes)} axes")
    scales = [_ratio(b, target, x.shape[axis]) for axis, target in zip(axes, targets, strict=True)]
    policy = ctx.attr("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return [AxisPlan(a, x.shape[a], t, s) for a, t, s in zip(axes, targets, scales, strict=True)]
    choose = {"not_larger": minimum, "not_smaller": maximum}[policy]
    common = scales[0]
    for scale in scales[1:]:
        common = choose(common, scale)
    if not isinstance(common, Term):
        return [AxisPlan(a, x.shape[a], _rounded(b, x.shape[a], common), float(common)) for a in axes]
    return [AxisPlan(a, x.shape[a], _rounded(b, x.shape[a], common), common) for a in axes]


def _rounded(b: Builder, extent: DimLike, scale: float | Term) -> DimLike:
    if isinstance(extent, int) and not isinstance(scale, Term):
        return int(np.floor(extent * scale + 0.5))
    size = (number(b, extent, dtypes.F32) * scale + 0.5).map("floor").convert(dtypes.I64)
    return b.bind_dim(size.value, "resized")


def _ratio(b: Builder, target: DimLike, source: DimLike) -> float | Term:
    if isinstance(target, int) and isinstance(source, int):
        return float(np.float32(target) / np.float32(source)) if source else 1.0
    return number(b, target, dtypes.F32) / number(b, source, dtypes.F32)


def _with_roi(ctx: OpContext, plans: Sequence[AxisPlan], axes: Sequence[int]) -> list[AxisPlan]:
    """Adds the borders of the region of interest: operand 1 holds all starts, then all ends."""
    count, table = len(axes), ctx.constant(1)
    result = []
    for k, plan in enumerate(plans):
        if table is not None:
            ends = float(table[k]), float(table[k + count])
        else:
            roi = Term(ctx.builder, ctx.input(1)).convert(dtypes.F32)
            ends = roi.at(0, k), roi.at(0, k + count)
        result.append(AxisPlan(plan.axis, plan.source, plan.target, plan.scale, *ends))
    return result


# One axis -------------------------------------------------------------------------------------------------------


def _source_positions(b: Builder, plan: AxisPlan, mode: str) -> Table:
    """Where each target element lies in the source, in f32: [target]."""
    place = floats(arange(b, plan.target))
    last = _plain(b, plan.source) - 1
    if mode == "asymmetric":
        return place / _same_kind(place, plan.scale)
    if mode == "align_corners":
        return _spread(place, last, _resized_length(b, plan), 0.0)
    if mode == "tf_crop_and_resize":
        moved = _spread(place, (plan.end - plan.begin) * last, _plain(b, plan.target), (plan.end - plan.begin) * last * 0.5)
        return moved + plan.begin * last
    half = (place + 0.5) / _same_kind(place, plan.scale)
    if mode == "tf_half_pixel_for_nn":
        return half
    if mode == "pytorch_half_pixel":
        return _unless_one(plan.target, half - 0.5, place * 0.0)
    if mode == "half_pixel_symmetric":
        adjustment = _plain(b, plan.target) / _resized_length(b, plan)
        return (1 - adjustment) * (_plain(b, plan.source) * 0.5) + half - 0.5
    return half - 0.5


def _plain(b: Builder, extent: DimLike) -> float | Term:
    """An extent as a float, or as an f32 scalar where it is symbolic."""
    return np.float32(extent) if isinstance(extent, int) else number(b, extent, dtypes.F32)


def _same_kind(place: Table, scale: float | Term) -> np.float32 | Term:
    return scale if isinstance(scale, Term) else np.float32(scale)


def _resized_length(b: Builder, plan: AxisPlan) -> float | Term:
    """source * scale, which need not be whole: ONNX's reference uses it where the scales are given."""
    length = _plain(b, plan.source) * plan.scale
    return float(length) if not isinstance(length, Term) else length


def _spread(place: Table, distance: float | Term, length: float | Term, single: float | Term) -> Table:
    """``place`` of ``length`` elements stretched over a distance; ``single`` for one element."""
    if isinstance(length, Term):
        return where(length.equals(1.0), single, place * distance / (length - 1))
    return place * 0.0 + single if length == 1 else place * distance / np.float32(length - 1)


def _unless_one(extent: DimLike, table: Table, single: Table) -> Table:
    if isinstance(extent, int):
        return single if extent == 1 else table
    return number(table.b, extent, dtypes.I64).equals(1).where(single, table)


def _nearest(x: Term, plan: AxisPlan, sampling: Sampling) -> Term:
    """A gather of the nearest source positions."""
    place = _source_positions(x.b, plan, sampling.coordinates)
    index = integers(_round(place, sampling.nearest, plan))
    index = maximum(minimum(index, plan.source - 1), 0)
    y = x.take(as_term(x.b, index), plan.axis)
    return _extrapolate(y, place, plan, sampling)


def _round(place: Table, mode: str, plan: AxisPlan) -> Table:
    if mode == "simple":
        shrinks = not isinstance(plan.scale, Term) and plan.scale < 1
        return ceil(place) if shrinks else floor(place)
    rules = {
        "round_prefer_floor": lambda p: ceil(p - 0.5),
        "round_prefer_ceil": lambda p: floor(p + 0.5),
        "floor": floor,
        "ceil": ceil,
    }
    return rules[mode](place)


def _extrapolate(y: Term, place: Table, plan: AxisPlan, sampling: Sampling) -> Term:
    """tf_crop_and_resize gives a constant where the position is outside of the source."""
    if sampling.coordinates != "tf_crop_and_resize":
        return y
    last = _plain(y.b, plan.source) - 1
    outside = as_term(y.b, (place < 0) | (place > last))
    column = outside.reshape(*(plan.target if k == plan.axis else 1 for k in range(y.rank)))
    return column.where(y.lift(sampling.extrapolation), y)


def _interpolate(x: Term, plan: AxisPlan, sampling: Sampling) -> Term:
    """Weighted taps along an axis."""
    place = _source_positions(x.b, plan, sampling.coordinates)
    index, weights = _taps(x.b, place, plan, sampling)
    return _extrapolate(_combine(x, plan, index, weights), place, plan, sampling)


def _taps(b: Builder, place: Table, plan: AxisPlan, sampling: Sampling) -> tuple[Table, Table]:
    """Source positions (clipped into the source) and weights: [target, taps]."""
    base = floor(place)
    ratio = place - base
    reach, scale = _reach(plan, sampling)
    tap = floats(arange(b, 2 * reach)) - _plain(b, reach - 1)
    distance = expand(tap, 0) - expand(ratio, 1)
    kernel = _cubic_kernel(sampling.cubic) if sampling.mode == "cubic" else _linear_kernel
    weights = kernel(absolute(distance * scale))
    index = integers(expand(base, 1) + expand(tap, 0))
    if sampling.exclude_outside:
        inside = (index >= 0) & (index < plan.source)
        weights = where(inside, weights, 0.0)
    if sampling.antialias or sampling.exclude_outside:
        weights = weights / expand(weights.sum(1), 1)
    return maximum(minimum(index, plan.source - 1), 0), weights


def _reach(plan: AxisPlan, sampling: Sampling) -> tuple[DimLike, float | Term]:
    """Taps on each side, and the factor of distances: antialias widens the kernel where the axis shrinks."""
    width = 2 if sampling.mode == "cubic" else 1
    if not sampling.antialias:
        return width, np.float32(1)
    if isinstance(plan.scale, Term):
        return dims.maximum(dims.ceildiv(width * plan.source, plan.target), width), plan.scale.map("min", 1.0)
    scale = min(plan.scale, 1.0)
    return int(np.ceil(np.float32(width / scale))), np.float32(scale)


def _linear_kernel(distance: Table) -> Table:
    return maximum(1 - distance, 0.0)


def _cubic_kernel(a: float):
    """Keys' kernel with coefficient a, of a distance >= 0."""

    def kernel(d: Table) -> Table:
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return where(d <= 1, near, where(d < 2, far, 0.0))

    return kernel


def _combine(x: Term, plan: AxisPlan, index: Table, weights: Table) -> Term:
    taps = index.shape[1]
    if isinstance(taps, int) and taps <= _FEW_TAPS:
        return _sum_of_gathers(x, plan.axis, index, weights)
    if not isinstance(index, Term) and not isinstance(weights, Term) and isinstance(plan.source, int):
        return _contract(x, plan, index, weights)
    size = index.shape[0] * taps
    table = as_term(x.b, index).reshape(size)
    shape = (*x.shape[: plan.axis], plan.target, taps, *x.shape[plan.axis + 1 :])
    picked = x.take(table, plan.axis).reshape(*shape)
    column = as_term(x.b, weights, x.dtype).reshape(plan.target, taps, *(1,) * (x.rank - plan.axis - 1))
    return (picked * column).sum(plan.axis + 1)


def _sum_of_gathers(x: Term, axis: int, index: Table, weights: Table) -> Term:
    total = None
    for tap in range(index.shape[1]):
        picked = x.take(_column(x.b, index, tap), axis)
        weight = _column(x.b, weights, tap).convert(x.dtype)
        part = picked * weight.reshape(weight.shape[0], *(1,) * (x.rank - axis - 1))
        total = part if total is None else total + part
    return total


def _column(b: Builder, table: Table, k: int) -> Term:
    return table.at(1, k) if isinstance(table, Term) else as_term(b, np.ascontiguousarray(table[:, k]))


def _contract(x: Term, plan: AxisPlan, index: np.ndarray, weights: np.ndarray) -> Term:
    """The axis times a constant matrix [target, source]."""
    matrix = np.zeros((index.shape[0], plan.source), np.float64)
    np.add.at(matrix, (np.arange(index.shape[0])[:, None], index), weights)
    last = x.transpose(*(k for k in range(x.rank) if k != plan.axis), plan.axis)
    y = last.dot(as_term(x.b, matrix.astype(x.dtype.numpy)), contract=((x.rank - 1,), (1,)))
    back = [*range(plan.axis), x.rank - 1, *range(plan.axis, x.rank - 1)]
    return y.transpose(*back)
