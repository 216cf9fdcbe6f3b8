"""conv_bytes: integer convolutions and matrix products on bytes, whose products are added in 16 bits before they are in 32.

    parallel for (image, tile of positions, group of outputs):
        for each pass over the terms:
            packed[word][positions] = the codes of the pass under the kernel, four bytes each
            for each output:
                acc[vectors of positions] = its offset, or the sums of the pass before
                for each group of entries:  acc += halves of the sum over them of  pairs4(packed[place], entry)
        the sums of L outputs at L positions, transposed;  epilogue;  store

Lanes are positions: so every output has groups of its own, and an entry is a scalar. Tables of entries are data: no number in them
makes a kernel leave its buffers.
"""

from __future__ import annotations

from collections.abc import Iterator

from tcompile.codegen.access import ravel, unravel
from tcompile.codegen.cpu_contraction import contraction
from tcompile.codegen.cpu_epilogue import Epilogue, anchor
from tcompile.codegen.cpu_split import split_task
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import cast, compare, const, index_value, op, select
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import I32, I64, U16
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr, Load, LoopKind, Space
from tcompile.ir.ops_bytes import POSITIONS
from tcompile.ir.target import Target
from tcompile.ir.tiles import lanes

MIN_TASKS = 8
FEWEST_OUTPUTS = 128  # of a task, where it has few: each task makes its own copies
MOST_VECTORS = 8  # of a tile: more leave no registers for weights
_ROOM = 2**16 + POSITIONS  # words of a tile's copies, of which a place is any
_MOST_LANES = 8
_TOGETHER = 2  # vectors, whose codes lie in one line of the cache
_ONES = 0x00010001
_BYTES = 0x01000001  # halves that make a half of two bytes of two halves


class BytesConv:
    """Writes the loops of one kernel."""

    def __init__(self, node: Node, scope: Scope, target: Target) -> None:
        found = anchor(node)
        assert found is not None, node.op
        self.core = found
        self.draft = Draft("conv_bytes", node, scope)
        self.nest: Nest = self.draft.nest
        self.epilogue = Epilogue(self.draft, node, self.core)
        self.x, self.entries, self.places, self.starts, self.offsets = self.core.inputs
        self.images, self.blocks, *spatial, self.block = self.core.output.shape
        self.spatial: Shape = tuple(spatial)
        self.positions = dims.product(self.spatial)
        self.kernel, self.depth, self.size = (self.core.attrs[name] for name in ("kernel", "depth", "size"))
        self.words = self.x.shape[-1] // 4  # of an input block
        self.total = self.x.shape[1] * dims.product(self.kernel) * self.words
        self.lanes = min(lanes(target, I32), _MOST_LANES)
        self.passes, self.outputs = self.starts.shape[:2]
        self.vectors = dims.ceildiv(self.positions, self.lanes, self.nest.ranges)
        self.tiles = dims.ceildiv(self.vectors, MOST_VECTORS, self.nest.ranges)
        self.most = -(-self.vectors // self.tiles) if self._is_known() else MOST_VECTORS  # vectors of a tile
        self.draft.flops = 2 * self.core.output.type.size * self.total * 4
        self.draft.tags |= {"tile": f"1x{self.most}x{self.lanes}", "groups": str(self.size), "passes": str(self.passes)}

    def _is_known(self) -> bool:
        return isinstance(self.vectors, int) and self.vectors > 0

    # Loops --------------------------------------------------------------------------------------------

    def write(self) -> Draft:
        """The whole kernel."""
        nest = self.nest
        per_group = self._per_group()
        groups = -(-self.outputs // per_group)
        with nest.loop(self.images * self.tiles * groups, LoopKind.PARALLEL) as task:
            self.image, tile, group = split_task(nest, task, (self.images, self.tiles, groups))
            self.lowest = group * per_group
            self.count = dims.minimum(per_group, self.outputs - self.lowest, nest.ranges)
            self.packed = nest.alloc(I32, (_ROOM,))
            kept = per_group if self.passes > 1 else self.lanes
            self.sums = nest.alloc(I32, (kept * self.most * self.lanes,))
            if self._is_known():
                self.first = nest.let_index(index_value(dims.floordiv(tile * self.vectors, self.tiles)), Range(0, self.vectors - 1))
                here = dims.floordiv((tile + 1) * self.vectors, self.tiles) - self.first
                heights = [self.most] if self.vectors % self.tiles == 0 else [self.most, self.most - 1]
            else:
                self.first = tile * MOST_VECTORS
                here = dims.minimum(MOST_VECTORS, self.vectors - self.first, nest.ranges)
                heights = [8, 4, 2, 1]
            self._by_height(here, heights)
            if self.epilogue.pad is not None:
                self._borders(tile)
        return self.draft

    def _by_height(self, here: DimLike, heights: list[int]) -> None:
        """Runs a tile of ``here`` vectors as one of the heights, which fall: of the least that holds them."""
        height, *lower = heights
        if not lower:
            self._tile(height)
            return
        with self.nest.branch(compare("gt", here, lower[0])):
            self._tile(height)
        with self.nest.otherwise():
            self._by_height(here, lower)

    def _per_group(self) -> int:
        """Outputs of a task: whole blocks of output channels."""
        tasks = self.images * self.tiles
        wanted = -(-MIN_TASKS // max(tasks, 1)) if isinstance(tasks, int) else 1
        groups = max(min(wanted, self.outputs // FEWEST_OUTPUTS), 1)
        unit = self.block if self.blocks > 1 else self.lanes
        return -(-self.outputs // (groups * unit)) * unit

    def _borders(self, tile: DimLike) -> None:
        """The border around a group's results, written by its first tile."""
        first, count = (dims.floordiv(n, self.block, self.nest.ranges) for n in (self.lowest, self.count))
        with self.nest.branch(compare("eq", tile, 0)), self.nest.loop(count) as offset:
            self.epilogue.store_border(self.image, first + offset)

    def _tile(self, height: int) -> None:
        self.height = height
        for number in range(self.passes):
            self._pack(number)
            last = number == self.passes - 1
            with self.nest.loop(dims.ceildiv(self.count, self.lanes, self.nest.ranges)) as panel:
                self._panel(number, panel, last)

    def _panel(self, number: int, panel: DimLike, last: bool) -> None:
        """L outputs; the last panel may have fewer."""
        nest = self.nest
        first = panel * self.lanes
        even = self.outputs % self.lanes == 0
        count = self.lanes if even else dims.minimum(self.lanes, self.count - first, nest.ranges)
        with nest.loop(count) as output:
            self._output(number, self.lowest + first + output, (output if self.passes == 1 else first + output) * self.most * self.lanes)
        if last:
            self._results(self.lowest + first, count, 0 if self.passes == 1 else first)

    # Copies -------------------------------------------------------------------------------------------

    def _pack(self, number: int) -> None:
        """The codes of a pass at the positions of the tile, position by position in lanes."""
        start = number * self.depth
        count = min(self.depth, self.total - start)
        with self.nest.loop(self.height) as vector:
            places, at = list(self._positions(vector)), vector * self.lanes
            if self.total == self.words:
                rows = [self._source(place, 0, (0,) * len(self.kernel), 2 * start) for place in places]
                self._pack_words(rows, count, at)
            else:
                self._pack_blocks(places, start // self.words, count // self.words, at)

    def _pack_blocks(self, places: list[Shape], start: int, count: int, at: DimLike) -> None:
        with self.nest.loop(count) as part:
            block, *tap = unravel(start + part, (self.x.shape[1], *self.kernel), self.nest.ranges)
            rows = [self._source(place, block, tuple(tap), 0) for place in places]
            self._pack_words(rows, self.words, at + part * (self.words * POSITIONS))

    def _positions(self, vector: DimLike) -> Iterator[Shape]:
        """The coordinates of the positions of a vector, the last one again behind the end."""
        nest = self.nest
        for lane in range(self.lanes):
            flat = (self.first + vector) * self.lanes + lane
            end = nest.let_index(index_value(dims.minimum(flat, self.positions - 1, nest.ranges)), Range(0, self.positions - 1))
            yield (end,) if self._pointwise() else tuple(split_task(nest, end, self.spatial))

    def _pointwise(self) -> bool:
        return all(k == 1 for k in (*self.kernel, *self.core.attrs["strides"]))

    def _source(self, position: Shape, block: DimLike, tap: Shape, word: DimLike) -> DimLike:
        """Where two codes of the input lie, as a number of words of two halves."""
        shape = (*self.x.shape[:-1], 2 * self.words)
        if self._pointwise():
            return ((self.image * shape[1] + block) * dims.product(shape[2:-1]) + position[0]) * shape[-1] + word
        attrs = self.core.attrs
        source = (p * s + k * d for p, s, k, d in zip(position, attrs["strides"], tap, attrs["dilation"], strict=True))
        return ravel((self.image, block, *source, word), shape)

    def _pack_words(self, rows: list[DimLike], count: int, at: DimLike) -> None:
        """``count`` words of codes of L positions, whose words of two halves begin at ``rows``: squares of these are transposed."""
        nest, width = self.nest, self.lanes
        with nest.loop(2 * count // width) as part:
            square = nest.alloc(I32, (width, width), Space.REGISTER)
            with nest.loop(width, LoopKind.VECTOR, width) as lane:
                for position in range(width):
                    nest.store(square, (position, lane), self._halves(rows[position] + part * width + lane))
                for word in range(width // 2):
                    halves = [Load(square, (lane, 2 * word + k), I32) for k in (0, 1)]
                    nest.store(self.packed, at + (part * (width // 2) + word) * POSITIONS + lane, _bytes(*halves))
        done = 2 * count // width * width // 2
        for position in range(width):
            with nest.loop(count - done) as word:
                halves = (self._halves(rows[position] + 2 * (done + word) + k) for k in (0, 1))
                nest.store(self.packed, at + (done + word) * POSITIONS + position, _bytes(*halves))

    def _halves(self, place: DimLike) -> Expr:
        """Two codes of the input as halves of 0..255."""
        low, found = -self.core.attrs["low"], Load(self.draft.words(self.x), (place,), I32)
        return op("add2", found, const(low * _ONES if low >= 0 else low & 0xFFFF | low << 16, I32)) if low else found

    # Sums ---------------------------------------------------------------------------------------------

    def _output(self, number: int, output: DimLike, kept: DimLike) -> None:
        """The sums of an output of one pass, kept from an element of the buffer on."""
        nest, width, height = self.nest, self.lanes, self.height
        entry, groups = self._find_entries(number, output)
        acc = nest.alloc(I32, (height, width), Space.REGISTER)
        with nest.loop(width, LoopKind.VECTOR, width) as lane:
            for vector in range(height):
                before = Load(self.sums, (kept + vector * width + lane,), I32) if number else self._offset(output)
                nest.store(acc, (vector, lane), before)
        with nest.loop(groups) as group:
            self._add(acc, [entry + self.size * group + k for k in range(self.size)])
        with nest.loop(width, LoopKind.VECTOR, width) as lane:
            for vector in range(height):
                nest.store(self.sums, kept + vector * width + lane, Load(acc, (vector, lane), I32))

    def _offset(self, output: DimLike) -> Expr:
        return Load(self.draft.read(self.offsets), (output,), I32)

    def _find_entries(self, number: int, output: DimLike) -> tuple[DimLike, DimLike]:
        """Where the entries of an output begin and how many groups it has; none where the table leaves the entries."""
        nest, table, most = self.nest, self.draft.read(self.starts), self.entries.shape[0]
        at = ravel((number, output, 0), self.starts.shape)
        start, count = (nest.let(cast(Load(table, (at + k,), I32), I64), "n") for k in (0, 1))
        end = op("add", start, op("mul", count, const(self.size, I64)))
        inside = op("and", op("le", end, const(most, I64)), op("ge", op("or", start, count), const(0, I64)))
        valid = nest.let(inside, "v")
        entry, groups = (select(valid, value, const(0, I64)) for value in (start, count))
        return nest.let_index(entry, Range(0, most)), nest.let_index(groups, Range(0, most // self.size))

    def _add(self, acc: str, entries: list[DimLike]) -> None:
        """Adds the products of a group of entries, whose sums fit 16 bits."""
        nest, width, height = self.nest, self.lanes, self.height
        table, words = self.draft.read(self.places), self.draft.words(self.entries)
        places = [nest.let_index(cast(Load(table, (entry,), U16), I64), Range(0, 2**16 - 1)) for entry in entries]
        weights = [nest.let(Load(words, (entry,), I32), "b") for entry in entries]
        with nest.loop(width, LoopKind.VECTOR, width) as lane:
            for first in range(0, height, _TOGETHER):
                vectors = range(first, min(first + _TOGETHER, height))
                totals: dict[int, Expr] = {}
                for place, weight in zip(places, weights, strict=True):
                    codes = {v: nest.let(Load(self.packed, (place + v * width + lane,), I32), "c") for v in vectors}
                    for v in vectors:
                        products = op("pairs4", codes[v], weight)
                        totals[v] = nest.let(op("add2", totals[v], products) if v in totals else products, "h")
                for v in vectors:
                    nest.store(acc, (v, lane), op("dot2", totals[v], const(_ONES, I32), Load(acc, (v, lane), I32)))

    # Results ------------------------------------------------------------------------------------------

    def _results(self, first: DimLike, count: DimLike, kept: DimLike) -> None:
        """The epilogue over ``count`` outputs from ``first`` on, whose sums are kept from the ``kept``-th on."""
        nest, width = self.nest, self.lanes
        block, start = (0, first) if self.blocks == 1 else unravel(first, (self.blocks, self.block), nest.ranges)
        with nest.loop(self.height) as vector:
            position = (self.first + vector) * width
            held = nest.alloc(I32, (width, width), Space.REGISTER)
            with nest.loop(width, LoopKind.VECTOR, width) as lane:
                for output in range(width):
                    index = (kept + output) * self.most * width + vector * width + lane
                    nest.store(held, (output, lane), Load(self.sums, (index,), I32))
            whole = count == width and self.epilogue.small
            full = isinstance(self.positions, int) and self.positions % width == 0
            if not whole:
                self._store_some(held, block, start, count, position)
            elif full:
                self._store_square(held, block, start, position)
            else:
                with nest.branch(compare("le", position + width, self.positions)):
                    self._store_square(held, block, start, position)
                with nest.otherwise():
                    self._store_some(held, block, start, count, position)

    def _store_square(self, held: str, block: DimLike, start: DimLike, position: DimLike) -> None:
        """L outputs at L positions."""
        places = [self._place(position + row) for row in range(self.lanes)]
        with self.nest.loop(self.lanes, LoopKind.VECTOR, self.lanes) as lane:
            for row, place in enumerate(places):
                self.epilogue.store((self.image, block, *place, start + lane), Load(held, (lane, row), I32))

    def _store_some(self, held: str, block: DimLike, start: DimLike, count: DimLike, position: DimLike) -> None:
        """``count`` outputs at those of L positions that there are."""
        nest, width = self.nest, self.lanes
        square = nest.alloc(I32, (width * width,))
        with nest.loop(width, LoopKind.VECTOR, width) as lane:
            for row in range(width):
                nest.store(square, row * width + lane, Load(held, (lane, row), I32))
        with nest.loop(dims.minimum(width, self.positions - position, nest.ranges)) as row:
            place = self._place(position + row)
            with nest.loop(count, LoopKind.VECTOR, width) as lane:
                self.epilogue.store((self.image, block, *place, start + lane), Load(square, (row * width + lane,), I32))

    def _place(self, position: DimLike) -> Shape:
        return unravel(position, self.spatial, self.nest.ranges)


def _bytes(low: Expr, high: Expr) -> Expr:
    """Four bytes from two words of two halves of 0..255."""
    low, high = (op("dot2", half, const(_BYTES, I32), const(0, I32)) for half in (low, high))
    return op("or", low, op("shl", high, const(16, I32)))


@contraction("conv_bytes", "conv", "conv of bytes")
def bytes_conv(node: Node, scope: Scope, target: Target) -> Draft:
    """The kernel of a convolution on bytes, alone or with its epilogue."""
    return BytesConv(node, scope, target).write()
