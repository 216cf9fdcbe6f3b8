"""Arithmetic notation for building graphs: ``(x - mean) * scale`` instead of one builder call per node.

A ``Term`` is a value with NumPy's operators: operands broadcast, Python numbers and dimensions take the
term's element type. The free functions (``floor``, ``where``, ...) take a Term or a NumPy array, so that
one formula makes a table at import time where extents are static, and nodes where they are symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Dim, DimLike, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Value

Operand = "Term | Value | np.ndarray | DimLike | float"
AxisPairs = tuple[Sequence[int], Sequence[int]]  # axes of the left and of the right operand
_TABLE_LIMIT = 1 << 22  # elements of the largest table made at import time


@dataclass(frozen=True, eq=False)
class Term:
    """A value together with the builder that extends its graph. Comparisons with ``==`` stay identity."""

    b: Builder
    value: Value

    __array_ufunc__ = None  # NumPy arrays leave mixed operators to this class

    @property
    def dtype(self) -> DType:
        return self.value.dtype

    @property
    def shape(self) -> Shape:
        return self.value.shape

    @property
    def rank(self) -> int:
        return self.value.rank

    def lift(self, other: Operand) -> Term:
        """Any operand as a term; numbers, dimensions and arrays take this term's element type."""
        if isinstance(other, Term):
            return other
        if isinstance(other, Value):
            return Term(self.b, other)
        if isinstance(other, Dim):
            return number(self.b, other, self.dtype)
        return Term(self.b, self.b.constant(other, self.dtype))

    def map(self, fn: str, *others: Operand) -> Term:
        """An elementwise function with broadcasting."""
        return Term(self.b, self.b.nary(fn, self.value, *(self.lift(other).value for other in others)))

    def __add__(self, other: Operand) -> Term:
        return self.map("add", other)

    def __radd__(self, other: Operand) -> Term:
        return self.lift(other).map("add", self)

    def __sub__(self, other: Operand) -> Term:
        return self.map("sub", other)

    def __rsub__(self, other: Operand) -> Term:
        return self.lift(other).map("sub", self)

    def __mul__(self, other: Operand) -> Term:
        return self.map("mul", other)

    def __rmul__(self, other: Operand) -> Term:
        return self.lift(other).map("mul", self)

    def __truediv__(self, other: Operand) -> Term:
        return self.map("div", other)

    def __rtruediv__(self, other: Operand) -> Term:
        return self.lift(other).map("div", self)

    def __floordiv__(self, other: Operand) -> Term:
        """Rounds towards minus infinity, for integers."""
        return (self - self % other).map("div", other)

    def __mod__(self, other: Operand) -> Term:
        return self.map("mod", other)

    def __pow__(self, other: Operand) -> Term:
        return self.map("pow", other)

    def __neg__(self) -> Term:
        return self.map("neg")

    def __lt__(self, other: Operand) -> Term:
        return self.map("lt", other)

    def __le__(self, other: Operand) -> Term:
        return self.map("le", other)

    def __gt__(self, other: Operand) -> Term:
        return self.map("gt", other)

    def __ge__(self, other: Operand) -> Term:
        return self.map("ge", other)

    def __and__(self, other: Operand) -> Term:
        return self.map("and", other)

    def __or__(self, other: Operand) -> Term:
        return self.map("or", other)

    def __invert__(self) -> Term:
        return self.map("not")

    def equals(self, other: Operand) -> Term:
        """Elementwise equality."""
        return self.map("eq", other)

    def where(self, then: Operand, otherwise: Operand) -> Term:
        """``then`` where this bool term holds; one of the two must be a Term, for the element type."""
        like = then if isinstance(then, Term) else otherwise
        if isinstance(like, Value):
            like = Term(self.b, like)
        assert isinstance(like, Term), "where needs a term for its element type"
        return self.map("where", like.lift(then), like.lift(otherwise))

    def convert(self, dtype: DType) -> Term:
        return Term(self.b, self.b.convert(self.value, dtype))

    def reshape(self, *shape: DimLike) -> Term:
        return Term(self.b, self.b.reshape(self.value, shape))

    def broadcast(self, *shape: DimLike) -> Term:
        return Term(self.b, self.b.broadcast_to(self.value, shape))

    def transpose(self, *perm: int) -> Term:
        return Term(self.b, self.b.transpose(self.value, perm))

    def reduce(self, fn: str, axes: Sequence[int], *, keepdims: bool = False) -> Term:
        return Term(self.b, self.b.reduce(fn, self.value, axes, keepdims=keepdims))

    def sum(self, *axes: int, keepdims: bool = False) -> Term:
        return self.reduce("add", axes, keepdims=keepdims)

    def max(self, *axes: int, keepdims: bool = False) -> Term:
        return self.reduce("max", axes, keepdims=keepdims)

    def mean(self, *axes: int, keepdims: bool = False) -> Term:
        """The sum over the axes divided by the number of elements."""
        count = dims.product(self.shape[axis] for axis in axes)
        return self.sum(*axes, keepdims=keepdims) / count

    def take(self, indices: Operand, axis: int) -> Term:
        """``np.take``: every index must be in range."""
        if not isinstance(indices, Term):
            indices = Term(self.b, indices if isinstance(indices, Value) else self.b.constant(indices, dtypes.I64))
        return Term(self.b, self.b.emit("gather", self.value, indices.value, axis=axis))

    def take_along(self, indices: Term, axis: int) -> Term:
        """``np.take_along_axis`` with equal other extents."""
        return Term(self.b, self.b.emit("gather_elements", self.value, indices.value, axis=axis))

    def part(self, axis: int, start: DimLike, size: DimLike, step: int = 1) -> Term:
        """A slice along one axis."""
        return Term(self.b, self.b.slice_axis(self.value, axis, start, size, step))

    def at(self, axis: int, index: DimLike) -> Term:
        """One element of an axis, which goes."""
        shape = (*self.shape[:axis], *self.shape[axis + 1 :])
        return self.part(axis, index, 1).reshape(*shape)

    def expand(self, *axes: int) -> Term:
        """New axes of extent 1 at these positions of the result."""
        shape, rest = [], list(self.shape)
        for k in range(self.rank + len(axes)):
            shape.append(1 if k in axes else rest.pop(0))
        return self.reshape(*shape)

    def flip(self, axis: int) -> Term:
        """An axis in reverse order."""
        return self.part(axis, self.shape[axis] - 1, self.shape[axis], -1)

    def dot(self, other: Term, *, contract: AxisPairs, batch: AxisPairs = ((), ())) -> Term:
        """``dot_general``: batch axes, then free axes of both."""
        pairs = {"batch": tuple(map(tuple, batch)), "contract": tuple(map(tuple, contract))}
        return Term(self.b, self.b.emit("dot_general", self.value, other.value, dtype=self.dtype, **pairs))


def number(b: Builder, amount: DimLike | float, dtype: DType) -> Term:
    """A scalar of a number or a dimension."""
    return Term(b, b.convert(b.dim(amount), dtype) if isinstance(amount, Dim) else b.constant(amount, dtype))


def full(b: Builder, shape: Sequence[DimLike], amount: DimLike | float, dtype: DType) -> Term:
    """A tensor of one number."""
    return number(b, amount, dtype).broadcast(*shape)


def join(parts: Sequence[Term], axis: int) -> Term:
    """Concatenation."""
    return Term(parts[0].b, parts[0].b.concat([part.value for part in parts], axis))


def as_term(b: Builder, table: Term | np.ndarray, dtype: DType | None = None) -> Term:
    """A table of either kind as a term, converted where a type is given."""
    term = table if isinstance(table, Term) else Term(b, b.constant(np.asarray(table), dtype))
    return term if dtype is None else term.convert(dtype)


def arange(b: Builder, extent: DimLike) -> Term | np.ndarray:
    """0 .. extent-1 as i64: an array where the extent is known, nodes where it is not."""
    if isinstance(extent, int) and extent <= _TABLE_LIMIT:
        return np.arange(extent, dtype=np.int64)
    return Term(b, b.iota((extent,)))


# Functions of Terms and arrays --------------------------------------------------------------------------------


def _unary(fn: str, table: Callable[[np.ndarray], np.ndarray]) -> Callable:
    def apply(x):
        return x.map(fn) if isinstance(x, Term) else table(x)

    apply.__doc__ = f"Elementwise {fn} of a term or an array."
    return apply


floor = _unary("floor", np.floor)
ceil = _unary("ceil", np.ceil)
rint = _unary("round", np.rint)
absolute = _unary("abs", np.abs)
cosine = _unary("cos", np.cos)
sine = _unary("sin", np.sin)


def minimum(x, y):
    """The smaller of a term or array and any operand."""
    return x.map("min", y) if isinstance(x, Term) else y.map("min", x) if isinstance(y, Term) else np.minimum(x, y)


def maximum(x, y):
    """The larger of a term or array and any operand."""
    return x.map("max", y) if isinstance(x, Term) else y.map("max", x) if isinstance(y, Term) else np.maximum(x, y)


def where(cond, then, otherwise):
    """``np.where`` of terms or arrays."""
    terms = [x for x in (cond, then, otherwise) if isinstance(x, Term)]
    if not terms:
        return np.where(cond, then, otherwise)
    if not isinstance(cond, Term):
        cond = Term(terms[0].b, terms[0].b.constant(cond, dtypes.BOOL))
    if not isinstance(then, Term) and not isinstance(otherwise, Term):
        then = as_term(cond.b, np.asarray(then))
    return cond.where(then, otherwise)


def integers(x):
    """Truncation to i64."""
    return x.convert(dtypes.I64) if isinstance(x, Term) else np.asarray(x).astype(np.int64)


def floats(x, dtype: DType = dtypes.F32):
    """Conversion to a float type."""
    return x.convert(dtype) if isinstance(x, Term) else np.asarray(x).astype(dtype.numpy)


def expand(x, *axes: int):
    """``np.expand_dims``."""
    return x.expand(*axes) if isinstance(x, Term) else np.expand_dims(x, axes)


def reshape(x, *shape: DimLike):
    """A reshape; symbolic extents turn an array into a term, so they must come with one."""
    return x.reshape(*shape) if isinstance(x, Term) else x.reshape(shape)
