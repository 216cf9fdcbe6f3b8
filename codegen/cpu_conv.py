"""Direct convolution on blocked activations, and the stem that reads plain ones.

    parallel for (image, group of output blocks, chunk of rows):
        for each row of the chunk, for each tile of columns:
            acc[columns][blocks of output channels] = 0
            for (input block, kernel position, input channel):  acc += x[column] * w[channel][lanes]
            epilogue; store

The input is padded beforehand. A pointwise convolution takes all positions as one long row. Sums run in one fixed
order by one thread each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from tcompile.codegen.access import ravel, unravel
from tcompile.codegen.cpu_epilogue import Epilogue, anchor, store_tile
from tcompile.codegen.cpu_split import even_share, split_task
from tcompile.codegen.cpu_sweep import Stage, is_swept, run_swept
from tcompile.codegen.cpu_tile import Accumulator, micro_kernel
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import compare, index_value, select
from tcompile.ir import dims
from tcompile.ir.choices import Option, choose
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import F32
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr, Load, LoopKind
from tcompile.ir.target import Target
from tcompile.ir.tiles import FMA, MANY_ROWS, Step, Tile, accumulator_type, lanes, matrix_fits, tile_cycles

FEW_SUMS = 12  # of a tile: the loop's own operations then take time
CHANNELS_A_TURN = 8  # of a pointwise kernel's loop over channels
LINE_BYTES = 64
MOST_TILES = 256  # of a row, for its tiles to ask for the next weights
MIN_TASKS = 32  # parallel tasks to aim for; more only cost loop overhead


@dataclass(frozen=True)
class TileAt:
    """The tile whose sum is being written: its output blocks, and its first column."""

    block: DimLike
    blocks: int
    start: DimLike


class DirectConv:
    """Writes the loops of one kernel; ``BlockedConv`` and ``StemConv`` say how inputs and weights lie."""

    def __init__(self, node: Node, scope: Scope, target: Target, name: str) -> None:
        self.target = target
        found = anchor(node)
        assert found is not None, node.op
        self.core = found
        self.draft = Draft(name, node, scope)
        self.nest = self.draft.nest
        self.epilogue = Epilogue(self.draft, node, self.core)
        self.x, self.w = self.core.inputs[:2]
        self.images, self.blocks, *spatial, self.block = self.core.output.shape
        self.spatial: Shape = tuple(spatial)
        self.dtype = accumulator_type(self.x.dtype, self.w.dtype, self.core.output.dtype)
        self.groups = self.core.attrs.get("groups", 1)
        self.sections = self.groups  # of the output blocks; a bundle lies in one
        self._geometry()
        # positions in memory order are one row where each output reads just its own position
        self.flat = self._pointwise()
        self.rows: DimLike = 1 if self.flat else dims.product(self.spatial[:-1])
        self.columns: DimLike = dims.product(self.spatial) if self.flat else self.spatial[-1]
        lane_count = min(lanes(target, self.dtype), self.block)
        self.tile, self.wide = self._choose(lane_count)
        self.draft.flops = 2 * self.core.output.type.size * dims.product(self.taps)
        if self.useful() < 1:
            self.draft.flops = dims.floordiv(self.draft.flops * round(self.useful() * 3600), 3600)
        self.bias: Callable[[DimLike, DimLike], Expr] | None = None  # what sums start from, where not from 0
        self.draft.tags["tile"] = f"{self.tile.rows}x{self.tile.vectors}x{lane_count}"

    # To be given by subclasses ------------------------------------------------------------------------

    def _geometry(self) -> None:
        """Sets ``taps``: the extents of the loops over terms, the kernel positions being ``kernel``."""
        raise NotImplementedError

    def useful(self) -> float:
        """The share of the terms that sums have."""
        return 1.0

    def load(self, image: DimLike, group: DimLike, position: Shape, tap: Shape) -> Expr:
        """The input under a kernel position, ``position`` being that of the output."""
        raise NotImplementedError

    def weight(self, block: DimLike, lane: DimLike, tap: Shape) -> Expr:
        """The weight of an output channel."""
        raise NotImplementedError

    # Shape of the kernel ------------------------------------------------------------------------------

    def _pointwise(self) -> bool:
        attrs = self.core.attrs
        return all(k == 1 for k in self.kernel) and all(s == 1 for s in attrs["strides"])

    step: Step = FMA
    combine: Callable[[Expr, Expr, Expr], Expr] | None = None

    def _choose(self, lane_count: int) -> tuple[Tile, int]:
        """The register tile and its number of output blocks: the fewest cycles over a row and all blocks."""
        per_block = self.block // lane_count
        length = self.columns if isinstance(self.columns, int) else MANY_ROWS
        heights = range(1, min(max(length, 1), self.target.vector_registers) + 1) if isinstance(self.columns, int) else (1, 2, 4, 8)
        options = (
            Tile(height, wide * per_block, lane_count).option(self._cycles(length, height, wide, per_block))
            for wide in range(1, min(self._section_blocks(), 8) + 1)
            if self.sections == 1 or self._section_blocks() % wide == 0
            for height in heights
            if matrix_fits(self.target, height, wide * per_block, self.step)
        )
        tile = choose("convolution tile", options)
        return tile, tile.vectors // per_block

    def _at_bundle(self, bundle: DimLike) -> None:
        """Told of the bundle of each task."""

    def _section_blocks(self) -> int:
        return self.blocks // self.sections

    def _cycles(self, length: int, height: int, wide: int, per_block: int) -> float:
        full, rest = divmod(length, height)
        cycles, terms = 0.0, round(dims.product(self.taps) * self.useful())
        for blocks, count in ((wide, self.blocks // wide), (self.blocks % wide, 1)):
            if blocks:
                for rows, times in ((height, full), (rest, 1)):
                    each = tile_cycles(self.target, rows, blocks * per_block, terms, self.step, blocks) if rows else 0
                    cycles += count * times * each
        return cycles

    # Loops --------------------------------------------------------------------------------------------

    def write(self) -> Draft:
        """The whole kernel."""
        if is_swept(self) and self.dtype == self.core.output.dtype == F32:
            self.bias = self.epilogue.leave_bias()
        bundles = -(-self.blocks // self.wide)
        tiles = dims.floordiv(self.columns, self.tile.rows, self.nest.ranges)
        # what is cut into chunks: rows, or the tiles of the only row
        units = dims.maximum(tiles, 1, self.nest.ranges) if self.flat else self.rows
        near = self._near(units, bundles)
        per_chunk = self._per_chunk(units, bundles) if near is None else near
        chunks = dims.ceildiv(units, per_chunk, self.nest.ranges)
        with self.nest.loop(self.images * bundles * chunks, LoopKind.PARALLEL) as task:
            if near is None:
                image, bundle, chunk = split_task(self.nest, task, (self.images, bundles, chunks))
            else:
                image, chunk, bundle = split_task(self.nest, task, (self.images, chunks, bundles))
            first, here = even_share(self.nest, chunk, chunks, units, per_chunk)
            self._at_bundle(bundle)
            run = partial(self._run, image, bundle, first, here, tiles, chunks, chunk)
            self._by_blocks(bundle, bundles, run)
            if self.epilogue.pad is not None:
                self._border(image, bundle, chunk)
        return self.draft

    def _border(self, image: DimLike, bundle: DimLike, chunk: DimLike) -> None:
        """The border around a bundle's results, written by its first chunk."""
        with self.nest.branch(compare("eq", chunk, 0)):
            first = bundle * self.wide
            count = dims.minimum(self.wide, self.blocks - first, self.nest.ranges)
            with self.nest.loop(count) as part:
                self.epilogue.store_border(image, first + part)

    def _near(self, units: DimLike, bundles: int) -> int | None:
        """Units of a chunk whose inputs stay in the L2 cache for all bundles; None where one bundle for all chunks reads less."""
        image, weights = dims.product(self.x.shape[1:]), dims.product(self.w.shape)
        cache = self.target.l2_bytes // self.x.dtype.bytes
        if not isinstance(image, int) or not isinstance(units, int) or self.groups > 1 or image <= cache // 2:
            return None
        per_chunk = max(units * cache // 4 // image, 1)
        again = weights * -(-units // per_chunk) if weights > cache // 2 else weights
        options = (Option("channels outside", bundles * image, None), Option("positions outside", again, per_chunk))
        return choose("convolution order", options)  # by the elements that come from behind the L2 cache

    def _per_chunk(self, units: DimLike, bundles: int) -> int:
        images = self.images if isinstance(self.images, int) else 1
        wanted = max(MIN_TASKS // max(images * bundles, 1), 1)
        return max(-(-units // wanted), 1) if isinstance(units, int) else 8 if wanted > 1 else 1 << 20

    def _by_blocks(self, bundle: DimLike, bundles: int, run: Callable[[int], None]) -> None:
        """Runs a bundle of ``wide`` blocks, or the narrower last one."""
        rest = self.blocks % self.wide
        if not rest:
            run(self.wide)
        elif bundles == 1:
            run(rest)
        else:
            with self.nest.branch(compare("lt", bundle, bundles - 1)):
                run(self.wide)
            with self.nest.otherwise():
                run(rest)

    def _run(
        self, image: DimLike, bundle: DimLike, first: DimLike, here: DimLike, tiles: DimLike, chunks: DimLike, chunk: DimLike, blocks: int
    ) -> None:
        """One task, with the number of output blocks known."""
        nest, height = self.nest, self.tile.rows
        if is_swept(self):
            units = tiles if self.flat else self.rows
            run_swept(
                self,
                image,
                bundle * self.wide,
                blocks,
                first,
                dims.minimum(here, units - first, nest.ranges),
                partial(self._in_last_chunk, chunks, chunk),
            )
            return
        emit = partial(self._tile, image, bundle * self.wide, blocks)
        if self.flat:
            with nest.loop(dims.minimum(here, tiles - first, nest.ranges)) as tile:
                emit(height, (), (first + tile) * height)
            if list(self._rests(tiles)):
                self._in_last_chunk(chunks, chunk, partial(self._rest, partial(emit, row=()), tiles))
            return
        with nest.loop(here) as offset:
            row: Shape = tuple(split_task(self.nest, first + offset, self.spatial[:-1])) if len(self.spatial) > 1 else ()
            if isinstance(self.columns, int):
                for start, number, size in self.row_parts():
                    with nest.loop(number) as tile:
                        emit(size, row, start + tile * size)
            else:
                with nest.loop(tiles) as tile:
                    emit(height, row, tile * height)
                self._rest(partial(emit, row=row), tiles)

    def row_parts(self) -> list[tuple[int, int, int]]:
        """The tiles of a row of known length: for each height the first column, and how many tiles there are."""
        columns, height = self.columns, self.tile.rows
        assert isinstance(columns, int), columns
        parts = [(0, columns // height, height), (columns // height * height, 1, columns % height)]
        return [(start, number, size) for start, number, size in parts if number and size]

    def _in_last_chunk(self, chunks: DimLike, chunk: DimLike, emit: Callable[[], None]) -> None:
        """Runs ``emit`` in the last of a row's chunks."""
        if chunks == 1:
            emit()
            return
        with self.nest.branch(compare("eq", chunk, chunks - 1)):
            emit()

    def stage_tile(self, stage: Stage, height: int, row: Shape, start: DimLike, at: DimLike) -> None:
        """The sums of a tile, put at a position of a stage."""
        stage.put(self._sum(stage.image, stage.block, stage.blocks, height, row, start, self._biases(stage.block)), at)

    def _biases(self, block: DimLike) -> Callable[[int, int, DimLike], Expr] | None:
        """What the sums of a tile of blocks from ``block`` start from, where the epilogue leaves it to them; loaded once a vector."""
        if self.bias is None:
            return None
        bias, lanes, known = self.bias, self.tile.lanes, {}

        def initial(row: int, vector: int, lane: DimLike) -> Expr:
            if vector not in known:
                part, start = divmod(vector * lanes, self.block)
                known[vector] = self.nest.let(bias(block + part, start + lane), "bias")
            return known[vector]

        return initial

    def _rest(self, emit: Callable[..., None], tiles: DimLike) -> None:
        """The columns that fill no tile."""
        for count, start, cond in self._rests(tiles):
            if cond is None:
                emit(count, start=start)
            else:
                with self.nest.branch(cond):
                    emit(count, start=start)

    def _rests(self, tiles: DimLike) -> Iterator[tuple[int, DimLike, Expr | None]]:
        columns, height = self.columns, self.tile.rows
        if isinstance(columns, int):
            if columns % height:
                yield columns % height, tiles * height, None
            return
        size = height // 2
        while size:
            start = dims.floordiv(columns, 2 * size, self.nest.ranges) * (2 * size)
            yield size, start, compare("ge", columns - start, size)
            size //= 2

    def _tile(self, image: DimLike, block: DimLike, blocks: int, height: int, row: Shape, start: DimLike) -> None:
        acc = self._sum(image, block, blocks, height, row, start)

        def place(column: DimLike, part: DimLike, lane: DimLike) -> Shape:
            position = unravel(start + column, self.spatial, self.nest.ranges) if self.flat else (*row, start + column)
            return (image, block + part, *position, lane)

        store_tile(self.epilogue, acc, place, self.block)

    def _sum(
        self,
        image: DimLike,
        block: DimLike,
        blocks: int,
        height: int,
        row: Shape,
        start: DimLike,
        initial: Callable[[int, int, DimLike], Expr] | None = None,
    ) -> Accumulator:
        """The sums of a tile over ``_terms``: ``height`` columns of a row from ``start``, ``blocks`` output blocks from ``block``."""
        per_block = self.block // self.tile.lanes
        tile = Tile(height, blocks * per_block, self.tile.lanes)
        group = 0 if self.groups == 1 else dims.floordiv(block, self._section_blocks(), self.nest.ranges)
        if self.groups > 1:
            group = self.nest.let_index(index_value(group), Range(0, self.groups - 1))

        self._enter(block)
        self.tile_at = TileAt(block, blocks, start)

        def weight(vector: int, lane: DimLike, tap: Shape) -> Expr:
            part, offset = divmod(vector, per_block)
            return self.weight(block + part, offset * tile.lanes + lane, tap)

        return self._multiply(tile, lambda column, tap: self.load(image, group, (*row, start + column), tap), weight, initial)

    def _multiply(
        self,
        tile: Tile,
        a: Callable[[int, Shape], Expr],
        b: Callable[[int, DimLike, Shape], Expr],
        initial: Callable[[int, int, DimLike], Expr] | None,
    ) -> Accumulator:
        """The micro-kernel: ``a`` is the input of a column, ``b`` a vector of weights."""
        return micro_kernel(self.nest, tile, self.dtype, self._terms, a, b, initial, self.combine)

    def _enter(self, block: DimLike) -> None:
        """Told of the first output block of each sum before its terms."""

    @contextmanager
    def _terms(self) -> Iterator[Shape]:
        with self.nest.loops(self.taps) as tap:
            yield tap

    def _source(self, position: Shape, kernel: Shape) -> Shape:
        """The input position that a kernel position reads for an output position."""
        attrs = self.core.attrs
        return tuple(p * s + k * d for p, s, k, d in zip(position, attrs["strides"], kernel, attrs["dilation"], strict=True))


class BlockedConv(DirectConv):
    """conv_blocked: x [N, I/B, spatial, B], w [O/B, I/g/B, kernel, Bi, Bo]."""

    reads: Sequence[tuple[int, int]] = ()  # by output block: the start and size of the input blocks that it reads, where not all
    windows: Sequence[list[tuple[int, int]]] = ()  # by section and axis: the start and size of what is read of the kernel

    def _geometry(self) -> None:
        self.kernel = self.w.shape[2:-2]
        self.taps = (self.w.shape[1], *self.kernel, self.w.shape[-2])
        windows, axes = self.core.attrs.get("windows", ()), len(self.kernel)
        pairs = list(zip(windows[::2], windows[1::2], strict=True))
        self.windows = [pairs[k : k + axes] for k in range(0, len(pairs), axes)]
        self.sections = len(self.windows) or self.groups
        reads = self.core.attrs.get("reads", ())
        self.reads = list(zip(reads[::2], reads[1::2], strict=True))
        self.read: tuple[DimLike, DimLike] = (0, self.w.shape[1])
        self.window: list[tuple[DimLike, DimLike]] = [(0, extent) for extent in self.kernel]

    def useful(self) -> float:
        """The share of the kernel's positions that sums read."""
        if self.reads:
            return sum(size for _, size in self.reads) / (len(self.reads) * self.w.shape[1])
        read = sum(dims.product(size for _, size in window) for window in self.windows)
        return read / (dims.product(self.kernel) * len(self.windows)) if self.windows else 1.0

    def _bundles_read(self, wide: int) -> list[tuple[int, int]]:
        """The start and size of the input blocks that each bundle of ``wide`` output blocks reads."""
        parts = [self.reads[k : k + wide] for k in range(0, len(self.reads), wide)]
        bounds = [(min(start for start, _ in part), max(start + size for start, size in part)) for part in parts]
        return [(start, end - start) for start, end in bounds]

    def _at_bundle(self, bundle: DimLike) -> None:
        """Sets the input blocks to read."""
        if self.reads:
            starts, sizes = zip(*self._bundles_read(self.wide), strict=True)
            self.read = self._among(list(starts), bundle), self._among(list(sizes), bundle)

    def _enter(self, block: DimLike) -> None:
        """Sets the window of the section that a block is in."""
        if not self.windows:
            return
        section = dims.floordiv(block, self._section_blocks(), self.nest.ranges)
        self.window = [
            tuple(self._among([window[axis][k] for window in self.windows], section) for k in (0, 1)) for axis in range(len(self.kernel))
        ]

    def _among(self, numbers: list[int], section: DimLike) -> DimLike:
        """The number of a section."""
        if len(set(numbers)) == 1:
            return numbers[0]
        value = index_value(numbers[-1])
        for k in reversed(range(len(numbers) - 1)):
            value = select(compare("eq", section, k), index_value(numbers[k]), value)
        return self.nest.let_index(value, Range(min(numbers), max(numbers)))

    @contextmanager
    def _terms(self) -> Iterator[Shape]:
        windows = tuple(size for _, size in self.window)
        unrolled = self._channels_a_turn(windows)
        ahead = self._next_weights()
        with self._blocks_of_terms() as blocks:
            for start in ahead:
                self.nest.prefetch(self.draft.read(self.w), start + blocks * self._block_weights())
            with self.nest.loops((*windows, self.taps[-1] // unrolled)) as (*place, step):
                kernel = tuple(start + k for (start, _), k in zip(self.window, place, strict=True))
                with self.nest.loop(unrolled, LoopKind.UNROLLED) as channel:
                    yield (blocks, *kernel, step * unrolled + channel)

    def _channels_a_turn(self, windows: Shape) -> int:
        """How many channels of a pointwise kernel a turn of the loop takes: several where one would have few FMAs."""
        few = self.tile.rows * self.tile.vectors <= FEW_SUMS and all(size == 1 for size in windows)
        return CHANNELS_A_TURN if few and self.taps[-1] % CHANNELS_A_TURN == 0 else 1

    @contextmanager
    def _blocks_of_terms(self) -> Iterator[DimLike]:
        start, size = self.read if self.reads else (0, self.taps[0])
        with self.nest.loop(size) as block:
            yield start + block

    def _next_weights(self) -> list[DimLike]:
        """Where in an input block's weights for the next bundle the lines lie that this tile asks for: they come from far meanwhile.

        All tiles together ask for every line; none where they are so many that the weights' way is nothing.
        """
        if not self.flat or self.blocks <= self.wide or not isinstance(self.columns, int) or not self.columns:
            return []
        line, tiles = LINE_BYTES // self.w.dtype.bytes, -(-self.columns // self.tile.rows)
        lines, at, ranges = self._block_weights() // line, self.tile_at, self.nest.ranges
        if lines == 0 or not 1 < tiles <= MOST_TILES:
            return []
        share = -(-at.blocks * lines // tiles)
        number = dims.mod(dims.floordiv(at.start, self.tile.rows, ranges) * share, at.blocks * lines, ranges)
        first = number if isinstance(number, int) else self.nest.let_index(index_value(number), Range(0, at.blocks * lines - 1))
        return [self._line_of_next(first + k, lines, line) for k in range(share)]

    def _line_of_next(self, number: DimLike, lines: int, line: int) -> DimLike:
        """A line of the first input block's weights for the next bundle, of which each output block has ``lines`` of ``line`` elements."""
        ranges = self.nest.ranges
        block = self.tile_at.block + self.wide + dims.floordiv(number, lines, ranges)
        return self.nest.let_index(index_value((block * self.w.shape[1] * lines + dims.mod(number, lines, ranges)) * line))

    def _block_weights(self) -> int:
        """Weights between two blocks of channels."""
        return self.w.shape[-2] * self.w.shape[-1]

    def load(self, image: DimLike, group: DimLike, position: Shape, tap: Shape) -> Expr:
        block, *kernel, channel = tap
        block = group * self.w.shape[1] + block
        shape = self.x.shape
        if self.flat:
            flat = ((image * shape[1] + block) * dims.product(shape[2:-1]) + position[0]) * shape[-1] + channel
            return self.draft.inliner.flat(self.x, flat)
        return self.draft.element(self.x, (image, block, *self._source(position, tuple(kernel)), channel))

    def weight(self, block: DimLike, lane: DimLike, tap: Shape) -> Expr:
        return Load(self.draft.read(self.w), (ravel((block, *tap, lane), self.w.shape),), self.w.dtype)


class StemConv(DirectConv):
    """conv_stem: plain x [N, I, spatial], w [O/B, I, kernel, B]."""

    def _geometry(self) -> None:
        self.kernel = self.w.shape[2:-1]
        self.taps = (self.w.shape[1], *self.kernel)

    def load(self, image: DimLike, group: DimLike, position: Shape, tap: Shape) -> Expr:
        channel, *kernel = tap
        if self.flat:
            shape = self.x.shape
            return self.draft.inliner.flat(self.x, (image * shape[1] + channel) * dims.product(shape[2:]) + position[0])
        return self.draft.element(self.x, (image, channel, *self._source(position, tuple(kernel))))

    def weight(self, block: DimLike, lane: DimLike, tap: Shape) -> Expr:
        return Load(self.draft.read(self.w), (ravel((block, *tap, lane), self.w.shape),), self.w.dtype)
