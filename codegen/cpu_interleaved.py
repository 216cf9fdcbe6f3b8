"""Integer convolutions and matrix products on words: the loops of ``cpu_conv.py`` and ``cpu_gemm.py`` with a dot product as their step.

A word holds 2 or 4 neighbouring terms of an activation, or of the weights of one column: each step multiplies part by
part and adds all products to an i32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from tcompile.codegen.access import ravel
from tcompile.codegen.cpu_contraction import contraction
from tcompile.codegen.cpu_conv import BlockedConv
from tcompile.codegen.cpu_gemm import PackedGemm, Problem, packed_tile
from tcompile.codegen.cpu_tile import in_turns, words_dot
from tcompile.codegen.draft import Draft, Scope
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.dtypes import I32, DType
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr, Load
from tcompile.ir.target import Target
from tcompile.ir.tiles import Tile, dot_step

WORDS_AHEAD = 256  # of the weights, that are asked for before they are multiplied
UNROLL = 4  # words of one turn


class InterleavedConv(BlockedConv):
    """conv_interleaved: x [N, I/A, spatial, A], w [O/B, I/g/A, kernel, A/G, B, G]."""

    def _geometry(self) -> None:
        self.kernel = self.w.shape[2:-3]
        self.parts = self.w.shape[-1]
        self.taps = (self.w.shape[1], *self.kernel, self.w.shape[-3])
        self.step, self.combine = dot_step(self.target, self.parts), words_dot(self.parts)

    def load(self, image: DimLike, group: DimLike, position: Shape, tap: Shape) -> Expr:
        block, *kernel, word = tap
        block = group * self.w.shape[1] + block
        shape = (*self.x.shape[:-1], self.w.shape[-3])
        if self.flat:
            place = ((image * shape[1] + block) * dims.product(shape[2:-1]) + position[0]) * shape[-1] + word
        else:
            place = ravel((image, block, *self._source(position, tuple(kernel)), word), shape)
        return Load(self.draft.words(self.x), (place,), I32)

    @contextmanager
    def _terms(self) -> Iterator[Shape]:
        weights, shape = self.draft.words(self.w), self.w.shape[:-1]
        with self.nest.loops(self.taps[:-1]) as outer, in_turns(self.nest, self.taps[-1], UNROLL) as word:
            for part in range(self.tile_at.blocks):  # a tile's weights come from the L2 cache, faster than its own prefetcher asks
                place = (self.tile_at.block + part, *outer, word, 0)
                self.nest.prefetch(weights, ravel(place, shape) + WORDS_AHEAD, near=True)
            yield (*outer, word)

    def weight(self, block: DimLike, lane: DimLike, tap: Shape) -> Expr:
        return Load(self.draft.words(self.w), (ravel((block, *tap, lane), self.w.shape[:-1]),), I32)


class InterleavedGemm(PackedGemm):
    """dot_interleaved: a [..., K], b [panels, K/G, width, G]."""

    def _problem(self) -> Problem:
        a, b = self.core.inputs
        self.combine = words_dot(b.shape[-1])
        return Problem(dims.product(a.shape[:-1]), self.core.attrs["columns"], b.shape[1], I32)

    def _tile(self) -> Tile:
        _, b = self.core.inputs
        return packed_tile(self.target, self.problem, b.shape[2], dot_step(self.target, b.shape[-1]))

    def left(self, batch: DimLike, row: DimLike, term: DimLike) -> Expr:
        return Load(self.draft.words(self.core.inputs[0]), (row * self.problem.terms + term,), I32)

    def weights(self) -> str:
        return self.draft.words(self.core.inputs[1])

    def some_terms(self, extent: DimLike) -> AbstractContextManager[DimLike]:
        """A few words of a loop at a time."""
        return in_turns(self.nest, extent, UNROLL)

    @property
    def item(self) -> DType:
        """A word."""
        return I32


@contraction("dot_interleaved", "dot", "interleaved gemm")
def interleaved_gemm(node: Node, scope: Scope, target: Target) -> Draft:
    """The kernel of an interleaved product."""
    gemm = InterleavedGemm(node, scope, target, "gemm_int")
    draft = gemm.write()
    draft.flops *= gemm.core.inputs[1].shape[-1]
    return draft
