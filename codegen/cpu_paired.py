"""Integer convolutions on words by Winograd's inner product ("A New Algorithm for Inner Product", 1968): sums are multiplied.

    (xa + wb) * (xb + wa)  ==  xa * wa + xb * wb  +  xa * xb  +  wa * wb

Two words take one multiplication of halves, two additions into it and one of its result: machines add on more ports than they
multiply on. What the products of inputs among themselves add up to is found once for a position, that of the weights when
they are packed; each sum starts from both, negated. Integers wrap, so the sums are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from tcompile.codegen.access import ravel
from tcompile.codegen.cpu_conv_passes import ConvInPasses, Place
from tcompile.codegen.cpu_interleaved import InterleavedConv
from tcompile.codegen.cpu_split import split_task
from tcompile.codegen.cpu_tile import Accumulator
from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import const, op
from tcompile.ir import dims
from tcompile.ir.blocking import conv_pass
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.dtypes import I32
from tcompile.ir.loops import Expr, Load, LoopKind, Space
from tcompile.ir.tiles import PAIRS, Tile

Initial = Callable[[int, int, DimLike], Expr]
_FEWEST_BUNDLES = 4  # of a task: each finds the products of its inputs again
_MIN_TASKS = 8
_GAP = 16  # words
_LINE_WORDS = 16


def paired_kernel(
    nest: Nest,
    tile: Tile,
    terms: Callable[[], AbstractContextManager[tuple[object, object]]],
    a: Callable[[int, object], Expr],
    b: Callable[[int, DimLike, object], Expr],
    initial: Initial,
) -> Accumulator:
    """``micro_kernel`` of words: ``terms`` yields the names of two at a time. ``initial`` is what the sum starts from less the
    products of the two words of each row, and of each column, among themselves."""
    buffer = nest.alloc(I32, (tile.rows, tile.vectors, tile.lanes), Space.REGISTER)
    acc = Accumulator(buffer, tile, I32)
    with nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
        for row in range(tile.rows):
            for vector in range(tile.vectors):
                nest.store(buffer, (row, vector, lane), initial(row, vector, lane))
    with terms() as (first, second):
        scalars = [[nest.let(a(row, term), "a") for term in (first, second)] for row in range(tile.rows)]
        with nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
            weights = [[nest.let(b(vector, lane, term), "b") for term in (second, first)] for vector in range(tile.vectors)]
            for row, words in enumerate(scalars):
                for vector, others in enumerate(weights):
                    left, right = (op("add2", word, other) for word, other in zip(words, others, strict=True))
                    nest.store(buffer, (row, vector, lane), op("dot2", left, right, acc.at(row, vector, lane)))
    return acc


class PairedConv(InterleavedConv, ConvInPasses):
    """conv_interleaved with the products of its weights.

    parallel for (image, chunk of positions, group of bundles):
        own[position] = the products of its inputs among themselves
        for each bundle, in passes over the input blocks, for each tile of positions:  the micro-kernel; epilogue; store
    """

    def applies(self) -> bool:
        """Whether sums may be multiplied, and the loops here do it."""
        sizes = (self.rows, self.columns)
        return len(self.core.inputs) == 3 and self.groups == 1 and all(isinstance(n, int) and n for n in sizes) and self._pairs() % 2 == 0

    def _pairs(self) -> int:
        return self.w.shape[-3] // 2

    def _geometry(self) -> None:
        super()._geometry()
        if len(self.core.inputs) == 3:
            self.step = PAIRS

    def _packs(self) -> bool:
        """Whether a task copies its inputs, so that those of a position lie together: once each, for all bundles."""
        return all(extent == 1 for extent in self.kernel) and self.w.shape[1] > 1

    def _pitch(self) -> int:
        """Words from one position of the copy to the next: not a power of two."""
        return self.w.shape[1] * self.w.shape[-3] + _GAP

    # Tasks --------------------------------------------------------------------------------------------

    def _units_of_chunk(self, units: DimLike) -> int:
        terms = dims.product(self.kernel) * self.w.shape[-3] // 2
        self.depth = conv_pass(self.target, self.tile, self.w.shape[1], terms, self._tiles_of_task(), PAIRS)
        most = super()._units_of_chunk(units)
        return -(-units // -(-units // most))

    def _per_group(self, bundles: int, chunks: DimLike) -> int:
        tasks = self.images * chunks
        wanted = -(-_MIN_TASKS // max(tasks, 1)) if isinstance(tasks, int) else 1
        most = max(bundles // wanted, min(_FEWEST_BUNDLES, bundles))
        if self.depth < self.w.shape[1]:
            most = min(most, max(self.target.l2_bytes // 4 // (self.room * self.tile.columns * 4), 1))
        return -(-bundles // -(-bundles // most))

    def _accumulate(self, place: Place, count: DimLike, bundles: int, here: DimLike, tiles: DimLike) -> None:
        self.own = self.nest.alloc(I32, (self.room,))
        self.packed = self.nest.alloc(I32, (self.room * self._pitch(),)) if self._packs() else None
        self._own_products(place, here)
        if self.depth >= self.w.shape[1]:
            self.start, self.next = 0, None
            with self.nest.loop(count) as bundle:
                self._by_blocks(place.bundle + bundle, bundles, partial(self._pass, place, bundle, here, tiles))
            return
        super()._accumulate(place, count, bundles, here, tiles)

    def _next_weights(self, bundle: DimLike, count: DimLike) -> None:
        """Asked for by ``_terms`` here."""
        return

    def _clear(self, place: Place, count: DimLike) -> None:
        """Each sum starts from what the products of its inputs and of its weights among themselves are, negated."""
        nest = self.nest
        with nest.loop(count) as bundle, nest.loop(self.room) as at:
            block = (place.bundle + bundle) * self.wide
            with (
                nest.loop(dims.minimum(self.wide, self.blocks - block, nest.ranges)) as part,
                nest.loop(self.block, LoopKind.VECTOR, self.tile.lanes) as lane,
            ):
                index = (bundle * self.room + at) * self.tile.columns + part * self.block + lane
                nest.store(place.buffer, index, self._less(at, (block + part) * self.block + lane))

    def _results(self, place: Place, count: DimLike, here: DimLike) -> None:
        if self.depth < self.w.shape[1]:
            super()._results(place, count, here)

    def _add(self, place: Place, bundle: DimLike, blocks: int, height: int, row: Shape, start: DimLike, at: DimLike) -> None:
        self._at = at
        if self.depth < self.w.shape[1]:
            super()._add(place, bundle, blocks, height, row, start, at)
            return
        first = (place.bundle + bundle) * self.wide
        self._tile(place.image, first, blocks, height, row, start)

    # Sums ---------------------------------------------------------------------------------------------

    def _less(self, at: DimLike, column: DimLike) -> Expr:
        """Both kinds of products among themselves, negated, of the ``at``-th position of the chunk and an output channel."""
        products = Load(self.draft.read(self.core.inputs[2]), (column,), I32)
        return op("sub", Load(self.own, (at,), I32), products)

    def _own_products(self, place: Place, here: DimLike) -> None:
        """-(sum of xa * xb) for each position of the chunk."""
        nest = self.nest

        def find(at: DimLike, position: Shape) -> None:
            if self.packed is not None:
                words = self.w.shape[-3]
                with nest.loop(self.w.shape[1]) as block, nest.loop(words, LoopKind.VECTOR, words) as word:
                    element = self.load(place.image, 0, position, (block, *(0 for _ in self.kernel), word))
                    nest.store(self.packed, at * self._pitch() + block * words + word, element)
            lanes = self._pairs()
            sums = nest.alloc(I32, (1, lanes), Space.REGISTER)
            with nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
                nest.store(sums, (0, lane), const(0, I32))
            with nest.loops(self.taps[:-1]) as tap, nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
                taps = [(*tap, 2 * lane + k) for k in (0, 1)]
                words = [self.load(place.image, 0, position, tap) if self.packed is None else self._copied(at, tap) for tap in taps]
                nest.store(sums, (0, lane), op("dot2", *words, Load(sums, (0, lane), I32)))
            apart = nest.alloc(I32, (lanes,))
            with nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
                nest.store(apart, lane, Load(sums, (0, lane), I32))
            total: Expr = const(0, I32)
            for lane in range(lanes):
                total = op("sub", total, Load(apart, (lane,), I32))
            nest.store(self.own, at, total)

        if self.flat:
            left = self.columns - place.first * self.unit
            with nest.loop(dims.minimum(here * self.unit, left, nest.ranges)) as at:
                find(at, (place.first * self.unit + at,))
            return
        with nest.loop(here) as offset:
            row = tuple(split_task(nest, place.first + offset, self.spatial[:-1])) if len(self.spatial) > 1 else ()
            with nest.loop(self.columns) as column:
                find(offset * self.columns + column, (*row, column))

    def _multiply(
        self, tile: Tile, a: Callable[[int, Shape], Expr], b: Callable[[int, DimLike, Shape], Expr], initial: Initial | None
    ) -> Accumulator:
        first = self.tile_at.block
        self._next = self._prefetched(first + self.tile_at.blocks, tile.rows)

        def copied(column: int, tap: Shape) -> Expr:
            return self._copied(self._at + column, tap)

        def less(column: int, vector: int, lane: DimLike) -> Expr:
            return self._less(self._at + column, first * self.block + vector * tile.lanes + lane)

        return paired_kernel(self.nest, tile, self._terms, a if self.packed is None else copied, b, initial or less)

    def _copied(self, at: DimLike, tap: Shape) -> Expr:
        """The input of the ``at``-th position of the chunk, from the task's copy."""
        return Load(self.packed, (at * self._pitch() + tap[0] * self.w.shape[-3] + tap[-1],), I32)

    @contextmanager
    def _terms(self) -> Iterator[tuple[Shape, Shape]]:
        nest = self.nest
        with self._blocks_of_terms() as block, nest.loops(self.kernel) as kernel:
            step = ravel((block - self.start, *kernel), self.w.shape[1:-3])
            nest.prefetch(self.draft.words(self.w), self._next + step * _LINE_WORDS)
            with nest.loop(self._pairs(), LoopKind.UNROLLED) as pair:
                yield (block, *kernel, 2 * pair), (block, *kernel, 2 * pair + 1)

    def _prefetched(self, block: DimLike, height: int) -> DimLike:
        """Where the share of a tile begins of the weights that the next bundle needs: they come from memory meanwhile."""
        shape = self.w.shape[:-1]
        steps = dims.product((min(self.depth, shape[1]), *self.kernel))
        first = ravel((block, self.start, *(0 for _ in shape[2:])), shape)
        return first + dims.floordiv(self._at, height, self.nest.ranges) * (steps * _LINE_WORDS)
