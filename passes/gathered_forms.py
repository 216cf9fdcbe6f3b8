"""What a value [N, P, C] is in terms of rows of a table: gain[p] * (x[n, p, c] * scale[n, c] + shift[n, c]) + rest[p].

A normalisation over the positions of an embedding is written so by its broadcasts: some factors have only positions,
others images and channels. ``affine`` reads sums and products of them, and tells the parts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from tcompile.ir.build import Builder
from tcompile.ir.dims import Shape
from tcompile.ir.dtypes import F32
from tcompile.ir.graph import Node, Value
from tcompile.passes.rewrite import Context

MOST_TERMS = 8
POSITIONS = 1  # the axis


@dataclass(frozen=True)
class Factor:
    """A factor without positions: a number, or a value whose axes are ``axes`` of [N, P, C]."""

    number: float | None
    value: Value | None = None
    axes: tuple[int, ...] = ()

    def make(self, b: Builder, shape: Shape) -> Value:
        """The factor as [N, C]."""
        if self.value is None:
            return b.broadcast_to(b.constant(self.number, F32), shape)
        kept = [k for k, axis in enumerate(self.axes) if axis != POSITIONS]
        narrow = b.reshape(self.value, [self.value.shape[k] for k in kept])
        return b.emit("broadcast", narrow, shape=shape, axes=tuple(self.axes[k] // 2 for k in kept))


@dataclass(frozen=True)
class Term:
    """A product: ``gathered`` counts the rows of the table in it, ``positions`` are factors [P]."""

    gathered: int
    positions: tuple[Value, ...] = ()
    channels: tuple[Factor, ...] = ()

    def times(self, other: Term) -> Term:
        """The product of two."""
        positions = tuple(sorted(self.positions + other.positions, key=lambda value: value.name))
        return Term(self.gathered + other.gathered, positions, self.channels + other.channels)


@dataclass(frozen=True)
class Rows:
    """Rows of a constant table, ``parts`` of them side by side for each position."""

    table: np.ndarray
    rows: Value
    parts: int


@dataclass(frozen=True)
class Affine:
    """The form of a value: the product of ``gain`` is that of each position, ``rest`` is known."""

    source: Rows
    gain: tuple[Value, ...]
    scale: tuple[Term, ...]
    shift: tuple[Term, ...]
    rest: np.ndarray


def affine(value: Value, context: Context) -> Affine | None:
    """The form of a value [N, P, C] of f32, where it has it and depends on rows of one table."""
    reader = _Reader(value.shape, context)
    terms = reader.terms(value)
    if terms is None or reader.source is None or any(term.gathered > 1 for term in terms):
        return None
    gains = {term.positions for term in terms if term.gathered}
    if len(gains) != 1:
        return None
    (gain,) = gains
    inside, outside = ([term for term in terms if (term.positions == gain) is among] for among in (True, False))
    rest = np.zeros(value.shape[POSITIONS])
    for term in outside:
        known = _constant(term, context)
        if known is None:
            return None
        rest = rest + known
    scale, shift = (tuple(term for term in inside if term.gathered == count) for count in (1, 0))
    return Affine(reader.source, gain, scale, shift, rest)


def total(b: Builder, terms: tuple[Term, ...], shape: Shape) -> Value:
    """The sum of the factors of terms that have no position, as [N, C]."""
    sums = [_product(b, [factor.make(b, shape) for factor in term.channels or (Factor(1.0),)]) for term in terms]
    result = sums[0] if sums else Factor(0.0).make(b, shape)
    for other in sums[1:]:
        result = b.map("add", result, other)
    return result


def _product(b: Builder, factors: list[Value]) -> Value:
    result = factors[0]
    for factor in factors[1:]:
        result = b.map("mul", result, factor)
    return result


def _constant(term: Term, context: Context) -> np.ndarray | None:
    """A term that depends on positions alone, and is known: [P]."""
    arrays = [context.constant(value) for value in term.positions]
    numbers = [factor.number for factor in term.channels]
    if any(known is None for known in (*arrays, *numbers)):
        return None
    return np.prod([np.asarray(known, np.float64) for known in (1.0, *numbers)]) * np.prod(np.broadcast_arrays(*arrays), axis=0)


def rows_of(value: Value, context: Context) -> Rows | None:
    """The rows that a value [N, P, C] consists of."""
    node = context.producer(value, "reshape", "gather")
    gather = context.producer(node.inputs[0], "gather") if node is not None and node.op == "reshape" else node
    if gather is None or gather.attrs["axis"] != 0:
        return None
    table, rows = context.constant(gather.inputs[0]), gather.inputs[1]
    if table is None or table.ndim != 2 or not table.size or table.dtype != np.float32 or not rows.rank:
        return None
    parts, rest = divmod(value.shape[2], table.shape[1]) if isinstance(value.shape[2], int) else (0, 1)
    whole = rest == 0 and rows.shape[0] == value.shape[0] and rows.type.size == value.shape[0] * value.shape[POSITIONS] * parts
    return Rows(table, rows, parts) if whole and parts else None


class _Reader:
    """Reads values of a shape as sums of terms."""

    def __init__(self, shape: Shape, context: Context) -> None:
        self.shape, self.context = shape, context
        self.leaf: Value | None = None
        self.source: Rows | None = None

    def terms(self, value: Value) -> list[Term] | None:
        """The terms whose sum a value of the shape is; None where it has another form, or too many."""
        made = self.context.producer(value, "map", "broadcast")
        if made is None:
            return self._leaf(value)
        if made.op == "broadcast":
            term = self._broadcast(made)
            return None if term is None else [term]
        if made.attrs["fn"] not in ("add", "sub", "mul"):
            return None
        left, right = (self.terms(operand) for operand in made.inputs)
        if left is None or right is None or max(len(left) * len(right), len(left) + len(right)) > MOST_TERMS:
            return None
        if made.attrs["fn"] == "mul":
            return [a.times(b) for a, b in itertools.product(left, right)]
        return left + ([term.times(Term(0, (), (Factor(-1.0),))) for term in right] if made.attrs["fn"] == "sub" else right)

    def _leaf(self, value: Value) -> list[Term] | None:
        if self.leaf is None:
            self.source = rows_of(value, self.context)
            self.leaf = value if self.source is not None else None
        return [Term(1)] if value is self.leaf else None

    def _broadcast(self, node: Node) -> Term | None:
        (source,), axes = node.inputs, node.attrs["axes"]
        factor = factor_of(node, self.shape, self.context)
        if factor is not None:
            return Term(0, (), (factor,))
        return Term(0, (source,)) if axes == (POSITIONS,) and source.shape[0] == self.shape[POSITIONS] else None


def factor_of(node: Node, shape: Shape, context: Context) -> Factor | None:
    """The factor that a broadcast to [N, P, C] repeats along positions; None where it depends on them, or only the run knows."""
    (source,), axes = node.inputs, node.attrs["axes"]
    number = context.scalar(source)
    if number is not None:
        return Factor(float(number))
    extents = dict(zip(axes, source.shape, strict=True))
    known = all(extent in (1, shape[axis]) for axis, extent in extents.items())
    return Factor(None, source, axes) if known and extents.get(POSITIONS, 1) == 1 else None
