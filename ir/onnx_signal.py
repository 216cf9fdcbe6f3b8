"""ONNX signal processing: DFT and STFT as products with constant matrices, MelWeightMatrix.

A complex tensor has a last axis of real and imaginary part. A long transform is split into two shorter ones
(Cooley and Tukey): n = n1 n2 costs n (n1 + n2) instead of n^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tcompile.ir import dims, dtypes
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_loops import branch
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term, arange, as_term, expand, full, join, number, where

_DENSE = 256  # points up to which a transform is one matrix
_TABLE = 1 << 22  # elements of the largest table made at import time


# Matrices -------------------------------------------------------------------------------------------------------


def _angles(b, rows: DimLike, columns: DimLike, length: DimLike, sign: int):
    """sign * 2 pi j k / length for j < rows, k < columns, with jk reduced modulo the length first: f64."""
    j, k = arange(b, rows), arange(b, columns)
    if isinstance(j, np.ndarray) and isinstance(k, np.ndarray) and j.size * k.size > _TABLE:
        j = as_term(b, j)  # so that the run makes what the artifact should not hold
    product = expand(j, 1) * expand(k, 0)
    if isinstance(product, np.ndarray) and isinstance(length, int):
        return (product % max(length, 1)) * (sign * 2 * math.pi / max(length, 1))
    reduced = as_term(b, product) % number(b, length, dtypes.I64).map("max", 1)
    return reduced.convert(dtypes.F64) * (sign * 2 * math.pi) / number(b, length, dtypes.F64)


def _cos_sin(x: Term, rows: DimLike, columns: DimLike, length: DimLike, sign: int) -> tuple[Term, Term]:
    """Cosines and sines of the angles, in the type of x."""
    angles = _angles(x.b, rows, columns, length, sign)
    if isinstance(angles, np.ndarray):
        return as_term(x.b, np.cos(angles), x.dtype), as_term(x.b, np.sin(angles), x.dtype)
    return angles.map("cos").convert(x.dtype), angles.map("sin").convert(x.dtype)


def _complex_matrix(x: Term, length: DimLike, columns: DimLike, sign: int) -> Term:
    """[length, parts of x, columns, 2]: y = sum over j of x_j exp(i angle)."""
    cos, sin = (part.expand(1, 3) for part in _cos_sin(x, length, columns, length, sign))
    rows = [join([cos, sin], 3)]
    if x.shape[-1] == 2:
        rows.append(join([-sin, cos], 3))
    return join(rows, 1)


def _real_matrix(x: Term, half: DimLike, length: DimLike) -> Term:
    """[half, parts of x, length, 1]: a real signal from the first half of its spectrum."""
    cos, sin = _cos_sin(x, half, length, length, 1)
    place = as_term(x.b, arange(x.b, half))
    # 0 and, for even lengths, the middle stand once in the whole spectrum; all others twice
    once = place.equals(0) | (place * 2).equals(number(x.b, length, dtypes.I64))
    weight = where(once, full(x.b, (), 1, x.dtype), 2).expand(1) / number(x.b, length, x.dtype)
    rows = [(cos * weight).expand(1, 3)]
    if x.shape[-1] == 2:
        rows.append((-sin * weight).expand(1, 3))
    return join(rows, 1)


def _apply(x: Term, matrix: Term) -> Term:
    """x [..., n, parts] with a matrix [n, parts, m, parts']."""
    return x.dot(matrix, contract=((x.rank - 2, x.rank - 1), (0, 1)))


def _transform(x: Term, sign: int) -> Term:
    """The unscaled transform along the last but one axis: [..., n, 1 or 2] -> [..., n, 2]."""
    length = x.shape[-2]
    first = _factor(length) if isinstance(length, int) and length > _DENSE else None
    if first is None:
        return _apply(x, _complex_matrix(x, length, length, sign))
    second, rank = length // first, x.rank
    head = x.shape[:-2]
    # x[j1 * second + j2] -> sums over j1, twiddled, then over j2: X[k1 + first * k2]
    lanes = [*range(rank - 2), rank - 1, rank - 2, rank]
    inner = _transform(x.reshape(*head, first, second, x.shape[-1]).transpose(*lanes), sign)
    outer = _transform(_twiddled(inner, length, sign).transpose(*lanes), sign)
    return outer.transpose(*lanes).reshape(*head, length, 2)


def _factor(length: int) -> int | None:
    """A divisor near the square root; None for a prime."""
    return next((k for k in range(math.isqrt(length), 1, -1) if length % k == 0), None)


def _twiddled(x: Term, length: int, sign: int) -> Term:
    """x [..., j2, k1, 2] times exp(i sign 2 pi j2 k1 / length)."""
    cos, sin = _cos_sin(x, x.shape[-3], x.shape[-2], length, sign)
    real, imaginary = x.at(x.rank - 1, 0), x.at(x.rank - 1, 1)
    parts = [real * cos - imaginary * sin, real * sin + imaginary * cos]
    return join([part.expand(part.rank) for part in parts], x.rank - 1)


# Operators ------------------------------------------------------------------------------------------------------


@onnx_op("DFT", since=17)
def dft(ctx: OpContext) -> Value:
    """DFT (opset 17 with an attribute axis, 20 with an operand): complex or real, forward or inverse, onesided."""
    x = Term(ctx.builder, ctx.input(0))
    inverse, onesided = bool(ctx.attr("inverse", 0)), bool(ctx.attr("onesided", 0))
    length = ctx.shape_operand(1, "length")[0] if ctx.has(1) else None
    axis = ctx.attr("axis", 1) if ctx.opset < 20 else ctx.known(2) if ctx.has(2) else -2

    def along(signal: Term, k: int) -> Term:
        return _dft(signal, k, length, inverse=inverse, onesided=onesided)

    if isinstance(axis, int):
        return along(x, ctx.axis(axis, x.rank)).value
    chosen = Term(ctx.builder, ctx.input(2)).reshape().convert(dtypes.I64)
    return _along_any(x, (chosen < 0).where(chosen + x.rank, chosen), 0, along).value


def _along_any(x: Term, axis: Term, first: int, along: Callable[[Term, int], Term]) -> Term:
    """``along`` the axis that a run-time scalar names: first, first + 1, ... or the last but one."""
    if first == x.rank - 2:
        return along(x, first)
    return branch(
        axis.equals(first), [x, axis],
        lambda signal, chosen: along(signal, first),
        lambda signal, chosen: _along_any(signal, chosen, first + 1, along),
    )  # fmt: skip


def _dft(x: Term, axis: int, length: DimLike | None, *, inverse: bool, onesided: bool) -> Term:
    last = x.rank - 1
    order = [*(k for k in range(last) if k != axis), axis, last]
    back = [order.index(k) for k in range(x.rank)]
    x = x.transpose(*order)
    given = x.shape[-2]
    if length is None:
        length = (given - 1) * 2 if inverse and onesided else given
    if length == 0:
        return full(x.b, (*x.shape[:-2], 0, 1 if inverse and onesided else 2), 0, x.dtype).transpose(*back)
    half = dims.floordiv(length, 2) + 1
    x = _fitted(x, half if inverse and onesided else length)
    if inverse and onesided:
        y = _apply(x, _real_matrix(x, half, length))
    elif onesided and (not isinstance(length, int) or length <= _DENSE):
        y = _apply(x, _complex_matrix(x, length, half, -1))
    else:
        y = _transform(x, 1 if inverse else -1)
        y = y / number(x.b, length, x.dtype) if inverse else y
        y = y.part(y.rank - 2, 0, half) if onesided else y
    return y.transpose(*back)


def _fitted(x: Term, length: DimLike) -> Term:
    """The last but one axis cut or filled with zeros to a length."""
    axis, given = x.rank - 2, x.shape[-2]
    if given == length:
        return x
    high = [0] * x.rank
    high[axis] = dims.maximum(length - given, 0)
    zero = number(x.b, 0, x.dtype)
    x = Term(x.b, x.b.emit("pad", x.value, zero.value, low=(0,) * x.rank, high=tuple(high), mode="constant"))
    return x.part(axis, 0, length)


@onnx_op("STFT", since=17)
def stft(ctx: OpContext) -> Value:
    """STFT (opset 17): signal [batch, length, 1 or 2] -> [batch, frames, bins, 2]."""
    b, x = ctx.builder, Term(ctx.builder, ctx.input(0))
    x = x.expand(2) if x.rank == 2 else x
    (step,) = ctx.shape_operand(1, "step")
    length = ctx.shape_operand(3, "frame")[0] if ctx.has(3) else ctx.input(2).shape[0] if ctx.has(2) else x.shape[1]
    frames = dims.floordiv(x.shape[1] - length, step) + 1
    start = as_term(b, arange(b, frames), dtypes.I64) * number(b, step, dtypes.I64)
    index = start.expand(1) + as_term(b, arange(b, length))
    cut = x.take(index.reshape(frames * length), 1).reshape(x.shape[0], frames, length, x.shape[2])
    if ctx.has(2):
        cut = cut * Term(b, ctx.input(2)).reshape(length, 1)
    return _dft(cut, 2, length, inverse=False, onesided=bool(ctx.attr("onesided", 1))).value


@onnx_op("MelWeightMatrix", since=17)
def mel_weight_matrix(ctx: OpContext) -> Value:
    """MelWeightMatrix (opset 17): triangles over the spectrogram bins, [bins, mel bins]."""
    b = ctx.builder
    (count,), (length,) = ctx.shape_operand(0, "mel"), ctx.shape_operand(1, "length")
    rate, lower, upper = (Term(b, ctx.input(k)).reshape().convert(dtypes.F64) for k in (2, 3, 4))
    low, high = ((edge / 700).map("log1p") * (2595 / math.log(10)) for edge in (lower, upper))
    place = as_term(b, arange(b, count + 2)).convert(dtypes.F64)
    mel = place * ((high - low) / number(b, count + 2, dtypes.F64)) + low
    hertz = (mel * (math.log(10) / 2595)).map("expm1") * 700
    corners = (hertz * number(b, length + 1, dtypes.F64) / rate).map("floor")
    left, centre, right = (corners.part(0, k, count) for k in range(3))
    at = as_term(b, arange(b, dims.floordiv(length, 2) + 1)).convert(dtypes.F64).expand(1)
    rising = ((at >= left) & (at <= centre)).where((at - left) / (centre - left), 0.0)
    rising = centre.equals(left).where(at.equals(centre).convert(dtypes.F64), rising)
    falling = (at >= centre) & (at < right)
    return falling.where((right - at) / (right - centre), rising).convert(dtypes.from_onnx(ctx.attr("output_datatype", 1))).value
