"""ONNX reductions, and what is made of them: softmax, norms over axes."""

from __future__ import annotations

from collections.abc import Callable

from tcompile.ir import dims
from tcompile.ir.dtypes import BOOL, F32, F64, DType
from tcompile.ir.onnx_axes import Axes, RunTimeAxes, StaticAxes
from tcompile.ir.onnx_context import Item, OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term

# Reduce* ----------------------------------------------------------------------------------------------

Fold = Callable[[Term, Axes], Term]  # reduces axes, keeping them with extent 1


def _sum(x: Term, axes: Axes) -> Term:
    return axes.reduce(x, "add")


def _mean(x: Term, axes: Axes) -> Term:
    return _sum(x, axes) / axes.count(x)


def _extreme(fn: str) -> Fold:
    return lambda x, axes: axes.reduce(x, {"max": "or", "min": "and"}[fn] if x.dtype == BOOL else fn)


def log_sum_exp(x: Term, axes: Axes) -> Term:
    """log(sum(e^x)), moved by the maximum where that is finite."""
    top = axes.reduce(x, "max")
    top = top.map("isinf").where(0.0, top)
    return _sum((x - top).map("exp"), axes).map("log") + top


_FOLDS: dict[str, Fold] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceMax": _extreme("max"),
    "ReduceMin": _extreme("min"),
    "ReduceProd": lambda x, axes: axes.reduce(x, "mul"),
    "ReduceL1": lambda x, axes: _sum(x.map("abs"), axes),
    "ReduceL2": lambda x, axes: _real(_sum(x * x, axes)).map("sqrt"),
    "ReduceSumSquare": lambda x, axes: _sum(x * x, axes),
    "ReduceLogSum": lambda x, axes: _real(_sum(x, axes)).map("log"),
    "ReduceLogSumExp": lambda x, axes: log_sum_exp(_real(x), axes),
}


def _real(x: Term) -> Term:
    return x if x.dtype.is_float else x.convert(F32 if x.dtype.bits < 32 else F64)


@onnx_op(*_FOLDS)
def import_reduce(ctx: OpContext) -> Item:
    """Reduces the given axes (all without any, unless ``noop_with_empty_axes``); narrow floats in float32."""
    x = Term(ctx.builder, ctx.input(0))
    axes = _reduced_axes(ctx, x)
    result = _FOLDS[ctx.op](x.convert(x.dtype.compute), axes).convert(x.dtype)
    return (result if ctx.attr("keepdims", 1) else axes.drop(result)).value


def _reduced_axes(ctx: OpContext, x: Term) -> Axes:
    """The axes to reduce; none where the operator is to do nothing but its elementwise part."""
    if ctx.has(1) and ctx.known(1) is None and ctx.input(1).shape != (0,):
        return RunTimeAxes(ctx, x, ctx.input(1))
    axes = ctx.axes_operand(1, "axes", x.rank) if not ctx.has(1) or ctx.input(1).shape != (0,) else None
    if not axes:
        axes = [] if ctx.attr("noop_with_empty_axes", 0) else range(x.rank)
    return StaticAxes(tuple(sorted(set(axes))))


# arg ---------------------------------------------------------------------------------------------------


@onnx_op("ArgMax", "ArgMin")
def import_arg_reduce(ctx: OpContext) -> Item:
    """The index of the first extreme along an axis, or of the last with ``select_last_index``."""
    x, b = ctx.input(0), ctx.builder
    axis = ctx.axis(ctx.attr("axis"), x.rank)
    fn = "max" if ctx.op == "ArgMax" else "min"
    found = b.emit("arg_reduce", x, fn=fn, axis=axis, last=bool(ctx.attr("select_last_index", 0)))
    if not ctx.attr("keepdims", 1):
        return found
    return b.reshape(found, tuple(1 if k == axis else extent for k, extent in enumerate(x.shape)))


# Softmax and relatives --------------------------------------------------------------------------------


def softmax(x: Term, axes: Axes) -> Term:
    """e^x / sum(e^x), moved by the maximum."""
    e = (x - axes.reduce(x, "max")).map("exp")
    return e / _sum(e, axes)


def log_softmax(x: Term, axes: Axes) -> Term:
    """x - log(sum(e^x)), moved by the maximum."""
    moved = x - axes.reduce(x, "max")
    return moved - _sum(moved.map("exp"), axes).map("log")


@onnx_op("Softmax", "LogSoftmax")
def import_softmax(ctx: OpContext) -> Item:
    """Along one axis; before opset 13 over all axes from ``axis`` on. Narrow floats round where Softmax's function body does."""
    x = Term(ctx.builder, ctx.input(0))
    axes = StaticAxes(tuple(_softmax_axes(ctx, x.rank)))
    if ctx.op == "Softmax":
        return softmax(x, axes).value
    return log_softmax(x.convert(x.dtype.compute), axes).convert(x.dtype).value


def _softmax_axes(ctx: OpContext, rank: int) -> list[int]:
    axis = ctx.attr("axis")
    if ctx.opset >= 13:
        return [ctx.axis(axis, rank)]
    if axis == rank:
        ctx.fail("a softmax over no axes is not supported")
    return list(range(ctx.axis(axis, rank), rank))


@onnx_op("Hardmax")
def import_hardmax(ctx: OpContext) -> Item:
    """1 at the first maximum, else 0; the axes are those of Softmax."""
    x, b = ctx.input(0), ctx.builder
    axes = _softmax_axes(ctx, x.rank)
    # several axes count as one: they are the last ones
    flat = x if len(axes) == 1 else b.reshape(x, (*x.shape[: axes[0]], dims.product(x.shape[axes[0] :])))
    first = Term(b, b.emit("arg_reduce", flat, fn="max", axis=axes[0], last=False)).expand(axes[0])
    hit = Term(b, b.iota(flat.shape, axes[0])).equals(first).convert(x.dtype)
    return hit.reshape(*x.shape).value


@onnx_op("LpNormalization")
def import_lp_normalization(ctx: OpContext) -> Item:
    """x / norm(x) along an axis, p 1 or 2; 0 where the norm is 0."""
    x = Term(ctx.builder, ctx.input(0))
    wide = x.convert(x.dtype.compute)
    axis, p = ctx.axis(ctx.attr("axis"), x.rank), ctx.attr("p")
    if p not in (1, 2):
        ctx.invalid(f"p is {p}, and must be 1 or 2")
    along = StaticAxes((axis,))
    norm = _sum(wide.map("abs"), along) if p == 1 else _sum(wide * wide, along).map("sqrt")
    return norm.equals(0).where(0.0, wide / norm).convert(x.dtype).value


@onnx_op("MeanVarianceNormalization", since=9)
def import_mean_variance(ctx: OpContext) -> Item:
    """(x - mean) / sqrt(variance), with ONNX's 1e-9 beside the deviation."""
    x = Term(ctx.builder, ctx.input(0))
    axes = StaticAxes(tuple(ctx.axis(axis, x.rank) for axis in ctx.attr("axes", None) or (0, 2, 3)))
    wide = x.convert(x.dtype.compute)
    centred = wide - _mean(wide, axes)
    deviation = _mean(centred * centred, axes).map("sqrt")
    return (centred / (deviation + 1e-9)).convert(x.dtype).value


# Normalisation over trailing axes ---------------------------------------------------------------------


@onnx_op("LayerNormalization")  # ONNX Runtime writes it into older opsets, too
def import_layer_normalization(ctx: OpContext) -> tuple[Item, ...]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the axes from ``axis`` on; also the mean and 1 / deviation."""
    x = Term(ctx.builder, ctx.input(0))
    axes = StaticAxes(tuple(range(ctx.axis(ctx.attr("axis", -1), x.rank), x.rank)))
    wide = x.convert(_stash(ctx, x))
    mean = _mean(wide, axes)
    centred = wide - mean
    scale = (_mean(centred * centred, axes) + ctx.attr("epsilon", 1e-5)).map("sqrt").map("recip")
    y = (centred * scale).convert(x.dtype) * ctx.input(1)
    if ctx.has(2):
        y = y + ctx.input(2)
    return y.value, mean.value, scale.value


@onnx_op("RMSNormalization")
def import_rms_normalization(ctx: OpContext) -> Item:
    """x / sqrt(mean(x^2) + epsilon) * scale over the axes from ``axis`` on."""
    x = Term(ctx.builder, ctx.input(0))
    axes = StaticAxes(tuple(range(ctx.axis(ctx.attr("axis", -1), x.rank), x.rank)))
    wide = x.convert(_stash(ctx, x))
    scale = (_mean(wide * wide, axes) + ctx.attr("epsilon", 1e-5)).map("sqrt").map("recip")
    scaled = (wide * scale).convert(x.dtype)
    return (scaled * Term(ctx.builder, ctx.input(1)).convert(x.dtype)).value


def _stash(ctx: OpContext, x: Term) -> DType:
    """The type that statistics are computed in: ``stash_type``, and never narrower than the input."""
    return F32 if ctx.attr("stash_type", 1) == 1 and x.dtype.bits <= 32 else x.dtype.compute
