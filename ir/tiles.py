"""Register tiles: how large a block of accumulators a target holds, and which size suits a matrix.

Passes ask here when they pack weights, templates when they write the loops around them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tcompile.ir.choices import Option, choose
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import F32, F64, I32, I64, DType
from tcompile.ir.target import Target
from tcompile.ir.winograd import Winograd

_TRANSFORM_CYCLES = 120.0  # of one tile of 36 values and one vector of channels, both passes, loads and stores
_WHOLE_TRANSFORM_CYCLES = 90.0  # of halves
_WINOGRAD_PRODUCTS = 1.2  # cycles for each that FMAs alone would take: sums are short, and come from and go to the L2 cache
_HALVES_GAIN = 1.5  # products of halves for each of floats: a word's two take two operations, which share ports
_MEMORY_BYTES_PER_CYCLE = 6.0  # of one core
_L2_BYTES_PER_CYCLE = 24.0  # into the L1 cache
MOST_ROWS = 8  # of a matrix at a time: more, at strides of whole pages, evict each other from the L1 cache
_NEAR_BYTES_PER_CYCLE = 16.0  # from behind the L1 cache, asked for some time before
_WEIGHT_BYTES_PER_CYCLE = 40.0  # of a block of Winograd's tiles, from behind the L2 cache: most of their way is hidden
_PLANE_BYTES_PER_CYCLE = 32.0  # of its transformed values, each time they are written or read there
_SUM_BYTES_PER_CYCLE = 12.0  # of the weights of Strassen's algorithm
_LEAST_TOGETHER, _MOST_TOGETHER = 12, 64  # tiles of a block
_MOST_PAIRS = 50  # of positions in a block of Strassen's algorithm
_FEWEST_POSITIONS = 24  # for it to fill register tiles
_GROUP = 64  # outputs whose products are there at a time
_TILE_CYCLES = 5.0  # around the loop over terms of a tile
_FULL_CYCLES = 25.0  # more where results fill most registers: the next tile's loop then does not begin before this one's end
_FULL = 0.6  # of the registers
LOAD_SHARE = 0.9  # of the loads that could be
_STREAM_CYCLES = 0.12  # of a step, for each stream of weights above two
_LISTED_ROWS = 8  # each at an address of its own, in a register
MANY_ROWS = 64  # what a symbolic number of rows is planned for
FEW_ROWS = 2  # of a recurrence
_FEWEST_TASKS = 4  # where the work suffices
_MANY_TASKS = 16  # of which one more or less on a thread is no matter
_MOST_STREAMS = 4  # one stream of addresses leaves a third of the memory's bandwidth unused, more than four add nothing


@dataclass(frozen=True)
class Tile:
    """The size of a register tile: rows x vectors of ``lanes`` elements."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes

    def option(self, cycles: float) -> Option[Tile]:
        """The tile as one of several to choose from."""
        return Option(f"{self.rows}x{self.vectors}", cycles, self)


def accumulator_type(a: DType, b: DType, result: DType) -> DType:
    """What products of ``a`` and ``b`` are summed in: at least f32, at least i32, and not below the result."""
    if result.is_float:
        return F64 if F64 in (a, b, result) else F32
    return I64 if max(a.bits, b.bits, result.bits) > 32 else I32


def lanes(target: Target, dtype: DType) -> int:
    """Elements of an accumulator type in one vector register."""
    return max(target.vector_bytes // dtype.bytes, 1)


def channel_block(target: Target, dtypes: Iterable[DType]) -> int:
    """Channels of a block of activations where convolutions have factors of ``dtypes``: the target's, or what dot products of
    integers take."""
    return 16 if any(not dtype.is_float for dtype in dtypes) else target.channel_block


@dataclass(frozen=True)
class Step:
    """What one multiplication and addition of vectors takes: registers beside its operands, operations, cycles until its sum is there."""

    spare: int = 0
    operations: int = 1
    latency: float | None = None  # None: that of an FMA
    words: int = 1  # of each row and column that it takes
    slots: float = 1.0  # of an FMA, whose ports it occupies


FMA = Step()
HALVES = Step(spare=1, operations=2, latency=1.0, slots=1.2)  # a multiplication of pairs into a register of its own, an addition
PAIRS = Step(spare=3, operations=4, latency=1.0, words=2, slots=2.0)  # of two words: two additions, a multiplication, an addition


def fits(target: Target, rows: int, vectors: int, broadcasts: int = 1, step: Step = FMA) -> bool:
    """Whether accumulators, one row of weights and the broadcasts stay in registers."""
    return rows * vectors + step.words * vectors + broadcasts + step.spare <= target.vector_registers


def matrix_fits(target: Target, rows: int, vectors: int, step: Step = FMA) -> bool:
    """Whether a tile stays in registers whose rows' elements lie apart in memory."""
    return fits(target, rows, vectors, rows if target.early_loads else 1, step)


def row_fits(target: Target, vectors: int) -> bool:
    """Whether the accumulators of a single row stay in registers: its weights are used once each and wait in none."""
    return vectors + 2 <= target.vector_registers


def dot_step(target: Target, parts: int, *, paired: bool = False) -> Step:
    """The step of words of ``parts`` parts; ``paired``: of two words at once, as sums are multiplied."""
    if paired:
        return PAIRS
    return HALVES if parts == 2 and target.dot_parts == 2 else FMA


def best_tile(
    target: Target,
    rows: DimLike,
    columns: int,
    lane_count: int,
    step: Step = FMA,
    terms: int = 0,
    planned: int = MANY_ROWS,
    what: str = "matrix tile",
) -> Tile:
    """The tile that needs the fewest cycles for a matrix of ``rows`` (symbolic: ``planned``) x ``columns``, and sums of ``terms``.

    The choice is called ``what``.
    """
    total = max(-(-columns // lane_count), 1)
    limit = rows if isinstance(rows, int) and rows else planned
    # run-time row counts are covered by a power of two and its halves
    heights = [height for height in range(1, min(limit, MOST_ROWS) + 1) if isinstance(rows, int) or height in (1, 2, 4, 8)]
    options = (
        Tile(height, vectors, lane_count).option(_work(target, limit, total, height, vectors, step, terms))
        for vectors in range(1, min(total, 8) + 1)
        for height in heights
        if matrix_fits(target, height, vectors, step)
    )
    return choose(what, options)


def _work(target: Target, rows: int, vectors: int, height: int, width: int, step: Step, terms: int) -> float:
    """Cycles per term over the whole matrix. A panel that leaves the L1 cache comes from the L2 for each tile of rows."""
    panels = -(-vectors // width)
    full, rest = divmod(rows, height)
    read = width * target.vector_bytes
    least = read / _L2_BYTES_PER_CYCLE if terms * read > target.l1_bytes // 2 else 0.0

    def cycles(count: int) -> float:
        around = around_cycles(target, count, width, step) / terms if terms else 0.0
        return max(step_cycles(target, count, width, step), least) + around

    return panels * (full * cycles(height) + (cycles(rest) if rest else 0))


def around_cycles(target: Target, height: int, width: int, step: Step = FMA) -> float:
    """Cycles around the loop over terms of a tile. Steps of several operations leave time for more of that."""
    full = height * width > _FULL * target.vector_registers and step.operations == 1
    return _TILE_CYCLES + (_FULL_CYCLES if full else 0)


def tile_cycles(target: Target, height: int, width: int, terms: int, step: Step = FMA, streams: int = 1) -> float:
    """Cycles of a tile of sums of ``terms``: its steps, and what is around them. ``streams``: of weights, by their addresses."""
    each = step_cycles(target, height, width, step) + _STREAM_CYCLES * max(streams - 2, 0)
    return each * terms + around_cycles(target, height, width, step)


def step_cycles(target: Target, height: int, width: int, step: Step = FMA) -> float:
    """Cycles of one step of a tile: its FMAs, the latency where they are few, or its loads; and a little for the loop."""
    latency = target.fma_latency if step.latency is None else step.latency
    loads = (height + width) * step.words
    issued = (height * width * step.operations + loads) / target.issue_width
    multiplies = math.ceil(height * width / target.fma_ports) * step.slots
    busy = max(multiplies, latency + 0.03, loads / (LOAD_SHARE * target.load_ports), issued)
    return busy + 0.2


def attention_tiles(target: Target, rows: DimLike, keys: int, columns: int, depth: int) -> tuple[Tile, Tile]:
    """The tiles of the two products of an attention, of one height: rows x keys summed over ``depth``, rows x columns over keys."""
    lane_count = target.float_lanes
    limit = rows if isinstance(rows, int) and rows else 2 * MANY_ROWS

    def cycles(height: int, width: int, extent: int, terms: int) -> float:
        read, around = width * target.vector_bytes, around_cycles(target, height, width)
        far = 4 * extent * terms > target.l1_bytes // 2  # all panels are read for each few rows
        each = max(step_cycles(target, height, width), read / _L2_BYTES_PER_CYCLE if far else 0.0)
        return -(-limit // height) * -(-extent // (width * lane_count)) * (each * terms + around)

    def option(height: int, widths: list[int]) -> Option[tuple[Tile, Tile]]:
        first = min(widths, key=lambda width: cycles(height, width, keys, depth))
        second = min(widths, key=lambda width: cycles(height, width, columns, keys))
        total = cycles(height, first, keys, depth) + cycles(height, second, columns, keys)
        return Option(f"{height}x{first}x{second}", total, (Tile(height, first, lane_count), Tile(height, second, lane_count)))

    def held(height: int, width: int) -> bool:
        return fits(target, height, width) or (height == 1 and row_fits(target, width))

    heights = range(min(limit, target.vector_registers), 0, -1)  # the more rows, the less often are panels read
    fitting = ((height, [width for width in range(1, 9) if held(height, width)]) for height in heights)
    return choose("attention tiles", (option(height, widths) for height, widths in fitting if widths))


def panel_width(target: Target, rows: DimLike, terms: int, columns: int, dtype: DType, step: Step = FMA, *, few: bool = False) -> int:
    """How wide to pack a constant matrix of ``terms`` x ``columns`` for a product with ``rows`` rows; ``dtype`` is that of the sums.

    ``few``: a symbolic number of rows is small.
    """
    lane_count = lanes(target, dtype)
    if is_streamed(target, rows, terms, columns, dtype):
        vectors = max((1, 2, 4), key=lambda vectors: (side_by_side(target, rows, vectors), vectors))
        if side_by_side(target, rows, vectors) * vectors * lane_count <= columns:
            return vectors * lane_count
        if rows == 1 and columns >= 2 * lane_count:  # two threads share even a narrow matrix
            return min(columns // (2 * lane_count), 2) * lane_count
    if few:
        return best_tile(target, rows, columns, lane_count, step, planned=FEW_ROWS, what="matrix panel").columns
    return best_tile(target, rows, columns, lane_count, step, terms, what="matrix panel").columns


def is_streamed(target: Target, rows: DimLike, terms: int, columns: int, dtype: DType) -> bool:
    """Whether a constant matrix comes from memory and is read once: it fills the L2 cache, and the rows are those of a tile that
    reads panels side by side."""
    few = isinstance(rows, int) and 0 < rows < MOST_ROWS and side_by_side(target, rows, 1) > 1
    return few and terms * columns * dtype.bytes > target.l2_bytes


def side_by_side(target: Target, rows: int, vectors: int) -> int:
    """How many panels of ``vectors`` a tile of few rows reads side by side, so that several streams of addresses come from memory."""

    def held(streams: int) -> bool:
        return matrix_fits(target, rows, streams * vectors) or (rows == 1 and row_fits(target, streams * vectors))

    return max((streams for streams in range(1, _MOST_STREAMS + 1) if held(streams)), default=1)


def chains(target: Target, tile: Tile, terms: int) -> int:
    """How many parts of equal length the terms of a tile of few sums are cut into, each added on its own: the latency of
    additions would hold up a single one, and each part is one more stream of addresses from memory."""
    wanted = target.fma_ports * target.fma_latency / (tile.rows * tile.vectors)
    return next((parts for parts in (4, 2) if parts <= wanted and terms % parts == 0), 1)


def gathered_tile(target: Target, block: int) -> Tile:
    """The tile that multiplies the rows of a table, ``block`` output channels wide or a part of them."""
    lane_count = target.float_lanes
    vectors = min(block // lane_count, 2)
    rows = (target.vector_registers - 1 - vectors) // vectors
    return Tile(min(rows, _LISTED_ROWS), vectors, lane_count)


def gathered_block(target: Target, taps: int, entries: int) -> int | None:
    """How many outputs a task of conv_gathered computes: their sums of all taps stay in registers, the products of ``entries`` rows
    in the L2 cache. None where there is no such number."""
    for vectors in (2, 1):
        block = vectors * target.float_lanes
        held = (taps + 2) * vectors + 2 <= target.vector_registers  # extremes and operands beside the sums
        if held and 4 * entries * taps * block <= target.l2_bytes * 3 // 4:
            return block
    return None


def gathered_cycles(target: Target, positions: int, entries: int, parts: int, depth: int, taps: int, outputs: int) -> float:
    """Estimated cycles of a convolution of ``parts`` rows of a table of ``entries`` a position on one core."""
    products = entries * parts * depth * taps * outputs / (target.fma_ports * target.float_lanes)
    found = positions * parts * taps * outputs * 4 / _L2_BYTES_PER_CYCLE
    return 1.06 * products + found


def winograd_together(
    target: Target, form: Winograd, tiles: DimLike, inputs: int, outputs: int, per_block: int, lane_count: int, step: Step = FMA
) -> int:
    """How many tiles to transform together, in equal blocks.

    ``inputs`` and ``outputs`` count channels, ``per_block`` the registers of an output block.
    """
    if not isinstance(tiles, int) or form.axes == 1 or tiles == 0:
        return _fitting_tiles(target, form, tiles, inputs)
    weights, groups = form.values * 4 * inputs * outputs, -(-outputs // _GROUP)

    def option(number: int) -> Option[int]:
        together = -(-tiles // number)
        products = min(option.cycles for option in _winograd_tiles(target, together, inputs, outputs, per_block, lane_count, step))
        v, m = (form.values * 4 * together * channels for channels in (inputs, min(outputs, _GROUP)))
        return Option(str(number), number * (form.values * products + _block_moves(target, v, m, groups, weights)), together)

    return choose("winograd blocks", map(option, _block_counts(tiles, shared=outputs >= 2 * _GROUP)))


def strassen_together(target: Target, pairs: DimLike, inputs: int) -> int:
    """How many pairs of positions Strassen's algorithm sums together, in equal blocks: many, for each weight comes from behind the
    L2 cache for each block, while its sums are read one value's at a time. ``inputs`` counts the channels of a half."""
    most = max(min(4 * target.l2_bytes // (7 * 4 * inputs), _MOST_PAIRS), _MOST_PAIRS // 2)
    if not isinstance(pairs, int):
        return most
    number = max(-(-pairs // most), 1)
    number += number % 2 if 1 < number < _MANY_TASKS else 0  # few are as many for each of two threads
    return max(-(-pairs // number), 1)


def winograd_tile(
    target: Target, tiles: DimLike, together: int, inputs: int, outputs: int, per_block: int, lane_count: int, step: Step = FMA
) -> tuple[Tile, int]:
    """The register tile of the products, and ``together`` as suits it."""
    tile = choose("winograd tile", _winograd_tiles(target, together, inputs, outputs, per_block, lane_count, step))
    if isinstance(tiles, int) and -(-tiles // together) >= _MANY_TASKS:
        together = -(-together // tile.rows) * tile.rows  # a last block of fewer tiles rather than a rest in each
    return tile, together


def _block_counts(tiles: int, *, shared: bool) -> list[int]:
    """Numbers of blocks to cut ``tiles`` into: none too short or too long, few as many for each of two threads, and one where
    that has little work or the outputs are ``shared`` among tasks."""
    fewest = 1 if shared or tiles < 2 * _LEAST_TOGETHER else 2
    counts = {max(-(-tiles // together), fewest) for together in range(_LEAST_TOGETHER, _MOST_TOGETHER + 1)}
    return sorted({count + count % 2 if 1 < count < _MANY_TASKS else count for count in counts})


def _block_moves(target: Target, v: int, m: int, groups: int, weights: int) -> float:
    """Cycles that a block's bytes take beside the products: transformed values ``v`` and the products ``m`` of a group of outputs
    where they leave the L2 cache, which they begin to when they fill half of it, and ``weights`` from behind it."""
    far = min(max(2 * (v + m) / target.l2_bytes - 1, 0.0), 1.0)
    moved = v * (1 + groups) + 2 * m * groups
    return far * moved / _PLANE_BYTES_PER_CYCLE + (weights / _WEIGHT_BYTES_PER_CYCLE if v + m + weights > target.l2_bytes else 0)


def _fitting_tiles(target: Target, form: Winograd, tiles: DimLike, inputs: int) -> int:
    """How many tiles to transform together where the L2 cache decides."""
    # fewer than 16 would read the weights too often, even where V then leaves the L2 cache; of a line, V may fill it: the products
    # read one plane at a time
    shares, limit = (2, 24) if form.axes == 2 else (1, 96)
    most = max(min(target.l2_bytes // shares // (form.values * 4 * inputs), limit), 16)
    fewest = min(_FEWEST_TASKS, tiles // 16) if isinstance(tiles, int) else 1
    number = max(-(-tiles // most), fewest, 1) if isinstance(tiles, int) else _MANY_TASKS  # of blocks of tiles
    number += number % 2 if 1 < number < _MANY_TASKS else 0  # few are as many for each of two threads
    return max(-(-tiles // number), 1) if isinstance(tiles, int) else most


def _winograd_tiles(
    target: Target, together: int, inputs: int, outputs: int, per_block: int, lane_count: int, step: Step
) -> Iterator[Option[Tile]]:
    """The register tiles for one value's products."""
    blocks = max(outputs // (per_block * lane_count), 1)

    def cycles(rows: int, wide: int) -> float:
        total = 0.0
        for count, width in ((blocks // wide, wide), (1, blocks % wide)):
            for times, height in ((together // rows, rows), (1, together % rows)):
                if count and width and times and height:
                    total += count * times * tile_cycles(target, height, width * per_block, inputs, step, width)
            # the first tile waits for weights
            missing = width * per_block * target.vector_bytes / _NEAR_BYTES_PER_CYCLE - step_cycles(target, rows, width * per_block, step)
            total += count * inputs * max(missing, 0) if width else 0
        return total

    for wide in range(1, min(blocks, 8) + 1):
        for rows in range(1, min(together, MOST_ROWS * 2) + 1):
            if fits(target, rows, wide * per_block, step=step):
                yield Tile(rows, wide * per_block, lane_count).option(cycles(rows, wide))


def winograd_pass(target: Target, blocks: int, terms: int, columns: int) -> int:
    """``conv_pass`` of the products of Winograd's algorithm: fewer, since tiles and sums share the L1 cache with the weights."""
    most = max(target.l1_bytes // 8 // (terms * columns * 4), 1)
    return -(-blocks // -(-blocks // most))


def winograd_cycles(target: Target, form: Winograd, tiles: int, inputs: int, outputs: int) -> float:
    """Estimated cycles of a Winograd convolution on one core: products, transforms, and the weights from memory."""
    rate = target.fma_ports * target.float_lanes
    inputs *= len(form.offsets)
    products = _WINOGRAD_PRODUCTS * tiles * form.values * inputs * outputs / rate
    transforms = tiles * (inputs + outputs) / target.float_lanes * _TRANSFORM_CYCLES * form.values / 36
    return max(products + transforms, form.values * 4 * inputs * outputs / _MEMORY_BYTES_PER_CYCLE)


def whole_winograd_cycles(target: Target, form: Winograd, tiles: int, inputs: int, outputs: int) -> float:
    """``winograd_cycles`` of words of two channels: a word takes two operations to multiply and add, and one vector for 16 channels."""
    rate = target.fma_ports * target.float_lanes
    products = tiles * form.values * inputs * outputs / rate / _HALVES_GAIN
    transforms = tiles * (inputs / 2 + outputs) / target.float_lanes * _WHOLE_TRANSFORM_CYCLES * form.values / 36
    return max(products + transforms, form.values * 2 * inputs * outputs / _MEMORY_BYTES_PER_CYCLE)


def halves_cycles(target: Target, positions: int, taps: int, inputs: int, outputs: int) -> float:
    """``direct_cycles`` of words of two channels."""
    products = positions * taps * inputs * outputs / (target.fma_ports * target.float_lanes) / _HALVES_GAIN
    return max(products * 1.05, taps * 2 * inputs * outputs / _MEMORY_BYTES_PER_CYCLE)


def direct_cycles(target: Target, positions: int, taps: int, inputs: int, outputs: int) -> float:
    """Estimated cycles of a direct convolution by a kernel of ``taps`` elements on one core."""
    products = positions * taps * inputs * outputs / (target.fma_ports * target.float_lanes)
    return max(products * 1.05, taps * 4 * inputs * outputs / _MEMORY_BYTES_PER_CYCLE)


def pointwise_cycles(target: Target, positions: int, inputs: int, outputs: int, *, strided: bool) -> float:
    """``direct_cycles`` of a pointwise convolution; strided ones gather their inputs again for each tile."""
    return direct_cycles(target, positions, 1, inputs, outputs) * (1.1 if strided else 1.0)


def strassen_cycles(target: Target, positions: int, inputs: int, outputs: int) -> float:
    """Estimated cycles of a pointwise convolution by Strassen's algorithm on one core: products of shorter sums, the sums around
    them, and the weights from memory."""
    if positions < _FEWEST_POSITIONS:
        return math.inf
    positions += positions % 2
    products = positions * inputs * outputs * 7 / 8 / (target.fma_ports * target.float_lanes)
    sums = positions * (inputs * 3.5 + outputs * 7) / target.float_lanes
    more = 3 * inputs * outputs / _SUM_BYTES_PER_CYCLE / 2  # of the weights, some of which others hide
    return max(products * 1.09 + sums + more, 7 * inputs * outputs / _MEMORY_BYTES_PER_CYCLE)
