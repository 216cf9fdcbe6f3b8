"""Pointwise convolution of plain images: conv_pointwise, a matrix product for each image and group.

    parallel for (image and group, chunk of output channels, span of panels of positions):
        V[panel][input channel][position] = the image, a few cache lines of each channel
        for each tile of output channels, for each panel:  acc = weights x V;  epilogue; store

Lanes are positions, so that none changes its place: the copy is what keeps panels in the caches, whatever the channels' distance.
Where the last positions of a row of panels fill no panel, its other lanes are zero and stay unstored.
"""

from __future__ import annotations

from collections.abc import Callable

from tcompile.codegen.access import unravel
from tcompile.codegen.cpu_contraction import contraction
from tcompile.codegen.cpu_gemm import LINE_BYTES, Gemm, Problem, Right
from tcompile.codegen.cpu_split import split_task
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import cast, compare
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr, Load, LoopKind
from tcompile.ir.pointwise import panels_at_once, pointwise_tile
from tcompile.ir.target import Target
from tcompile.ir.tiles import Tile, accumulator_type

MIN_TASKS = 8
LEAST_ROWS = 64  # output channels of a task that outweigh the copy another task makes too
FETCHED_AHEAD = 8  # channels


class PointwiseConv(Gemm):
    """Rows are output channels of a group, columns the positions of an image, terms input channels of a group."""

    def _problem(self) -> Problem:
        x, w = self.core.inputs
        self.groups, self.tiles, terms, self.height = w.shape
        dtype = accumulator_type(x.dtype, w.dtype, self.core.attrs["dtype"])
        outputs = self.core.attrs["channels"] // self.groups
        return Problem(outputs, dims.product(x.shape[2:]), terms, dtype, x.shape[0] * self.groups)

    def _tile(self) -> Tile:
        problem = self.problem
        best = pointwise_tile(self.target, problem.rows, problem.columns, problem.terms, problem.dtype)
        tile = Tile(self.height, best.vectors, best.lanes)
        self.span = panels_at_once(self.target, tile, problem.terms, problem.dtype.bytes)
        return tile

    def write(self) -> Draft:
        """The whole kernel."""
        nest, ranges = self.nest, self.nest.ranges
        tiles, per_chunk, chunks = self._chunks()
        with nest.loop(self.problem.batch * chunks * self._spans(), LoopKind.PARALLEL) as task:
            batch, chunk, span = split_task(nest, task, (self.problem.batch, chunks, self._spans()))
            first, lowest = span * self.span, chunk * per_chunk
            count = dims.minimum(self.span, self.panels - first, ranges)
            copied = self._copy(batch, first, count)

            def here(rows: int, row: DimLike, number: DimLike = 0) -> None:
                with nest.loop(count) as panel:
                    self._tile_of_rows(batch, first + panel, self._panel_of(copied, panel), rows, row, number)

            with nest.loop(dims.minimum(per_chunk, tiles - lowest, ranges)) as tile:
                here(self.tile.rows, (lowest + tile) * self.tile.rows, tile)
            self._rest(tiles, chunk, chunks, here)
        return self.draft

    def _spans(self) -> DimLike:
        return dims.ceildiv(self.panels, self.span, self.nest.ranges)

    def _chunks(self) -> tuple[DimLike, DimLike, DimLike]:
        """One chunk where the images have tasks enough."""
        tiles, tasks = self.problem.rows // self.tile.rows, self.problem.batch * self._spans()
        wanted = -(-MIN_TASKS // max(tasks, 1)) if isinstance(tasks, int) else 1
        chunks = max(min(wanted, self.problem.rows // LEAST_ROWS, tiles), 1)
        per_chunk = max(-(-tiles // chunks), 1)
        return tiles, per_chunk, max(-(-tiles // per_chunk), 1)

    def left(self, batch: DimLike, row: DimLike, term: DimLike) -> Expr:
        w, ranges = self.core.inputs[1], self.nest.ranges
        tile, place = dims.floordiv(row, self.height, ranges), dims.mod(row, self.height, ranges)
        number = dims.mod(batch, self.groups, ranges) * self.tiles + tile
        return Load(self.draft.read(w), ((number * self.problem.terms + term) * self.height + place,), w.dtype)

    def _panel_of(self, copied: str, panel: DimLike) -> Right:
        first, width, dtype = panel * self.problem.terms, self.tile.columns, self.problem.dtype
        return lambda term, vector, lane: Load(copied, ((first + term) * width + vector * self.tile.lanes + lane,), dtype)

    def _copy(self, batch: DimLike, first: DimLike, count: DimLike) -> str:
        """``count`` panels from the ``first`` in scratch, of the type of the sums."""
        nest, width, terms, x = self.nest, self.tile.columns, self.problem.terms, self.core.inputs[0]
        copied = nest.alloc(self.problem.dtype, (self.span * terms * width,))

        def copy(panel: DimLike, term: DimLike, columns: DimLike | None = None) -> None:
            with nest.loop(width, LoopKind.VECTOR, self.tile.lanes) as column:
                inside = None if columns is None else compare("lt", column, columns)
                element = self.draft.inliner.flat(x, self._position(batch, first + panel, term) + column, inside)
                nest.store(copied, (panel * terms + term) * width + column, cast(element, self.problem.dtype))

        full = dims.minimum(count, dims.floordiv(self.problem.columns, width, nest.ranges) - first, nest.ranges)
        if full == self.span:
            self._copy_span(batch, first, copy)
            return copied
        with nest.branch(compare("eq", full, self.span)):
            self._copy_span(batch, first, copy)
        with nest.otherwise():
            with nest.loop(full) as panel, nest.loop(terms) as term:
                copy(panel, term)
            rest = dims.mod(self.problem.columns, width, nest.ranges)
            if rest != 0:
                with nest.branch(compare("lt", full, count)), nest.loop(terms) as term:
                    copy(full, term, rest)
        return copied

    def _copy_span(self, batch: DimLike, first: DimLike, copy: Callable[[DimLike, DimLike], None]) -> None:
        """All panels of a span at once: they are neighbours in a channel. The lines of channels ahead are asked for."""
        x, line = self.core.inputs[0], LINE_BYTES // self.core.inputs[0].dtype.bytes
        with self.nest.loop(self.problem.terms) as term:
            for start in range(0, self.span * self.tile.columns, line):
                self.nest.prefetch(self.draft.read(x), self._position(batch, first, term + FETCHED_AHEAD) + start, near=True)
            with self.nest.loop(self.span, LoopKind.UNROLLED) as panel:
                copy(panel, term)

    def _position(self, batch: DimLike, panel: DimLike, term: DimLike) -> DimLike:
        """Where a panel's positions begin in a channel."""
        return (batch * self.problem.terms + term) * self.problem.columns + panel * self.tile.columns

    def place(self, batch: DimLike, row: DimLike, column: DimLike) -> Shape:
        ranges, spatial = self.nest.ranges, self.core.output.shape[2:]
        image, group = dims.floordiv(batch, self.groups, ranges), dims.mod(batch, self.groups, ranges)
        return (image, group * self.problem.rows + row, *unravel(column, spatial, ranges))


@contraction("conv_pointwise", "conv", "pointwise")
def pointwise(node: Node, scope: Scope, target: Target) -> Draft:
    """The kernel of a pointwise convolution of plain images, alone or with its epilogue."""
    return PointwiseConv(node, scope, target, "pointwise").write()
