"""ONNX operators that work element by element, as ``map`` and ``convert``.

Formulas of several steps on floats narrower than 32 bits are computed in float32 and rounded once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.dtypes import BOOL, F32, F64, I64, DType
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import HostConstant, Item, OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term

# Arithmetic, comparison, logic ------------------------------------------------------------------------

_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "And": "and", "Or": "or", "Xor": "xor",
    "BitwiseAnd": "and", "BitwiseOr": "or", "BitwiseXor": "xor",
    "Equal": "eq", "Less": "lt", "LessOrEqual": "le", "Greater": "gt", "GreaterOrEqual": "ge",
}  # fmt: skip

_UNARY = {
    "Abs": "abs", "Neg": "neg", "Sign": "sign", "Ceil": "ceil", "Floor": "floor", "Round": "round", "Sqrt": "sqrt", "Reciprocal": "recip",
    "Exp": "exp", "Log": "log", "Sin": "sin", "Cos": "cos", "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan",
    "Sinh": "sinh", "Cosh": "cosh", "Tanh": "tanh", "Asinh": "asinh", "Acosh": "acosh", "Atanh": "atanh",
    "Erf": "erf", "Sigmoid": "sigmoid", "IsNaN": "isnan", "Not": "not", "BitwiseNot": "not",
}  # fmt: skip


def operands(ctx: OpContext) -> tuple[Term, Term]:
    """Both operands of a binary operator; before opset 7 the second one is aligned by ``axis`` where ``broadcast`` is set."""
    a, b = ctx.input(0), ctx.input(1)
    if a.dtype != b.dtype and ctx.op != "Pow":
        ctx.invalid(f"its operands are {a.type} and {b.type}", hint="both must have one element type")
    if ctx.domain == "" and ctx.opset < 7 and ctx.attr("broadcast", 0) and ctx.has_attr("axis"):
        axis = ctx.axis(ctx.attr("axis"), a.rank)
        b = ctx.builder.reshape(b, (*b.shape, *[1] * (a.rank - axis - b.rank)))
    return Term(ctx.builder, a), Term(ctx.builder, b)


@onnx_op(*_BINARY)
def import_binary(ctx: OpContext) -> Item:
    """Binary operators with NumPy broadcasting. Integers wrap; integer Div truncates."""
    if ctx.op == "Equal" and any(isinstance(ctx.item(k), HostConstant) for k in (0, 1)):
        return _equal_strings(ctx)
    a, b = operands(ctx)
    return a.map(_BINARY[ctx.op], b).value


def _equal_strings(ctx: OpContext) -> Item:
    a, b = ctx.constant(0), ctx.constant(1)
    if a is None or b is None:
        ctx.fail("strings can only be compared where both are constant")
    return ctx.builder.constant(np.asarray(np.equal(a, b), np.bool_))


@onnx_op(*_UNARY)
def import_unary(ctx: OpContext) -> Item:
    """Unary operators."""
    return ctx.builder.map(_UNARY[ctx.op], ctx.input(0))


@onnx_op("BitShift")
def import_bit_shift(ctx: OpContext) -> Item:
    """Shifts by the width or more, or by less than 0, leave nothing but the sign."""
    a, b = operands(ctx)
    direction = ctx.attr("direction")
    if direction not in ("LEFT", "RIGHT"):
        ctx.invalid(f"the direction {direction!r} is neither LEFT nor RIGHT")
    if a.dtype.kind == "i" and direction == "RIGHT":
        last = a.dtype.bits - 1
        b = ((b < 0) | (b > last)).where(last, b)
    return a.map("shl" if direction == "LEFT" else "shr", b).value


@onnx_op("Mod")
def import_mod(ctx: OpContext) -> Item:
    """fmod=1: the sign of the dividend (C); 0: the sign of the divisor (Python)."""
    a, b = operands(ctx)
    if ctx.attr("fmod", 0):
        return a.map("fmod", b).value
    if a.dtype.is_integer:
        return a.map("mod", b).value
    # the floored remainder is the truncated one, moved by the divisor where the signs differ
    rest = a.map("fmod", b)
    wrong = (rest.map("ne", 0)) & (rest < 0).map("ne", b < 0)
    return wrong.where(rest + b, rest).value


@onnx_op("Pow")
def import_pow(ctx: OpContext) -> Item:
    """The base's element type; a mixed pair is computed in a type that holds both."""
    a, b = operands(ctx)
    common = _common(a.dtype, b.dtype)
    return a.convert(common).map("pow", b.convert(common)).convert(a.dtype).value


def _common(a: DType, b: DType) -> DType:
    if a == b:
        return a
    if a.is_float == b.is_float:
        wide = max(a, b, key=lambda dtype: dtype.bits)
        return wide if a.is_integer == b.is_integer and wide.kind == "f" else I64
    return a if a.is_float else F64


@onnx_op("Max", "Min", "Sum", "Mean")
def import_variadic(ctx: OpContext) -> Item:
    """Reduces any number of operands with broadcasting, from left to right."""
    terms = [Term(ctx.builder, value) for value in ctx.tensors()]
    fn = {"Max": "max", "Min": "min"}.get(ctx.op, "add")
    if not terms:
        ctx.invalid("it needs at least one input")
    total = functools.reduce(lambda a, b: a.map(fn, b), terms)
    return (total / len(terms) if ctx.op == "Mean" else total).value


@onnx_op("Where")
def import_where(ctx: OpContext) -> Item:
    """Three-way broadcasting."""
    return ctx.builder.nary("where", ctx.input(0), ctx.input(1), ctx.input(2))


@onnx_op("IsInf")
def import_is_inf(ctx: OpContext) -> Item:
    """Infinity of the signs that ``detect_negative`` and ``detect_positive`` ask for."""
    x = Term(ctx.builder, ctx.input(0))
    found = x.map("isinf")
    if not ctx.attr("detect_negative", 1):
        found = found & (x > 0)
    if not ctx.attr("detect_positive", 1):
        found = found & (x < 0)
    return found.value


# Activations ------------------------------------------------------------------------------------------

Formula = Callable[[OpContext, Term], Term]


def _activation(*ops: str, since: int = 1) -> Callable[[Formula], Formula]:
    """Registers a formula of one operand, computed in at least float32."""

    def register(formula: Formula) -> Formula:
        @onnx_op(*ops, since=since)
        def handler(ctx: OpContext) -> Item:
            x = Term(ctx.builder, ctx.input(0))
            return formula(ctx, x.convert(x.dtype.compute)).convert(x.dtype).value

        return formula

    return register


@onnx_op("Relu")
def import_relu(ctx: OpContext) -> Item:
    """max(x, 0), for floats and integers."""
    return Term(ctx.builder, ctx.input(0)).map("max", 0).value


@_activation("LeakyRelu")
def leaky_relu(ctx: OpContext, x: Term) -> Term:
    """x, or alpha x below 0."""
    return (x < 0).where(x * ctx.attr("alpha"), x)


@onnx_op("PRelu")
def import_prelu(ctx: OpContext) -> Item:
    """x, or slope x below 0; before opset 7 a 1-D slope belongs to axis 1."""
    x, slope = ctx.input(0), ctx.input(1)
    if ctx.opset < 7 and slope.rank == 1 and x.rank > 2:
        slope = ctx.builder.reshape(slope, (*slope.shape, *[1] * (x.rank - 2)))
    x = Term(ctx.builder, x)
    return (x < 0).where(x * slope, x).value


@_activation("Elu")
def elu(ctx: OpContext, x: Term) -> Term:
    """x, or alpha (e^x - 1) below 0."""
    return (x < 0).where(x.map("expm1") * ctx.attr("alpha"), x)


@_activation("Selu")
def selu(ctx: OpContext, x: Term) -> Term:
    """gamma x, or gamma alpha (e^x - 1) below 0."""
    return (x <= 0).where(x.map("expm1") * ctx.attr("alpha"), x) * ctx.attr("gamma")


@_activation("Celu")
def celu(ctx: OpContext, x: Term) -> Term:
    """max(0, x) + min(0, alpha (e^(x / alpha) - 1))."""
    alpha = ctx.attr("alpha")
    return x.map("max", 0) + ((x / alpha).map("expm1") * alpha).map("min", 0)


@_activation("ThresholdedRelu")
def thresholded_relu(ctx: OpContext, x: Term) -> Term:
    """x above alpha, else 0."""
    return (x > ctx.attr("alpha")).where(x, 0.0)


@_activation("HardSigmoid")
def hard_sigmoid(ctx: OpContext, x: Term) -> Term:
    """alpha x + beta, kept in [0, 1]."""
    return (x * ctx.attr("alpha") + ctx.attr("beta")).map("min", 1).map("max", 0)


@_activation("HardSwish")
def hard_swish(ctx: OpContext, x: Term) -> Term:
    """x (x / 6 + 1/2), the factor kept in [0, 1]."""
    return x * (x * (1 / 6) + 0.5).map("min", 1).map("max", 0)


def _softplus(x: Term) -> Term:
    # log(1 + e^x) == max(x, 0) + log(1 + e^-|x|), which does not overflow
    return x.map("max", 0) + (-x.map("abs")).map("exp").map("log1p")


@_activation("Softplus")
def softplus(ctx: OpContext, x: Term) -> Term:
    """log(1 + e^x)."""
    return _softplus(x)


@_activation("Mish")
def mish(ctx: OpContext, x: Term) -> Term:
    """x tanh(softplus(x))."""
    return x * _softplus(x).map("tanh")


@_activation("Softsign")
def softsign(ctx: OpContext, x: Term) -> Term:
    """x / (1 + |x|)."""
    return x / (x.map("abs") + 1)


@_activation("Gelu", since=20)
def gelu(ctx: OpContext, x: Term) -> Term:
    """x Phi(x), exact or by tanh."""
    return gelu_tanh(x) if ctx.attr("approximate") == "tanh" else gelu_erf(x)


def gelu_erf(x: Term) -> Term:
    """x (1 + erf(x / sqrt 2)) / 2."""
    return x * 0.5 * ((x * 0.5**0.5).map("erf") + 1)


def gelu_tanh(x: Term) -> Term:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    inner = (x + x * x * x * 0.044715) * (2 / np.pi) ** 0.5
    return x * 0.5 * (inner.map("tanh") + 1)


@_activation("Swish")
def swish(ctx: OpContext, x: Term) -> Term:
    """x sigmoid(alpha x)."""
    alpha = ctx.attr("alpha", 1.0)
    return x * (x if alpha == 1.0 else x * alpha).map("sigmoid")


@onnx_op("Clip")
def import_clip(ctx: OpContext) -> Item:
    """min(max(x, low), high): where the bounds cross, high wins. Attributes before opset 11, operands from then on."""
    x = Term(ctx.builder, ctx.input(0))
    for k, (name, fn) in enumerate((("min", "max"), ("max", "min")), 1):
        bound = ctx.attr(name, None) if ctx.opset < 11 else ctx.optional(k)
        if bound is not None:
            x = x.map(fn, bound)
    return x.value


@onnx_op("Shrink")
def import_shrink(ctx: OpContext) -> Item:
    """x + bias below -lambd, x - bias above lambd, else 0; integers are compared and moved as reals."""
    x = Term(ctx.builder, ctx.input(0))
    lambd, bias = ctx.attr("lambd"), ctx.attr("bias")
    real = x.convert(x.dtype.compute if x.dtype.is_float else F32 if x.dtype.bits < 32 else F64)
    moved = (real < -lambd).where(real + bias, (real > lambd).where(real - bias, 0.0))
    return moved.convert(x.dtype).value


# Casts ------------------------------------------------------------------------------------------------


@onnx_op("Cast")
def import_cast(ctx: OpContext) -> Item:
    """To the element type of ``to`` (a name in opset 5 and before)."""
    to = ctx.attr("to")
    if to == 8 or isinstance(ctx.item(0), HostConstant):
        return _cast_strings(ctx, to)
    return _cast(ctx, dtypes.from_onnx(to))


@onnx_op("CastLike")
def import_cast_like(ctx: OpContext) -> Item:
    """To the element type of the second operand."""
    return _cast(ctx, ctx.input(1).dtype)


def _cast(ctx: OpContext, dtype: DType) -> Value:
    x = ctx.input(0)
    saturate = bool(ctx.attr("saturate", 1))
    if dtype == dtypes.F8E8M0 and x.dtype != dtype:
        return _cast_to_scale(ctx, x)
    if dtype.is_integer and dtype.bits < 8 and x.dtype.is_float:
        x = ctx.builder.convert(x, dtypes.I32)  # what does not fit keeps its low bits
    return ctx.builder.convert(x, dtype, saturate=saturate)


def _cast_to_scale(ctx: OpContext, x: Value) -> Value:
    """f8e8m0, a power of two: rounded ``up``, ``down`` or ``nearest`` (``round_mode``); the sign is ignored by the format."""
    b, mode = ctx.builder, ctx.attr("round_mode", "up")
    bits = Term(b, b.emit("bitcast", b.convert(x, F32), dtype=dtypes.U32))
    exponent, fraction = bits.map("shr", 23) & 0xFF, bits & 0x7FFFFF
    special = exponent.equals(0xFF)
    if mode == "up":
        increment = fraction > 0
    elif mode == "nearest":
        increment = fraction >= 0x400000
    elif mode == "down":
        increment = fraction < 0
    else:
        ctx.invalid(f"the round_mode {mode!r} is not up, down or nearest")
    limit = 0xFE if ctx.attr("saturate", 1) else 0xFF
    raised = (exponent + increment.convert(dtypes.U32)).map("min", limit)
    # infinity saturates to the largest power; NaN has all bits set
    infinite = special & fraction.equals(0)
    code = special.where(infinite.where(_full(raised, limit), _full(raised, 0xFF)), raised)
    return b.emit("bitcast", code.convert(dtypes.U8).value, dtype=dtypes.F8E8M0)


def _full(like: Term, number: int) -> Term:
    """A number spread to a term's shape."""
    return Term(like.b, like.b.scalar_like(number, like.value))


def _cast_strings(ctx: OpContext, to: int) -> Item:
    array = ctx.constant(0)
    if array is None:
        ctx.fail("casts to and from strings are only supported on constants")
    if to == 8:
        return HostConstant(array.astype(str).astype(object))
    dtype = dtypes.from_onnx(to)
    try:
        number = array.astype(np.float64) if dtype.is_float else array.astype(np.float64).astype(np.int64)
    except ValueError as error:
        ctx.invalid(f"a string is no number: {error}")
    return ctx.builder.constant(number, dtype)


@onnx_op("BitCast")
def import_bit_cast(ctx: OpContext) -> Item:
    """The same bits under another element type of the same width."""
    x, dtype = ctx.input(0), dtypes.from_onnx(ctx.attr("to"))
    if dtype.bytes != x.dtype.bytes or ((dtype.bits < 8) != (x.dtype.bits < 8) and BOOL not in (dtype, x.dtype)):
        ctx.invalid(f"{x.dtype} has {x.dtype.bits} bits, and {dtype} has {dtype.bits}")
    # a bool is a byte of 0 or 1
    if dtype == BOOL:
        return ctx.builder.convert(_bit_cast(ctx, x, dtypes.U8), BOOL)
    return _bit_cast(ctx, ctx.builder.convert(x, dtypes.U8) if x.dtype == BOOL else x, dtype)


def _bit_cast(ctx: OpContext, x: Value, dtype: DType) -> Value:
    return x if x.dtype == dtype else ctx.builder.emit("bitcast", x, dtype=dtype)
