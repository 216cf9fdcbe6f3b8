"""The optimisers of ai.onnx.preview.training: one update of each tensor."""

from __future__ import annotations

from collections.abc import Callable

from tcompile.ir import dtypes
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term

_TRAINING = "ai.onnx.preview.training"


def _updates(ctx: OpContext, kinds: int, update: Callable[..., tuple[Term, ...]]) -> list[Value]:
    """Operands are the rate, the update count, then ``kinds`` groups of tensors; outputs are all first results, all second..."""
    tensors = [Term(ctx.builder, value) for value in ctx.tensors()]
    rate, count, *groups = tensors
    size = len(groups) // kinds
    results = [update(ctx, rate.reshape(), count.reshape(), *groups[k::size]) for k in range(size)]
    return [result[k].value for k in range(len(results[0])) for result in results]


def _regularised(ctx: OpContext, x: Term, gradient: Term) -> Term:
    return x * ctx.attr("norm_coefficient", 0.0) + gradient


@onnx_op("Adam", domain=_TRAINING)
def adam(ctx: OpContext) -> list[Value]:
    """Adam: groups X, gradient, momentum V, squared momentum H."""
    return _updates(ctx, 4, _adam)


def _adam(ctx: OpContext, rate: Term, count: Term, x: Term, gradient: Term, v: Term, h: Term) -> tuple[Term, Term, Term]:
    alpha, beta = ctx.attr("alpha", 0.9), ctx.attr("beta", 0.999)
    g = _regularised(ctx, x, gradient)
    v, h = v * alpha + g * (1 - alpha), h * beta + g * g * (1 - beta)
    turn = count.convert(dtypes.F64)
    power = [number.map("pow", turn) for number in (turn.lift(alpha), turn.lift(beta))]
    corrected = rate.convert(dtypes.F64) * (1 - power[1]).map("sqrt") / (1 - power[0])
    step = (turn > 0).where(corrected, rate.convert(dtypes.F64)).convert(x.dtype)
    new = x - step * (v / (h.map("sqrt") + ctx.attr("epsilon", 1e-6)))
    return new * (1 - ctx.attr("norm_coefficient_post", 0.0)), v, h


@onnx_op("Adagrad", domain=_TRAINING)
def adagrad(ctx: OpContext) -> list[Value]:
    """Adagrad: groups X, gradient, squared accumulated gradient H."""
    return _updates(ctx, 3, _adagrad)


def _adagrad(ctx: OpContext, rate: Term, count: Term, x: Term, gradient: Term, h: Term) -> tuple[Term, Term]:
    step = rate.convert(x.dtype) / (count.convert(x.dtype) * ctx.attr("decay_factor", 0.0) + 1)
    g = _regularised(ctx, x, gradient)
    h = h + g * g
    return x - step * g / (h.map("sqrt") + ctx.attr("epsilon", 0.0)), h


@onnx_op("Momentum", domain=_TRAINING)
def momentum(ctx: OpContext) -> list[Value]:
    """Momentum, mode standard or nesterov: groups X, gradient, momentum V."""
    return _updates(ctx, 3, _momentum)


def _momentum(ctx: OpContext, rate: Term, count: Term, x: Term, gradient: Term, v: Term) -> tuple[Term, Term]:
    alpha = ctx.attr("alpha")
    g = _regularised(ctx, x, gradient)
    # the gradient counts fully in the first update
    weight = (count > 0).where(x.lift(ctx.attr("beta")), 1)
    v = v * alpha + weight * g
    step = v if ctx.attr("mode") == "standard" else g + v * alpha
    return x - rate.convert(x.dtype) * step, v
