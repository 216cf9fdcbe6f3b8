"""Direct convolution of many input channels, in passes over them: the weights of a pass stay in the L1 cache.

    parallel for (image, chunk of positions, group of bundles):
        partial[bundle][position][blocks of output channels] = 0
        for each pass over some of the input blocks:
            for each bundle, for each tile of positions:      the micro-kernel, which asks for a share of the next bundle's weights
                partial += the tile's sum over the pass
        for each bundle, block, position:  epilogue; store

In one pass over all, each tile would read all weights of its bundle from the L2 cache again, and its inputs from as many pages as
there are channel blocks. Sums run in the order of a single pass, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from tcompile.codegen.access import ravel, unravel
from tcompile.codegen.cpu_conv import BlockedConv
from tcompile.codegen.cpu_split import even_share, split_task
from tcompile.codegen.cpu_transformed_planes import LINE_BYTES
from tcompile.codegen.draft import Draft
from tcompile.codegen.scalar import compare, const, index_value, select
from tcompile.ir import dims
from tcompile.ir.blocking import conv_pass
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.loops import Expr, Load, LoopKind

POSITIONS = 64  # of one task, whose inputs of a pass then lie in the L2 cache
MIN_TASKS = 16


@dataclass(frozen=True)
class Place:
    """A task: an image, the bundles from ``bundle``, and units of positions from ``first``."""

    image: DimLike
    bundle: DimLike
    first: DimLike
    buffer: str


class ConvInPasses(BlockedConv):
    """conv_blocked in passes of ``depth`` input blocks."""

    def applies(self) -> bool:
        """Whether one pass over all input blocks would be too long."""
        if self.reads or self.groups > 1 or not isinstance(self.columns, int):
            return False
        terms = round(dims.product(self.kernel) * self.useful()) * self.block
        self.depth = conv_pass(self.target, self.tile, self.w.shape[1], terms, self._tiles_of_task())
        return self.depth < self.w.shape[1]

    def _tiles_of_task(self) -> int:
        """Tiles that follow each other over the weights of a bundle."""
        tiles = -(-max(self.columns, 1) // self.tile.rows)
        if self.flat:
            return min(max(POSITIONS // self.tile.rows, 1), tiles)
        rows = max(POSITIONS // max(self.columns, 1), 1)
        return tiles * (min(rows, max(self.rows, 1)) if isinstance(self.rows, int) else rows)

    def write(self) -> Draft:
        """The whole kernel."""
        nest, height = self.nest, self.tile.rows
        tiles = dims.floordiv(self.columns, height, nest.ranges)
        units: DimLike = -(-self.columns // height) if self.flat else self.rows
        self.unit = height if self.flat else self.columns  # positions of a unit
        per_chunk = self._units_of_chunk(units)
        chunks = dims.ceildiv(units, max(per_chunk, 1), nest.ranges)
        per_chunk = -(-units // chunks) if isinstance(units, int) and isinstance(chunks, int) and chunks else per_chunk
        self.room = per_chunk * self.unit
        self.steps = per_chunk * (1 if self.flat else tiles)  # whole tiles of a chunk, or nearly
        bundles = -(-self.blocks // self.wide)
        per_group = self._per_group(bundles, chunks)
        groups = -(-bundles // per_group)
        with nest.loop(self.images * chunks * groups, LoopKind.PARALLEL) as task:
            image, chunk, group = split_task(nest, task, (self.images, chunks, groups))
            buffer = nest.alloc(self.dtype, (per_group * self.room * self.tile.columns,))
            first, here = even_share(nest, chunk, chunks, units, per_chunk)
            place = Place(image, group * per_group, first, buffer)
            count = dims.minimum(per_group, bundles - place.bundle, nest.ranges)
            self._accumulate(place, count, bundles, here, tiles)
            self._results(place, count, here)
            if self.epilogue.pad is not None:
                self._borders(image, chunk, place.bundle, count)
        return self.draft

    def _units_of_chunk(self, units: DimLike) -> int:
        per_chunk = max(POSITIONS // max(self.unit, 1), 1)
        return min(per_chunk, units) if isinstance(units, int) else per_chunk

    def _per_group(self, bundles: int, chunks: DimLike) -> int:
        """Bundles of a task: those whose sums fill a part of the L2 cache, fewer where there are few chunks."""
        fitting = self.target.l2_bytes // 4 // (self.room * self.tile.columns * self.dtype.bytes or 1)
        tasks = self.images * chunks
        wanted = -(-MIN_TASKS // max(tasks, 1)) if isinstance(tasks, int) else 1
        most = max(min(fitting, bundles // wanted), 1)
        return -(-bundles // -(-bundles // most))

    def _accumulate(self, place: Place, count: DimLike, bundles: int, here: DimLike, tiles: DimLike) -> None:
        nest = self.nest
        self._clear(place, count)
        passes = -(-self.w.shape[1] // self.depth)
        self.draft.tags["passes"] = str(passes)
        with nest.loop(passes) as number:
            self.start = number * self.depth
            with nest.loop(count) as bundle:
                self.next = self._next_weights(bundle, count)
                run = partial(self._pass, place, bundle, here, tiles)
                self._by_blocks(place.bundle + bundle, bundles, run)

    def _clear(self, place: Place, count: DimLike) -> None:
        """What sums start from."""
        nest = self.nest
        with (
            nest.loop(count) as bundle,
            nest.loop(self.room * self.tile.columns, LoopKind.VECTOR, self.tile.lanes) as flat,
        ):
            nest.store(place.buffer, bundle * (self.room * self.tile.columns) + flat, const(0, self.dtype))

    def _pass(self, place: Place, bundle: DimLike, here: DimLike, tiles: DimLike, blocks: int) -> None:
        """One pass of one bundle over the chunk."""
        nest, height = self.nest, self.tile.rows
        emit = partial(self._add, place, bundle, blocks)
        self.asked: list[DimLike] = []
        if self.flat:
            with nest.loop(dims.minimum(here, tiles - place.first, nest.ranges)) as tile:
                self._ask(tile)
                emit(height, (), (place.first + tile) * height, tile * height)
            self.asked = []
            for size, start, cond in self._rests(tiles):
                assert cond is None, self.columns
                last = place.first + here
                with nest.branch(compare("gt", last, tiles)):
                    emit(size, (), start, start - place.first * height)
            return
        with nest.loop(here) as offset:
            row: Shape = tuple(split_task(nest, place.first + offset, self.spatial[:-1])) if len(self.spatial) > 1 else ()
            with nest.loop(tiles) as tile:
                self._ask(offset * tiles + tile)
                emit(height, row, tile * height, offset * self.columns + tile * height)
            self.asked = []
            for size, start, _ in self._rests(tiles):
                emit(size, row, start, offset * self.columns + start)

    def _add(self, place: Place, bundle: DimLike, blocks: int, height: int, row: Shape, start: DimLike, at: DimLike) -> None:
        """Adds the sums of a tile, whose first position is the ``at``-th of the chunk."""

        def index(column: int, vector: int, lane: DimLike) -> DimLike:
            return (bundle * self.room + at + column) * self.tile.columns + vector * self.tile.lanes + lane

        def initial(column: int, vector: int, lane: DimLike) -> Expr:
            return Load(place.buffer, (index(column, vector, lane),), self.dtype)

        acc = self._sum(place.image, (place.bundle + bundle) * self.wide, blocks, height, row, start, initial)
        with self.nest.loop(self.tile.lanes, LoopKind.VECTOR, self.tile.lanes) as lane:
            for column in range(height):
                for vector in range(acc.tile.vectors):
                    self.nest.store(place.buffer, index(column, vector, lane), acc.at(column, vector, lane))

    def _results(self, place: Place, count: DimLike, here: DimLike) -> None:
        """The epilogue over the finished sums."""
        nest, first = self.nest, place.first
        with nest.loop(count) as bundle:
            block = (place.bundle + bundle) * self.wide
            with nest.loop(dims.minimum(self.wide, self.blocks - block, nest.ranges)) as part:

                def store(at: DimLike, position: Shape) -> None:
                    with nest.loop(self.block, LoopKind.VECTOR, self.tile.lanes) as lane:
                        index = (bundle * self.room + at) * self.tile.columns + part * self.block + lane
                        self.epilogue.store((place.image, block + part, *position, lane), Load(place.buffer, (index,), self.dtype))

                if self.flat:
                    left = self.columns - first * self.unit
                    with nest.loop(dims.minimum(here * self.unit, left, nest.ranges)) as at:
                        store(at, unravel(first * self.unit + at, self.spatial, nest.ranges))
                else:
                    with nest.loop(here) as offset:
                        row = tuple(split_task(nest, first + offset, self.spatial[:-1])) if len(self.spatial) > 1 else ()
                        with nest.loop(self.columns) as column:
                            store(offset * self.columns + column, (*row, column))

    def _borders(self, image: DimLike, chunk: DimLike, bundle: DimLike, count: DimLike) -> None:
        """The border around a group's results, written by its first chunk."""
        with self.nest.branch(compare("eq", chunk, 0)), self.nest.loop(count) as offset:
            first = (bundle + offset) * self.wide
            with self.nest.loop(dims.minimum(self.wide, self.blocks - first, self.nest.ranges)) as part:
                self.epilogue.store_border(image, first + part)

    def _next_weights(self, bundle: DimLike, count: DimLike) -> DimLike | None:
        """How many elements behind a bundle's weights of this pass those are that are used next: the next bundle's, or the next
        pass's first. None where nobody asks for them: they are in the L2 cache, or nobody has time to."""
        size = dims.product(self.w.shape)
        if self.groups > 1 or not isinstance(self.steps, int) or self.steps < 2 or size * self.w.dtype.bytes <= self.target.l2_bytes:
            return None
        stream = dims.product(self.w.shape[1:])
        behind = self.depth * dims.product(self.w.shape[2:]) - bundle * (self.wide * stream)
        return self.nest.let_index(select(compare("lt", bundle + 1, count), index_value(self.wide * stream), index_value(behind)))

    def _ask(self, step: DimLike) -> None:
        """Chooses the lines of the next weights that a tile asks for with each of its input blocks and kernel positions."""
        self.asked = []
        if self.next is None:
            return
        line, block = LINE_BYTES // self.w.dtype.bytes, dims.product(self.w.shape[-2:])
        lines, stream = max(block // line, 1), dims.product(self.w.shape[1:])
        share = -(-self.wide * lines // self.steps)
        for k in range(share):
            number = step * share + k
            part = dims.floordiv(number, lines, self.nest.ranges)
            place = self.next + part * stream + (number - part * lines) * line
            self.asked.append(self.nest.let_index(index_value(place)))

    def _enter(self, block: DimLike) -> None:
        """Keeps the first output block of a sum."""
        super()._enter(block)
        self.entered = block

    @contextmanager
    def _terms(self) -> Iterator[Shape]:
        windows = tuple(size for _, size in self.window)
        unrolled = self._channels_a_turn(windows)
        with self._blocks_of_terms() as block, self.nest.loops(windows) as place:
            kernel = tuple(start + k for (start, _), k in zip(self.window, place, strict=True))
            here = ravel((self.entered, block, *kernel, 0, 0), self.w.shape)
            for offset in self.asked:
                self.nest.prefetch(self.draft.read(self.w), here + offset)
            with self.nest.loop(self.taps[-1] // unrolled) as step, self.nest.loop(unrolled, LoopKind.UNROLLED) as channel:
                yield (block, *kernel, step * unrolled + channel)

    @contextmanager
    def _blocks_of_terms(self) -> Iterator[DimLike]:
        with self.nest.loop(dims.minimum(self.depth, self.w.shape[1] - self.start, self.nest.ranges)) as block:
            yield self.start + block
