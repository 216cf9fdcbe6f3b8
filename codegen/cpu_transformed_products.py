"""The products of transformed values, M[value] = V[value] * U[value], in passes over the input channels.

    for each value, for each bundle of ``wide`` output blocks:
        for each pass over some of the input blocks:
            for each few tiles:  M += V * U of the pass, and a share of the next bundle's weights is asked for      the micro-kernel

The weights of a pass stay in the L1 cache while all tiles use them. Those of the next bundle are elsewhere in memory, where no
prefetcher of the machine expects them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tcompile.codegen.access import ravel
from tcompile.codegen.cpu_tile import in_turns, micro_kernel, multiply_add
from tcompile.codegen.cpu_transformed_planes import LINE_BYTES, Planes
from tcompile.codegen.scalar import compare, index_value, select
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.loops import Expr, Load, LoopKind
from tcompile.ir.tiles import Tile, winograd_pass

if TYPE_CHECKING:
    from tcompile.codegen.cpu_transformed import TransformedConv

FEW_SUMS = 12  # of a tile: the loop over terms then takes several a turn
TERMS_A_TURN = 8


@dataclass(frozen=True)
class Bundle:
    """``wide`` output blocks from the ``member``-th of a group that begins at ``lowest``; ``ahead``: how many elements behind its
    weights those of the next bundle are, None where nobody asks for them."""

    value: DimLike
    lowest: DimLike
    member: DimLike
    wide: int
    ahead: DimLike | None = None


@dataclass(frozen=True)
class Pass:
    """``count`` input blocks from ``start``; ``adds``: M has the sums of those before."""

    start: DimLike
    count: int
    adds: bool


class Products:
    """Writes the products of one convolution."""

    def __init__(self, conv: TransformedConv, v: Planes, m: Planes) -> None:
        self.conv, self.nest, self.v, self.m = conv, conv.nest, v, m
        self.u, self.weights = conv.u, conv.draft.read(conv.u)
        self.shape = (*self.u.shape[:2], conv.inputs, *self.u.shape[4:])  # of U
        self.terms, self.item = conv.block, conv.u.dtype  # of an input block, and an element of U
        self.sums, self.combine = conv.dtype, multiply_add
        self.steps = conv.together // conv.tile.rows
        self.depth = winograd_pass(conv.target, conv.inputs, conv.block, conv.tile.columns)

    def write(self, lowest: DimLike, members: DimLike) -> None:
        """All products of a group: bundles of ``wide`` output blocks, and a narrower one in the last group."""
        nest, wide = self.nest, self.conv.wide
        with nest.loop(self.conv.work.values) as value:
            bundles = dims.floordiv(members, wide, nest.ranges)
            with nest.loop(bundles) as bundle:
                self._bundle(self._with_ahead(Bundle(value, lowest, bundle * wide, wide), members))
            rest = self.conv.share % wide
            if rest:
                with nest.branch(compare("gt", members, bundles * wide)):
                    self._bundle(Bundle(value, lowest, bundles * wide, rest))

    def _with_ahead(self, bundle: Bundle, members: DimLike) -> Bundle:
        """The bundle, and where the next one's weights are: behind it, or behind the last one of the group, those of the next value."""
        conv, size = self.conv, dims.product(self.u.shape) * self.u.dtype.bytes
        if self.steps < 2 or size <= conv.target.l2_bytes:
            return bundle
        block = conv.inputs * self.terms * conv.block
        last = compare("gt", bundle.member + 2 * bundle.wide, members)
        ahead = select(last, index_value((conv.outputs - bundle.member) * block), index_value(bundle.wide * block))
        return Bundle(bundle.value, bundle.lowest, bundle.member, bundle.wide, self.nest.let_index(ahead))

    def _bundle(self, bundle: Bundle) -> None:
        blocks = self.conv.inputs
        self._rows(bundle, Pass(0, min(self.depth, blocks), adds=False))
        full, rest = divmod(max(blocks - self.depth, 0), self.depth)
        if full:
            with self.nest.loop(full) as number:
                self._rows(bundle, Pass((number + 1) * self.depth, self.depth, adds=True))
        if rest:
            self._rows(bundle, Pass(blocks - rest, rest, adds=True))

    def _rows(self, bundle: Bundle, part: Pass) -> None:
        """All tiles of one pass."""
        rows, rest = self.conv.tile.rows, self.conv.together % self.conv.tile.rows
        with self.nest.loop(self.steps) as step:
            self._product(bundle, part, rows, step * rows, self._terms(bundle, part, step))
        if rest:
            self._product(bundle, part, rest, self.steps * rows, self._terms(bundle, part, None))

    def _product(self, bundle: Bundle, part: Pass, rows: int, first: DimLike, terms: Callable[[], AbstractContextManager[Shape]]) -> None:
        conv, nest, m = self.conv, self.nest, self.m
        tile = Tile(rows, bundle.wide * conv.per_block, conv.lanes)

        def right(vector: int, lane: DimLike, term: Shape) -> Expr:
            block, offset = divmod(vector, conv.per_block)
            place = (bundle.value, bundle.lowest + bundle.member + block, *term, offset * conv.lanes + lane)
            return Load(self.weights, (ravel(place, self.shape),), self.item)

        def place(row: int, vector: int, lane: DimLike) -> Shape:
            block, offset = divmod(vector, conv.per_block)
            return bundle.value, bundle.member + block, first + row, offset * conv.lanes + lane

        acc = micro_kernel(
            nest,
            tile,
            self.sums,
            terms=terms,
            a=lambda row, term: self.v.load(bundle.value, term[0], first + row, term[1]),
            b=right,
            initial=(lambda *at: m.load(*place(*at))) if part.adds else None,
            combine=self.combine,
        )
        with nest.loop(conv.lanes, LoopKind.VECTOR, conv.lanes) as lane:
            for row in range(tile.rows):
                for vector in range(tile.vectors):
                    m.store(*place(row, vector, lane), self.finished(acc.at(row, vector, lane)))

    def _terms(self, bundle: Bundle, part: Pass, step: DimLike | None) -> Callable[[], AbstractContextManager[Shape]]:
        """The loops over the terms of a pass; in the ``step``-th of the equal steps, with its share of the weights ahead."""

        @contextmanager
        def opened() -> Iterator[Shape]:
            with self.nest.loop(part.count) as number:
                if step is not None and bundle.ahead is not None:
                    self._ask(bundle, part.start + number, step)
                with self.block_terms() as term:
                    yield part.start + number, term

        return opened

    @contextmanager
    def block_terms(self) -> Iterator[DimLike]:
        """The loop over the terms of an input block."""
        few = self.conv.tile.rows * self.conv.tile.vectors <= FEW_SUMS
        with in_turns(self.nest, self.terms, TERMS_A_TURN if few else 1) as term:
            yield term

    def finished(self, value: Expr) -> Expr:
        """A sum as M has it."""
        return value

    def _ask(self, bundle: Bundle, block: DimLike, step: DimLike) -> None:
        """Prefetches a step's share of the weights of an input block, in the bundle ahead."""
        line = LINE_BYTES // self.item.bytes
        share = -(-(self.terms * self.conv.block // line) // self.steps)
        assert bundle.ahead is not None, bundle
        for number in range(bundle.wide):
            here = ravel((bundle.value, bundle.lowest + bundle.member + number, block, 0, 0), self.shape)
            for k in range(share):
                self.nest.prefetch(self.weights, here + bundle.ahead + (step * share + k) * line)
