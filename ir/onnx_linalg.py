"""ONNX linear algebra beyond products: Det."""

from __future__ import annotations

from tcompile.ir import dims, dtypes
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_loops import counted_loop
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term, full, number


@onnx_op("Det", since=11)
def determinant(ctx: OpContext) -> Value:
    """Det (opset 11, 22): Gaussian elimination with row pivoting of all matrices [..., n, n] at once."""
    x = Term(ctx.builder, ctx.input(0))
    size, batch = x.shape[-1], dims.product(x.shape[:-2])
    matrices = x.convert(x.dtype.compute).reshape(batch, size, size)
    product = full(x.b, (batch,), 1, matrices.dtype)
    (_, product), _ = counted_loop(ctx.builder, size, [matrices, product], [], _eliminate)
    return product.convert(x.dtype).reshape(*x.shape[:-2]).value


def _eliminate(k: DimLike, carried: list[Term], captures: list[Term | None]) -> tuple[list[Term], list[Term]]:
    """One column: the row with the largest element becomes row k, and is taken from the rows below."""
    m, product = carried
    b, (batch, size, _) = m.b, m.shape
    step = number(b, k, dtypes.I64)
    row = Term(b, b.iota((batch, size), 1))
    column = m.at(2, k)
    size_below = (row >= step).where(column.map("abs"), -1)
    pivot = Term(b, b.emit("arg_reduce", size_below.value, fn="max", axis=1, last=False))
    own = m.part(1, k, 1)  # [batch, 1, n]
    chosen = m.take_along(pivot.reshape(batch, 1, 1).broadcast(batch, 1, size), 1)
    is_own, is_chosen = row.equals(step).expand(2), row.equals(pivot.expand(1)).expand(2)
    swapped = is_own.where(chosen, is_chosen.where(own, m))
    lead = chosen.at(2, k)  # [batch, 1]
    factor = (row > step).where(swapped.at(2, k) / lead.equals(0).where(1, lead), 0)
    sign = pivot.equals(step).where(full(b, (batch,), 1, m.dtype), -1)
    return [swapped - factor.expand(2) * chosen, product * sign * lead.reshape(batch)], []
