"""3x3 convolution by Winograd's F(4x4, 3x3): transform, 36 small GEMMs and transform back per block of tiles.

    parallel for (image, block of tiles, share of output blocks):
        V[36][input block][tile][16] = Bt d B                    of every tile and input channel
        for each group of output blocks:
            for each of 36 values:  M[value][output block][tile][16] = V[value] * U[value]       the micro-kernel
            Y = At M A; epilogue; store                          what lies inside the output

A block is small enough for V and M to stay in the L2 cache. Both transforms go axis by axis, so that six values are in
registers at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tcompile.codegen.access import ravel
from tcompile.codegen.cpu_epilogue import Epilogue, anchor
from tcompile.codegen.cpu_split import split_task
from tcompile.codegen.cpu_tile import micro_kernel
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import compare, const, index_value
from tcompile.codegen.templates import Built, template
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr, Load, LoopKind, Op
from tcompile.ir.target import Target
from tcompile.ir.tiles import Tile, lanes, winograd_block
from tcompile.ir.winograd import INPUT, OUTPUT, POINTS

GROUP = 4  # output blocks of one pass over V
MIN_TASKS = 4  # below that, tasks also share the output blocks and repeat the input transform
VALUES = INPUT * INPUT


class WinogradConv:
    """Writes the kernel of one conv_winograd."""

    def __init__(self, node: Node, scope: Scope, target: Target) -> None:
        found = anchor(node)
        assert found is not None, node.op
        self.core = found
        self.draft = Draft("winograd", node, scope)
        self.nest = self.draft.nest
        self.epilogue = Epilogue(self.draft, node, self.core)
        self.x, self.u = self.core.inputs
        self.images, self.outputs, self.height, self.width, self.block = self.core.output.shape
        self.inputs = self.x.shape[1]
        self.dtype = self.core.attrs["dtype"].compute
        self.lanes = min(lanes(target, self.dtype), self.block)
        self.down, self.across = (dims.ceildiv(extent, OUTPUT, self.nest.ranges) for extent in (self.height, self.width))
        self.tiles = self.down * self.across
        self.tile, self.together = winograd_block(target, self.tiles, self.inputs * self.block, self.block // self.lanes, self.lanes)
        self.blocks = dims.ceildiv(self.tiles, self.together, self.nest.ranges)
        self.group = min(GROUP, self.outputs)
        self.shares = self._shares()
        self.draft.flops = 2 * self.core.output.type.size * 9 * self.inputs * self.block
        self.draft.tags["tile"] = f"{self.together} x 4x4, {self.tile.rows}x{self.tile.vectors}x{self.lanes}"

    def _shares(self) -> int:
        """Into how many tasks the output blocks of one block of tiles go."""
        if not isinstance(self.blocks, int) or self.blocks >= MIN_TASKS:
            return 1
        groups = -(-self.outputs // self.group)
        return max(share for share in range(1, min(-(-MIN_TASKS // max(self.blocks, 1)), 2) + 1) if groups % share == 0)

    def write(self) -> Draft:
        """The whole kernel."""
        nest = self.nest
        with nest.loop(self.images * self.blocks * self.shares, LoopKind.PARALLEL) as task:
            image, block, share = split_task(nest, task, (self.images, self.blocks, self.shares))
            first = block * self.together
            count = dims.minimum(self.together, self.tiles - first, nest.ranges)
            v = nest.alloc(self.dtype, (VALUES * self.inputs * self.together * self.block,))
            m = nest.alloc(self.dtype, (VALUES * self.group * self.together * self.block,))
            self._transform_input(image, first, count, v)
            per_share = -(-self.outputs // self.shares)
            start = share * per_share
            groups = dims.ceildiv(dims.minimum(per_share, self.outputs - start, nest.ranges), self.group, nest.ranges)
            with nest.loop(groups) as group:
                lowest = start + group * self.group
                members = dims.minimum(self.group, self.outputs - lowest, nest.ranges)
                self._multiply(v, m, lowest, members)
                self._transform_output(image, m, first, count, lowest, members)
            if self.epilogue.pad is not None:
                self._border(image, block, start, dims.minimum(per_share, self.outputs - start, nest.ranges))
        return self.draft

    def _border(self, image: DimLike, block: DimLike, start: DimLike, count: DimLike) -> None:
        with self.nest.branch(compare("eq", block, 0)), self.nest.loop(count) as part:
            self.epilogue.store_border(image, start + part)

    # Transforms ---------------------------------------------------------------------------------------

    def _transform_input(self, image: DimLike, first: DimLike, count: DimLike, v: str) -> None:
        nest = self.nest
        with nest.loop(self.inputs) as block, nest.loop(count) as tile:
            down, across = self._position(first + tile)
            shape = (VALUES, self.inputs, self.together, self.block)

            def source(row: DimLike, column: DimLike, lane: DimLike) -> Expr:
                return self.draft.element(self.x, (image, block, down * OUTPUT + row, across * OUTPUT + column, lane))

            def store(row: DimLike, column: DimLike, lane: DimLike, value: Expr) -> None:
                nest.store(v, ravel((row * INPUT + column, block, tile, lane), shape), value)

            self._both_axes(INPUT, _input_values, source, store)

    def _transform_output(self, image: DimLike, m: str, first: DimLike, count: DimLike, lowest: DimLike, members: DimLike) -> None:
        nest = self.nest
        shape = (VALUES, self.group, self.together, self.block)
        with nest.loop(members) as member, nest.loop(count) as tile:
            down, across = self._position(first + tile)
            y = nest.alloc(self.dtype, (OUTPUT * OUTPUT * self.block,))

            def source(row: DimLike, column: DimLike, lane: DimLike) -> Expr:
                return Load(m, (ravel((row * INPUT + column, member, tile, lane), shape),), self.dtype)

            def store(row: DimLike, column: DimLike, lane: DimLike, value: Expr) -> None:
                nest.store(y, ravel((row, column, lane), (OUTPUT, OUTPUT, self.block)), value)

            self._both_axes(OUTPUT, _output_values, source, store)
            inside = [dims.minimum(OUTPUT, extent - at * OUTPUT, nest.ranges) for extent, at in ((self.height, down), (self.width, across))]
            with nest.loops(tuple(inside)) as (row, column), nest.loop(self.block, LoopKind.VECTOR, self.lanes) as lane:
                value = Load(y, (ravel((row, column, lane), (OUTPUT, OUTPUT, self.block)),), self.dtype)
                self.epilogue.store((image, lowest + member, down * OUTPUT + row, across * OUTPUT + column, lane), value)

    def _position(self, tile: DimLike) -> tuple[DimLike, DimLike]:
        """The row and column of a tile, as variables."""
        nest = self.nest
        row = nest.let_index(index_value(dims.floordiv(tile, self.across, nest.ranges)), Range(0, self.down - 1))
        return row, nest.let_index(index_value(tile - row * self.across), Range(0, self.across - 1))

    def _both_axes(self, results: int, formula: Callable, source: Callable, store: Callable) -> None:
        """Applies a formula of six values to the columns, then to the rows of a 6x6 tile, one vector of channels at a time."""
        nest, width = self.nest, self.lanes
        between = nest.alloc(self.dtype, (results * INPUT * width,))
        with nest.loop(self.block // width) as part:
            with nest.loop(INPUT) as column, nest.loop(width, LoopKind.VECTOR, width) as lane:
                loaded = [nest.let(source(row, column, part * width + lane), "d") for row in range(INPUT)]
                for row, value in enumerate(formula(nest, loaded, self.dtype)):
                    nest.store(between, ravel((row, column, lane), (results, INPUT, width)), value)
            with nest.loop(results) as row, nest.loop(width, LoopKind.VECTOR, width) as lane:
                at = [ravel((row, column, lane), (results, INPUT, width)) for column in range(INPUT)]
                loaded = [nest.let(Load(between, (place,), self.dtype), "d") for place in at]
                for column, value in enumerate(formula(nest, loaded, self.dtype)):
                    store(row, column, part * width + lane, value)

    # Products -----------------------------------------------------------------------------------------

    def _multiply(self, v: str, m: str, lowest: DimLike, members: DimLike) -> None:
        nest = self.nest
        with nest.loop(VALUES) as value, nest.loop(members) as member:
            full, rest = divmod(self.together, self.tile.rows)
            with nest.loop(full) as step:
                self._product(v, m, value, lowest, member, self.tile.rows, step * self.tile.rows)
            if rest:
                self._product(v, m, value, lowest, member, rest, full * self.tile.rows)

    def _product(self, v: str, m: str, value: DimLike, lowest: DimLike, member: DimLike, rows: int, first: DimLike) -> None:
        nest, u = self.nest, self.u
        weights = self.draft.read(u)
        v_shape = (VALUES, self.inputs, self.together, self.block)
        m_shape = (VALUES, self.group, self.together, self.block)

        def right(vector: int, lane: DimLike, term: Shape) -> Expr:
            return Load(weights, (ravel((value, lowest + member, *term, vector * self.lanes + lane), u.shape),), u.dtype)

        acc = micro_kernel(
            nest,
            Tile(rows, self.tile.vectors, self.lanes),
            self.dtype,
            terms=self._terms,
            a=lambda row, term: Load(v, (ravel((value, term[0], first + row, term[1]), v_shape),), self.dtype),
            b=right,
        )
        with nest.loop(self.lanes, LoopKind.VECTOR, self.lanes) as lane:
            for row in range(rows):
                for vector in range(self.tile.vectors):
                    place = ravel((value, member, first + row, vector * self.lanes + lane), m_shape)
                    nest.store(m, place, acc.at(row, vector, lane))

    @contextmanager
    def _terms(self) -> Iterator[Shape]:
        with self.nest.loops((self.inputs, self.block)) as term:
            yield term


def _input_values(nest, d: Sequence[Expr], dtype: DType) -> list[Expr]:
    """Bt d, the rows of points a and -a from their even and odd parts."""
    a, b = (float(point) for point in (POINTS[1], POINTS[3]))
    both, product = a * a + b * b, a * a * b * b
    first = _fma(product, d[0], _fma(-both, d[2], d[4], dtype), dtype)
    last = _fma(product, d[1], _fma(-both, d[3], d[5], dtype), dtype)
    pairs = []
    for mine, other in ((a, b), (b, a)):
        even = nest.let(_fma(-other * other, d[2], d[4], dtype), "e")
        odd = nest.let(_fma(-other * other, d[1], d[3], dtype), "o")
        pairs += [_fma(mine, odd, even, dtype), _fma(-mine, odd, even, dtype)]
    return [first, *pairs, last]


def _output_values(nest, m: Sequence[Expr], dtype: DType) -> list[Expr]:
    """At m, from the sums and differences of the pairs of points."""
    a, b = (float(point) for point in (POINTS[1], POINTS[3]))
    sums = [nest.let(Op("add", (m[k], m[k + 1]), dtype), "s") for k in (1, 3)]
    gaps = [nest.let(Op("sub", (m[k], m[k + 1]), dtype), "t") for k in (1, 3)]
    return [
        Op("add", (m[0], Op("add", (sums[0], sums[1]), dtype)), dtype),
        _fma(b, gaps[1], _scaled(a, gaps[0], dtype), dtype),
        _fma(b * b, sums[1], _scaled(a * a, sums[0], dtype), dtype),
        _fma(b**3, gaps[1], _fma(a**3, gaps[0], m[5], dtype), dtype),
    ]


def _fma(factor: float, x: Expr, y: Expr, dtype: DType) -> Expr:
    return Op("fma", (const(factor, dtype), x, y), dtype)


def _scaled(factor: float, x: Expr, dtype: DType) -> Expr:
    return Op("mul", (const(factor, dtype), x), dtype)


@template("conv_winograd")
@template("fused.conv")
def winograd(node: Node, scope: Scope, target: Target) -> list[Built] | None:
    """The kernel of a Winograd convolution, alone or with its epilogue; None for other convolutions."""
    core = anchor(node)
    if core is None or core.op != "conv_winograd":
        return None
    draft = WinogradConv(node, scope, target).write()
    draft.tags["template"] = "winograd"
    return [Built(*draft.finish())]
