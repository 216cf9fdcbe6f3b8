"""Winograd convolution of codes: values of 16 bits, two channels a word, sums of 32 bits; the outputs are transformed in f32.

A word that holds lo + 65536 * hi as one number goes through Bt d B like any number: what comes out is the number of the
transformed halves. So one vector of i32 transforms 16 channels. As bits, the upper half of such a number is one less
where the lower is negative, which is mended where bits are read as a number, and before a number is multiplied as halves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tcompile.codegen.access import ravel
from tcompile.codegen.cpu_contraction import contraction
from tcompile.codegen.cpu_interleaved import UNROLL
from tcompile.codegen.cpu_tile import in_turns, words_dot
from tcompile.codegen.cpu_transformed_planes import Planes
from tcompile.codegen.cpu_transformed_products import Products
from tcompile.codegen.cpu_winograd import WinogradConv
from tcompile.codegen.cpu_winograd_input import transform_input
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import cast, const, op
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.dtypes import F32, I32
from tcompile.ir.graph import Node, Value
from tcompile.ir.loops import Expr, Load
from tcompile.ir.target import Target
from tcompile.ir.tiles import Step, dot_step
from tcompile.ir.winograd import WHOLE, Winograd


class WholeWinograd(WinogradConv):
    """Writes the kernel of one conv_winograd_whole."""

    @property
    def words(self) -> int:
        """Those of an input block."""
        return self.u.shape[3]

    def _form(self) -> Winograd:
        return WHOLE[self.u.shape[0]]

    def _terms(self) -> tuple[int, Step]:
        return self.words, dot_step(self.target, 2)

    def planes(self) -> tuple[Planes, Planes]:
        """V in words, M in f32."""
        v = _WordPlanes(self.nest, I32, self.work.values, self.inputs, self.together, self.words)
        return v, Planes(self.nest, F32, self.work.values, self.group, self.together, self.block)

    def fill(self, image: DimLike, first: DimLike, count: DimLike, v: Planes) -> None:
        """V of a block of tiles."""
        transform_input(_WordInput(self), image, first, count, v)

    def products(self, v: Planes, m: Planes) -> Products:
        """What multiplies words."""
        return WordProducts(self, v, m)


class WordProducts(Products):
    """The products of words, summed over all channels at once: M holds no integers."""

    def __init__(self, conv: WholeWinograd, v: Planes, m: Planes) -> None:
        super().__init__(conv, v, m)
        self.weights, self.shape = conv.draft.words(conv.u), conv.u.shape[:-1]
        self.terms, self.item, self.depth = conv.words, I32, conv.inputs
        self.sums, self.combine = I32, words_dot(2)

    @contextmanager
    def block_terms(self) -> Iterator[DimLike]:
        """The words of an input block."""
        with in_turns(self.nest, self.terms, UNROLL) as word:
            yield word

    def finished(self, value: Expr) -> Expr:
        """A sum as M has it."""
        return cast(value, F32)


class _WordInput:
    """What the input transform asks of a kernel, in words."""

    def __init__(self, conv: WholeWinograd) -> None:
        self.conv, self.nest, self.form, self.core, self.x = conv, conv.nest, conv.form, conv.core, conv.x
        self.inputs, self.tiles, self.dtype = conv.inputs, conv.tiles, I32
        self.lanes = min(conv.lanes, conv.words)
        self.per_block = conv.words // self.lanes
        self.dilation = (1, 1)
        self.draft = self

    def element(self, value: Value, place: Shape, guard: Expr | None = None) -> Expr:
        """The number of a word of the input; 0 where there is none."""
        shape = (*self.x.shape[:-1], self.conv.words)
        bits = self.nest.let(Load(self.conv.draft.words(self.x), (ravel(place, shape),), I32, guard), "w")
        return op("sub", bits, _borrow(bits))


class _WordPlanes(Planes):
    """Planes of words as bits, from numbers."""

    def store(self, value: DimLike, block: DimLike, tile: DimLike, lane: DimLike, element: Expr) -> None:
        number = self.nest.let(element, "n")
        super().store(value, block, tile, lane, op("add", number, _borrow(number)))


def _borrow(word: Expr) -> Expr:
    """65536 where the lower half is negative."""
    return op("and", op("shl", word, const(1, I32)), const(65536, I32))


@contraction("conv_winograd_whole", "conv", "whole winograd")
def whole_winograd(node: Node, scope: Scope, target: Target) -> Draft:
    """The kernel of a Winograd convolution of codes."""
    return WholeWinograd(node, scope, target).write()
