"""ONNX matrix products: MatMul, Gemm and the integer ones, as ``dot_general``."""

from __future__ import annotations

from tcompile.ir import dims
from tcompile.ir.dtypes import F64, I32, DType
from tcompile.ir.graph import Value
from tcompile.ir.onnx_builder import ImportBuilder
from tcompile.ir.onnx_context import Item, OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term


def matmul(b: ImportBuilder, x: Value, y: Value, dtype: DType) -> Value:
    """``numpy.matmul``: vectors get an axis, leading axes broadcast. Batch axes of extent 1 on one side stay out of the product."""
    x2 = b.reshape(x, (1, *x.shape)) if x.rank == 1 else x
    y2 = b.reshape(y, (*y.shape, 1)) if y.rank == 1 else y
    if y2.rank == 2:
        # [..., m, k] x [k, n]: all leading axes are rows
        result = b.emit("dot_general", x2, y2, batch=((), ()), contract=((x2.rank - 1,), (0,)), dtype=dtype)
    else:
        result = _batched(b, x2, y2, dtype)
    shape = list(result.shape)
    if x.rank == 1:
        del shape[-2]
    if y.rank == 1:
        del shape[-1]
    return b.reshape(result, shape)


def _batched(b: ImportBuilder, x: Value, y: Value, dtype: DType) -> Value:
    batch = b.broadcast_shape(x.shape[:-2], y.shape[:-2])
    x = b.broadcast_to(x, (*batch, *x.shape[-2:]))
    y = b.broadcast_to(y, (*batch, *y.shape[-2:]))
    axes = tuple(range(len(batch)))
    return b.emit("dot_general", x, y, batch=(axes, axes), contract=((len(batch) + 1,), (len(batch),)), dtype=dtype)


@onnx_op("MatMul")
def import_matmul(ctx: OpContext) -> Item:
    """Products of matrices of all ranks from 1 on."""
    x, y = ctx.input(0), ctx.input(1)
    if not x.rank or not y.rank or x.dtype != y.dtype:
        ctx.invalid(f"its operands are {x.type} and {y.type}", hint="both need rank 1 or more and one element type")
    return matmul(ctx.builder, x, y, x.dtype)


@onnx_op("Gemm")
def import_gemm(ctx: OpContext) -> Item:
    """alpha A' B' + beta C, A' and B' transposed where ``transA`` and ``transB`` say so."""
    b = ctx.builder
    x, y = ctx.input(0), ctx.input(1)
    if x.rank != 2 or y.rank != 2:
        ctx.invalid(f"its operands are {x.type} and {y.type}", hint="both must be matrices")
    contract = ((0 if ctx.attr("transA", 0) else 1,), (1 if ctx.attr("transB", 0) else 0,))
    product = Term(b, b.emit("dot_general", x, y, batch=((), ()), contract=contract, dtype=x.dtype))
    alpha, beta = ctx.attr("alpha", 1.0), ctx.attr("beta", 1.0)
    if alpha != 1.0:
        product = _scaled(product, alpha)
    if not ctx.has(2) or beta == 0.0:
        return product.value
    addend = Term(b, ctx.input(2))
    addend = addend if beta == 1.0 else _scaled(addend, beta)
    return (product + addend.broadcast(*product.shape)).value


def _scaled(x: Term, factor: float) -> Term:
    """A float factor of a tensor that may be an integer one."""
    if x.dtype.is_float:
        return (x.convert(x.dtype.compute) * factor).convert(x.dtype)
    return (x.convert(F64) * factor).convert(x.dtype)


@onnx_op("MatMulInteger", since=10)
def import_matmul_integer(ctx: OpContext) -> Item:
    """(A - a_zero) (B - b_zero) in i32; zero points per tensor, per row of A or per column of B.

    sum (a - p)(b - q) == sum a b - p sum b - q sum a + k p q, so that the product itself stays 8-bit.
    """
    b = ctx.builder
    x, y = Term(b, ctx.input(0)), Term(b, ctx.input(1))
    product = Term(b, matmul(b, x.value, y.value, I32))
    p, q = (_zero_point(ctx, k) for k in (2, 3))
    if p is not None:
        p = p.expand(p.rank) if p.rank == x.rank - 1 and p.rank > 0 else p
        columns = _sums(y, y.rank - 2 if y.rank > 1 else 0, keep=y.rank > 1)
        product = product - (p if x.rank > 1 else p.reshape()) * columns
    if q is not None:
        rows = _sums(x, x.rank - 1, keep=y.rank > 1)
        product = product - q * rows
    if p is not None and q is not None:
        product = product + p * q * x.shape[-1]
    return product.value


def _zero_point(ctx: OpContext, k: int) -> Term | None:
    """A zero point as i32, None where it is absent or 0."""
    if not ctx.has(k):
        return None
    constant = ctx.constant(k)
    if constant is not None and not constant.any():
        return None
    point = Term(ctx.builder, ctx.input(k)).convert(I32)
    return point.reshape() if dims.product(point.shape) == 1 else point


def _sums(x: Term, axis: int, *, keep: bool) -> Term:
    return x.convert(I32).reduce("add", [axis], keepdims=keep)
