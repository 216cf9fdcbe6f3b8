"""The planes of transformed values between the stages of a convolution, and the sums that transforms are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tcompile.codegen.access import ravel
from tcompile.codegen.cpu_tile import multiply_add
from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import const
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.loops import Expr, Load, LoopKind, Op

LINE_BYTES = 64


class Planes:
    """A buffer [value][block][tile][B]: one plane for each of the values of a tile.

    Planes are an odd number of cache lines apart: a tile's values, one of each plane, would else meet in few sets of the L1 cache.
    """

    def __init__(self, nest: Nest, dtype: DType, values: int, blocks: int, tiles: int, block: int) -> None:
        self.nest, self.dtype, self.tiles, self.block = nest, dtype, tiles, block
        line = LINE_BYTES // dtype.bytes
        self.plane = (-(-blocks * tiles * block // line) | 1) * line
        self.buffer = nest.alloc(dtype, (values * self.plane,))

    def _place(self, value: DimLike, block: DimLike, tile: DimLike, lane: DimLike) -> DimLike:
        return value * self.plane + (block * self.tiles + tile) * self.block + lane

    def load(self, value: DimLike, block: DimLike, tile: DimLike, lane: DimLike) -> Expr:
        return Load(self.buffer, (self._place(value, block, tile, lane),), self.dtype)

    def store(self, value: DimLike, block: DimLike, tile: DimLike, lane: DimLike, element: Expr) -> None:
        self.nest.store(self.buffer, self._place(value, block, tile, lane), element)


Formula = Callable[[Sequence[Expr]], list[Expr]]


class Patch:
    """A buffer of ``shape`` vectors of ``lanes`` on the stack, by their places."""

    def __init__(self, nest: Nest, dtype: DType, shape: Shape, lanes: int) -> None:
        self.nest, self.dtype, self.shape, self.lanes = nest, dtype, shape, lanes
        self.buffer = nest.alloc(dtype, (dims.product(shape) * lanes,))

    def load(self, *place: DimLike) -> Expr:
        """The element of a place and a lane."""
        return Load(self.buffer, (ravel(place, (*self.shape, self.lanes)),), self.dtype)

    def store(self, *place_and_element: DimLike | Expr) -> None:
        """Sets the element of a place and a lane."""
        *place, element = place_and_element
        self.nest.store(self.buffer, ravel(place, (*self.shape, self.lanes)), element)


def down_columns(nest: Nest, formula: Formula, results: int, size: int, lanes: int, dtype: DType, source: Callable) -> Patch:
    """Applies a formula of ``size`` values to each of ``size`` columns: the first half of a transform.

    ``source(row, column, lane)`` is an element of the tile.
    """
    between = Patch(nest, dtype, (results, size), lanes)
    with nest.loop(size) as column, nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
        loaded = [nest.let(source(row, column, lane), "d") for row in range(size)]
        for row, value in enumerate(formula(loaded)):
            between.store(row, column, lane, value)
    return between


def along_row(nest: Nest, formula: Formula, between: Patch, row: DimLike, lane: DimLike) -> list[Expr]:
    """The formula of one row of what ``down_columns`` left: the second half."""
    return formula([nest.let(between.load(row, column, lane), "d") for column in range(between.shape[-1])])


def linear(terms: Sequence[tuple[float, Expr]], dtype: DType) -> Expr:
    """The sum of factors times values; the last one's factor is best 1."""
    factor, value = terms[-1]
    total = value if factor == 1 else Op("mul", (const(factor, dtype), value), dtype)
    for factor, value in reversed(terms[:-1]):
        total = Op("add", (value, total), dtype) if factor == 1 else multiply_add(const(factor, dtype), value, total)
    return total


def combination(row: Sequence[float], values: Sequence[Expr], dtype: DType) -> Expr:
    """The sum of values times the numbers of a row of a matrix, of which one at least is not zero; a factor of 1 stands last."""
    terms = [(float(factor), value) for factor, value in zip(row, values, strict=True) if factor]
    first = next((k for k, (factor, _) in enumerate(terms) if factor == 1), len(terms) - 1)
    return linear([*terms[:first], *terms[first + 1 :], terms[first]], dtype)
