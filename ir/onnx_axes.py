"""Axes of an operator: known at import time, or operands that only the run knows.

Run-time axes are rare outside of test suites, so that they need to be right rather than fast: flags per axis
are computed as small tensors, shapes are bound from them, and reductions scatter into the smaller tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import BOOL, I64, U8
from tcompile.ir.graph import Value
from tcompile.ir.onnx_builder import ImportBuilder
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.ops_reduction import identity
from tcompile.ir.terms import Term, full, join


class Axes(Protocol):
    """Axes to reduce."""

    def reduce(self, x: Term, fn: str) -> Term:
        """x with the axes reduced to extent 1."""

    def count(self, x: Term) -> DimLike:
        """How many elements of x become one."""

    def drop(self, x: Term) -> Term:
        """x, whose reduced axes have extent 1, without them."""


@dataclass(frozen=True)
class StaticAxes:
    """Known axes, increasing."""

    axes: tuple[int, ...]

    def reduce(self, x: Term, fn: str) -> Term:
        return x.reduce(fn, self.axes, keepdims=True)

    def count(self, x: Term) -> DimLike:
        return dims.product(x.shape[axis] for axis in self.axes)

    def drop(self, x: Term) -> Term:
        return x.reshape(*(extent for k, extent in enumerate(x.shape) if k not in self.axes))


class RunTimeAxes:
    """Distinct axes of x that an i64 vector of static length holds."""

    def __init__(self, ctx: OpContext, x: Term, axes: Value) -> None:
        self._ctx, self._b = ctx, ctx.builder
        self._rank = x.rank
        self._dropped = _length(ctx, axes)
        self._flags = _one_hot(self._b, axes, x.rank).reduce("max", [0])
        shape = Term(self._b, self._b.dim(x.shape))
        kept = (self._flags > 0).where(1, shape) if x.rank else shape
        self._shape = [self._b.bind_dim(kept.at(0, k).value, "reduced", 0, dims.maximum(1, x.shape[k])) for k in range(x.rank)]

    def reduce(self, x: Term, fn: str) -> Term:
        if x.dtype == BOOL:
            return self.reduce(x.convert(U8), {"or": "max", "and": "min"}[fn]).convert(BOOL)
        places = []
        for axis in range(self._rank):
            place = Term(self._b, self._b.iota(x.shape, axis)) * (1 - self._flags.at(0, axis))
            places.append(place.reshape(x.value.type.size, 1))
        start = full(self._b, self._shape, identity(fn, x.dtype), x.dtype)
        updates = x.reshape(x.value.type.size)
        result = self._b.emit("scatter_nd", start.value, join(places, 1).value, updates.value, combiner=fn)
        return Term(self._b, result)

    def count(self, x: Term) -> DimLike:
        return dims.floordiv(dims.product(x.shape), dims.maximum(1, dims.product(self._shape)))

    def drop(self, x: Term) -> Term:
        b = self._b
        order = b.emit_all("sort", (self._flags.value, b.iota((self._rank,))), {"axis": 0, "descending": False})[1]
        shape = b.emit("gather", b.dim(x.shape), order, axis=0)
        kept = self._rank - self._dropped
        return x.reshape(*self._ctx.expressions(b.slice_axis(shape, 0, 0, kept), "kept"))


def unsqueeze_run_time(ctx: OpContext, x: Term, axes: Value) -> Term:
    """x with new axes of extent 1 at positions that the run gives."""
    b, rank = ctx.builder, x.rank + _length(ctx, axes)
    if not x.rank:
        return x.reshape(*[1] * rank)
    flags = _one_hot(b, axes, rank).reduce("max", [0])
    place = Term(b, b.emit("cumulative", (1 - flags).value, fn="add", axis=0, exclusive=True, reverse=False))
    extents = Term(b, b.dim(x.shape)).take(place.map("min", x.rank - 1), 0)
    return x.reshape(*ctx.expressions((flags > 0).where(1, extents).value, "unsqueezed"))


def spread(ctx: OpContext, axes: Value, values: Value, defaults: Sequence[DimLike]) -> Value:
    """An i64 vector with one entry per axis: values[j] at axes[j], the default where no axis is named."""
    b = ctx.builder
    hot = _one_hot(b, axes, len(defaults))
    named = hot.reduce("max", [0]) > 0
    chosen = (hot * Term(b, values).convert(I64).expand(1)).reduce("add", [0])
    return named.where(chosen, Term(b, b.dim(defaults))).value


def _length(ctx: OpContext, axes: Value) -> int:
    if axes.rank > 1 or not all(isinstance(extent, int) for extent in axes.shape):
        ctx.fail(f"the axes have the type {axes.type}", hint="their number must be known when compiling")
    return axes.shape[0] if axes.rank else 1


def _one_hot(b: ImportBuilder, axes: Value, rank: int) -> Term:
    """[m, rank]: 1 where axes[j], counted from the end if negative, is the axis."""
    axis = Term(b, b.reshape(axes, (dims.product(axes.shape), 1))).convert(I64)
    axis = (axis < 0).where(axis + rank, axis)
    return axis.equals(Term(b, b.iota((rank,))).expand(0)).convert(I64)


AxisOp = Callable[[ImportBuilder, Value, int], Value]


def by_axis(ctx: OpContext, axis: Value, x: Value, operation: AxisOp) -> Value:
    """``operation(builder, x, axis)`` for an axis operand: direct where it is known, else the run picks a branch.

    All branches must give the same type.
    """
    b = ctx.builder
    known = b.constant_of(axis)
    if known is not None:
        return operation(b, x, ctx.axis(int(known.reshape(()).item()), x.rank))
    if x.rank == 1:
        return operation(b, x, 0)
    index = Term(b, b.reshape(axis, ())).convert(I64)
    wrapped = (index < 0).where(index + x.rank, index)
    return _branches(b, wrapped.value, x, operation, 0)


def _branches(b: ImportBuilder, axis: Value, x: Value, operation: AxisOp, k: int) -> Value:
    """if axis == k: operation(x, k) else: the same from k + 1."""
    if k == x.rank - 1:
        return operation(b, x, k)
    regions = []
    for name in ("then", "else"):
        inner = b.region(name)
        which, value = (inner.input(item.name, item.dtype, item.shape) for item in (axis, x))
        result = operation(inner, value, k) if name == "then" else _branches(inner, which, value, operation, k + 1)
        regions.append(inner.graph([result]))
    condition = b.map("eq", axis, b.constant(k, axis.dtype))
    (result,) = b.emit_all("if", (condition, axis, x), {}, regions)
    return result
