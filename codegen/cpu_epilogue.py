"""What follows a contraction inside its kernel: bias, activation, residual, and where each result is stored.

The contraction's value is bound to an accumulator element; the rest of the fused region is inlined around it. Its
place in the output follows the region from the contraction to its root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tcompile.codegen.cpu_tile import Accumulator
from tcompile.codegen.draft import Draft
from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import cast
from tcompile.errors import InvalidModelError
from tcompile.ir.access import result_index
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.graph import Node, Value
from tcompile.ir.loops import Expr, Load, LoopKind

ANCHORS = frozenset({
    "dot_general", "dot_packed", "dot_interleaved", "conv", "conv_blocked", "conv_stem", "conv_interleaved", "conv_winograd",
    "conv_winograd_whole", "conv_strassen", "conv_bytes", "conv_pointwise", "depthwise_blocked",
})  # fmt: skip
UNROLLED_WORK = 8  # elementwise work per element that is worth a copy for every vector of a tile
UNROLLED_REQUANTISING = 20  # the same of sums of integers, whose epilogues are short operations each
_WRITTEN_OUT = 4  # vectors of a row
_FUNCTIONS = frozenset({"exp", "tanh", "erf", "sigmoid", "silu", "log", "sin", "cos", "pow", "log1p", "expm1"})


def anchor(node: Node) -> Node | None:
    """The contraction of a node: the node itself, or the one inside a fused region."""
    if node.op in ANCHORS:
        return node
    if node.op != "fused":
        return None
    return next((inner for inner in node.regions[0].nodes if inner.op in ANCHORS), None)


class Epilogue:
    """The part of a kernel after its anchor; for a bare anchor, a plain store."""

    def __init__(self, draft: Draft, node: Node, anchor: Node) -> None:
        self.draft, self.anchor = draft, anchor
        self.output = node.outputs[0]
        draft.written_once.add(self.output)  # templates make every result of the contraction once
        self.root: Value = node.regions[0].outputs[0] if node.op == "fused" else node.output
        self.region = node.regions[0].nodes if node.op == "fused" else []
        self.chain = list(_dependents(node, anchor))
        self.rows: Value | None = None  # the sums over the last spatial axis, where the kernel is asked for them
        if len(node.outputs) == 2:
            self.rows = node.outputs[1]
            self.chain.pop()
        self.pad: Node | None = None  # the border that the kernel writes around the results
        if self.chain and self.chain[-1].op == "pad":
            self.pad = self.chain.pop()
            self.root = self.pad.inputs[0]
        self.start = anchor.output  # what ``store`` is given
        self.work = sum(node_work(inner) for inner in self.chain)

    @property
    def small(self) -> bool:
        """Whether to repeat it for every vector of a register tile."""
        return self.work <= (UNROLLED_WORK if self.anchor.output.dtype.is_float else UNROLLED_REQUANTISING)

    def leave_bias(self) -> Callable[[DimLike, DimLike], Expr] | None:
        """Where the first step adds a number to each channel: that number by block and lane, for the sums to start from; ``store``
        then takes what includes it. None for other epilogues."""
        first, rank = self.chain[0] if self.chain else None, self.start.rank
        if first is None or first.op != "map" or first.attrs["fn"] != "add" or sum(self.start in inner.inputs for inner in self.chain) > 1:
            return None
        added = [value for value in first.inputs if value is not self.start]
        made = next((inner for inner in self.region if added and inner.output is added[0]), None)
        if made is None or made.op != "broadcast" or made.attrs["axes"] != (1, rank - 1):
            return None
        self.start, self.chain = first.output, self.chain[1:]
        return lambda block, lane: self.draft.element(made.output, (0, block, *[0] * (rank - 3), lane))

    def store(self, index: Shape, value: Expr) -> None:
        """Stores the results that come of one element of the contraction."""
        place, element = self._result(index, value)
        self.draft.store(self.output, place, element)

    def store_and_give(self, index: Shape, value: Expr) -> Expr:
        """``store``, and the result as a variable."""
        place, element = self._result(index, value)
        result = self.draft.nest.let(element, "y")
        self.draft.store(self.output, place, result)
        return result

    def store_sum(self, index: Shape, total: Expr) -> None:
        """Stores the sum of a row of results."""
        assert self.rows is not None
        self.draft.store(self.rows, index, total)

    def _result(self, index: Shape, value: Expr) -> tuple[Shape, Expr]:
        """Where the result of one element of the contraction is stored, and what it is."""
        value = cast(value, self.anchor.output.dtype)
        self.draft.bind(self.start, lambda at, guard: value)
        place = self._place(index)
        element = self.draft.element(self.root, place)
        if self.pad is not None:
            place = tuple(i + low for i, low in zip(place, self.pad.attrs["low"], strict=True))
        return place, element

    def store_border(self, image: DimLike, block: DimLike) -> None:
        """Fills the border of one image and channel block, axis by axis: inside of the axes before, all of those behind."""
        if self.pad is None:
            return
        low, high, nest = self.pad.attrs["low"], self.pad.attrs["high"], self.draft.nest
        fill = self.draft.element(self.pad.inputs[1], ())
        *outer, lanes = self.output.shape
        for axis in range(2, len(outer)):
            inside = [self.root.shape[k] for k in range(2, axis)]
            behind = list(self.output.shape[axis + 1 : -1])
            for start, extent in ((0, low[axis]), (low[axis] + self.root.shape[axis], high[axis])):
                if extent == 0:
                    continue
                with nest.loops((*inside, extent, *behind)) as index, nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
                    place = [i + low[k] for k, i in enumerate(index[: axis - 2], 2)]
                    place += [start + index[axis - 2], *index[axis - 1 :]]
                    self.draft.store(self.output, (image, block, *place, lane), fill)

    def _place(self, index: Shape) -> Shape:
        places: dict[Value, Shape] = {self.start: index}
        for node in self.chain:
            source = next(value for value in node.inputs if value in places)
            moved = result_index(node, places[source], self.draft.nest.ranges)
            if moved is None:
                raise InvalidModelError(
                    f"{node.op} after {self.anchor.op} in one kernel ({', '.join(node.source)}) does not move every element exactly once"
                )
            places[node.output] = moved
        return places[self.root]


Place = Callable[[DimLike, DimLike, DimLike], Shape]


def store_tile(epilogue: Epilogue, acc: Accumulator, place: Place, width: int, columns: DimLike | None = None) -> None:
    """Runs the epilogue over a tile whose columns are parts of ``width`` that lie together in the output.

    ``place(row, part, column of the part)`` is the contraction's index; ``columns`` is how many of the only part are
    valid (None: all).
    """
    if columns is None and epilogue.small:
        _from_registers(epilogue, acc, place, width)
    else:
        _through_stage(epilogue, acc, place, width, width if columns is None else columns)


def _from_registers(epilogue: Epilogue, acc: Accumulator, place: Place, width: int) -> None:
    tile = acc.tile
    with epilogue.draft.nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
        for row in range(tile.rows):
            for vector in range(tile.vectors):
                part, start = divmod(vector * tile.lanes, width)
                epilogue.store(place(row, part, start + lane), acc.at(row, vector, lane))


def _through_stage(epilogue: Epilogue, acc: Accumulator, place: Place, width: int, columns: DimLike) -> None:
    """Writes the tile to the stack and walks it row by row: small code, and any number of columns."""
    nest, tile = epilogue.draft.nest, acc.tile
    stage = nest.alloc(acc.dtype, (tile.rows * tile.columns,))
    with nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
        for row in range(tile.rows):
            for vector in range(tile.vectors):
                nest.store(stage, row * tile.columns + vector * tile.lanes + lane, acc.at(row, vector, lane))
    with nest.loops((tile.columns // width, tile.rows)) as (part, row):

        def emit(column: DimLike) -> None:
            value = Load(stage, (row * tile.columns + part * width + column,), acc.dtype)
            epilogue.store(place(row, part, column), value)

        _over_columns(nest, columns, tile.lanes, emit)


def _over_columns(nest: Nest, columns: DimLike, lanes: int, emit: Callable[[DimLike], None]) -> None:
    """Runs ``emit`` on lanes for all columns; a few vectors are written out, so that the latencies of their functions overlap."""
    if isinstance(columns, int) and columns % lanes == 0 and columns // lanes <= _WRITTEN_OUT:
        with nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
            for start in range(0, columns, lanes):
                emit(start + lane)
        return
    with nest.loop(columns, LoopKind.VECTOR, lanes) as column:
        emit(column)


def _dependents(node: Node, anchor: Node) -> Iterator[Node]:
    """The nodes of the region that use the anchor's value, in order."""
    if node.op != "fused":
        return
    reached = {anchor.output}
    for inner in node.regions[0].nodes:
        if not reached.isdisjoint(inner.inputs):
            reached.update(inner.outputs)
            yield inner


def node_work(node: Node) -> int:
    """The work of an elementwise node for each element: one, or that of a polynomial."""
    if node.op != "map":
        return 1 if node.op == "convert" else 0
    return 12 if node.attrs["fn"] in _FUNCTIONS else 1
