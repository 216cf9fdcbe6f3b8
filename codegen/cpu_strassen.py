"""Pointwise convolution by Strassen's algorithm: the frame of ``cpu_transformed`` around pairs of positions.

V = sums of a pair's inputs of both halves of the input blocks
four results of M, those of the pair and of both halves of the output blocks; epilogue; store
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tcompile.codegen.cpu_contraction import contraction
from tcompile.codegen.cpu_split import split_task
from tcompile.codegen.cpu_transformed import Shares, TransformedConv, Work
from tcompile.codegen.cpu_transformed_planes import Patch, Planes, combination
from tcompile.codegen.cpu_transformed_products import Products
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import compare, const
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr, LoopKind
from tcompile.ir.strassen import INPUTS, OUTPUTS, VALUES
from tcompile.ir.target import Target
from tcompile.ir.tiles import strassen_together

SHARES = Shares(tasks=4, few=128, many=128, group=128)
PASS = 256  # inputs of a half that are summed at once: a pass's sums are read and written again


class StrassenConv(TransformedConv):
    """Writes the kernel of one conv_strassen; blocks of outputs are those of a half."""

    sections = 2

    def __init__(self, node: Node, scope: Scope, target: Target) -> None:
        super().__init__(node, scope, target, "strassen")
        self.positions = dims.product(self.size)
        pairs = dims.ceildiv(self.positions, 2, self.nest.ranges)
        work = Work(VALUES, pairs, self.u.shape[3], self.core.output.shape[1] // 2, self.block)
        self.cut(work, strassen_together(target, pairs, work.inputs * self.block), SHARES)
        self.draft.flops = 2 * self.core.output.type.size * self.x.shape[1] * self.block
        self.draft.tags["tile"] = f"{self.together} pairs, {self.tile.rows}x{self.tile.vectors}x{self.lanes}"

    def products(self, v: Planes, m: Planes) -> Products:
        """What multiplies, in long passes: the weights serve many pairs."""
        products = super().products(v, m)
        products.depth = -(-self.inputs // -(-self.inputs * self.block // PASS))
        return products

    def fill(self, image: DimLike, first: DimLike, count: DimLike, v: Planes) -> None:
        """Seven sums of the inputs of each pair."""
        with self.nest.loops((self.inputs, count)) as (source, pair), self.nest.loop(self.per_block) as part:
            start, places = part * self.lanes, self._places(first + pair)
            self._by_pair(first + pair, lambda both: self._sums(image, source, pair, start, places if both else places[:1], v))

    def _sums(self, image: DimLike, source: DimLike, pair: DimLike, start: DimLike, places: Sequence[Shape], v: Planes) -> None:
        """The sums of the inputs at the one or two places of a pair."""
        nest, strides = self.nest, self.core.attrs["strides"]
        with nest.loop(self.lanes, LoopKind.VECTOR, self.lanes) as lane:
            quarters = []
            for place in places:
                position = tuple(at * step for at, step in zip(place, strides, strict=True))
                for half in range(2):
                    index = (image, half * self.inputs + source, *position, start + lane)
                    quarters.append(nest.let(self.draft.element(self.x, index), "q"))
            quarters += [const(0, self.dtype)] * (4 - len(quarters))
            for value, row in enumerate(INPUTS):
                v.store(value, source, pair, start + lane, combination(row, quarters, self.dtype))

    def results(self, image: DimLike, m: Planes, first: DimLike, count: DimLike, lowest: DimLike, members: DimLike) -> None:
        """Four sums of the products of each pair and output block."""
        nest = self.nest
        with nest.loops((members, count)) as (member, pair), nest.loop(self.per_block) as part:
            start, places = part * self.lanes, self._places(first + pair)
            stage = None if self.epilogue.small else Patch(nest, self.dtype, (4,), self.lanes)

            def store(quarter: DimLike, place: Shape, half: DimLike, lane: DimLike, value: Expr, start: DimLike = start) -> None:
                self.epilogue.store((image, half * self.outputs + lowest + member, *place, start + lane), value)

            def write(both: bool, places: Sequence[Shape] = places, start: DimLike = start) -> None:
                with nest.loop(self.lanes, LoopKind.VECTOR, self.lanes) as lane:
                    values = [nest.let(m.load(k, member, pair, start + lane), "m") for k in range(VALUES)]
                    for quarter in range(4 if both else 2):
                        value = combination(OUTPUTS[quarter], values, self.dtype)
                        if stage is None:
                            store(quarter, places[quarter // 2], quarter % 2, lane, value)
                        else:
                            stage.store(quarter, lane, value)
                if stage is not None:
                    for number, place in enumerate(places[: 1 + both]):
                        with nest.loop(2) as half, nest.loop(self.lanes, LoopKind.VECTOR, self.lanes) as lane:
                            store(2 * number + half, place, half, lane, stage.load(2 * number + half, lane))

            self._by_pair(first + pair, write)

    def _places(self, pair: DimLike) -> tuple[Shape, Shape]:
        """The positions of a pair's results: neighbours in a row where rows have an even number."""
        *outer, width = self.size
        if isinstance(width, int) and width % 2 == 0 and width:
            *row, column = split_task(self.nest, pair, (*outer, width // 2))
            return (*row, 2 * column), (*row, 2 * column + 1)
        first, second = (tuple(split_task(self.nest, 2 * pair + k, self.size)) for k in range(2))
        return first, second

    def _by_pair(self, pair: DimLike, emit: Callable[[bool], None]) -> None:
        """Runs ``emit(whether the pair has two positions)``."""
        if dims.mod(self.positions, 2, self.nest.ranges) == 0:
            emit(True)
            return
        with self.nest.branch(compare("lt", 2 * pair + 1, self.positions)):
            emit(True)
        with self.nest.otherwise():
            emit(False)


@contraction("conv_strassen", "conv", "strassen")
def strassen(node: Node, scope: Scope, target: Target) -> Draft:
    """The kernel of a convolution by Strassen's algorithm."""
    return StrassenConv(node, scope, target).write()
