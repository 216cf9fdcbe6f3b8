"""Pointwise convolution by Strassen's algorithm: sums of inputs, seven products, sums of those, per block of pairs of positions.

parallel for (image, block of pairs, share of output blocks):
    V[7][half of the input blocks][pair][B] = sums of two of the pair's inputs
    for each group of output blocks:
        for each value:  M[value][output block][pair][B] = V[value] * U[value]       ``cpu_winograd_products``
        four results of M, those of the pair and of both halves of the output blocks; epilogue; store
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tcompile.codegen.cpu_epilogue import Epilogue, anchor
from tcompile.codegen.cpu_split import split_task
from tcompile.codegen.cpu_winograd_products import Products
from tcompile.codegen.cpu_winograd_tiles import Patch, Planes, combination
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import compare, const
from tcompile.codegen.templates import Built, template
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr, LoopKind
from tcompile.ir.strassen import INPUTS, OUTPUTS, VALUES
from tcompile.ir.target import Target
from tcompile.ir.tiles import lanes, strassen_together, winograd_tile

GROUP_CHANNELS = 64  # of each half of the outputs, of one pass over V
MIN_TASKS = 4
SINGLE_PASS = 256  # inputs of a half that are summed at once: a pass's sums are read and written again
LEAST_SHARE = 128  # outputs of each half that outweigh the sums of inputs that another task makes too


@dataclass(frozen=True)
class _Form:
    """What planes ask of an algorithm."""

    values: int = VALUES


class StrassenConv:
    """Writes the kernel of one conv_strassen."""

    def __init__(self, node: Node, scope: Scope, target: Target) -> None:
        found = anchor(node)
        assert found is not None, node.op
        self.core, self.target, self.form = found, target, _Form()
        self.draft = Draft("strassen", node, scope)
        self.nest = self.draft.nest
        self.epilogue = Epilogue(self.draft, node, self.core)
        self.x, self.u = self.core.inputs
        self.images, outputs, *spatial, self.block = self.core.output.shape
        self.spatial: Shape = tuple(spatial)
        self.inputs, self.outputs = self.u.shape[3], outputs // 2  # blocks of a half
        self.dtype = self.core.output.dtype.compute
        self.lanes = min(lanes(target, self.dtype), self.block)
        self.per_block = self.block // self.lanes
        self.positions = dims.product(self.spatial)
        self.pairs = dims.ceildiv(self.positions, 2, self.nest.ranges)
        self._cut()
        self.draft.flops = 2 * self.core.output.type.size * self.x.shape[1] * self.block
        self.draft.tags["tile"] = f"{self.together} pairs, {self.tile.rows}x{self.tile.vectors}x{self.lanes}"

    def _cut(self) -> None:
        """The sizes of tasks, groups and register tiles."""
        inputs = self.inputs * self.block
        vectors = self.per_block, self.lanes
        together = strassen_together(self.target, self.pairs, inputs)
        self.share = self._share(together)
        self.shares = self.outputs // self.share
        self.tile, self.together = winograd_tile(self.target, self.pairs, together, inputs, self.share * self.block, *vectors)
        self.wide = self.tile.vectors // self.per_block
        self.blocks = dims.ceildiv(self.pairs, self.together, self.nest.ranges)
        self.group = min(max(GROUP_CHANNELS // (self.wide * self.block), 1) * self.wide, self.share)

    def _share(self, together: int) -> int:
        """Output blocks of a half that one task makes: all, or where there are few blocks of pairs a part."""
        images = self.images if isinstance(self.images, int) else 1
        tasks = dims.ceildiv(self.pairs, together) * images
        wanted = -(-MIN_TASKS // max(tasks, 1)) if isinstance(tasks, int) else 1
        least = max(LEAST_SHARE // self.block, -(-self.outputs // wanted))
        return next((share for share in range(least, self.outputs) if self.outputs % share == 0), self.outputs)

    def write(self) -> Draft:
        """The whole kernel."""
        nest = self.nest
        with nest.loop(self.images * self.blocks * self.shares, LoopKind.PARALLEL) as task:
            image, block, share = split_task(nest, task, (self.images, self.blocks, self.shares))
            first = block * self.together
            count = dims.minimum(self.together, self.pairs - first, nest.ranges)
            v = Planes(nest, self.dtype, self.form, self.inputs, self.together, self.block)
            m = Planes(nest, self.dtype, self.form, self.group, self.together, self.block)
            self._fill(image, first, count, v)
            with nest.loop(-(-self.share // self.group)) as group:
                done = group * self.group
                lowest, members = share * self.share + done, dims.minimum(self.group, self.share - done, nest.ranges)
                self._multiply(v, m, lowest, members)
                self._results(image, first, count, m, lowest, members)
            if self.epilogue.pad is not None:
                self._border(image, block, share)
        return self.draft

    def _multiply(self, v: Planes, m: Planes, lowest: DimLike, members: DimLike) -> None:
        """M of a group of output blocks."""
        products = Products(self, v, m)
        if self.inputs * self.block <= SINGLE_PASS:
            products.depth = self.inputs
        products.write(lowest, members)

    def _border(self, image: DimLike, block: DimLike, share: DimLike) -> None:
        """The border around a share's results, written with its first block."""
        with self.nest.branch(compare("eq", block, 0)), self.nest.loops((2, self.share)) as (half, part):
            self.epilogue.store_border(image, half * self.outputs + share * self.share + part)

    def _fill(self, image: DimLike, first: DimLike, count: DimLike, v: Planes) -> None:
        """V of ``count`` pairs from the ``first``."""
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

    def _results(self, image: DimLike, first: DimLike, count: DimLike, m: Planes, lowest: DimLike, members: DimLike) -> None:
        """Results of ``members`` output blocks of each half from the ``lowest``, for ``count`` pairs from the ``first``."""
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
        *outer, width = self.spatial
        if isinstance(width, int) and width % 2 == 0 and width:
            *row, column = split_task(self.nest, pair, (*outer, width // 2))
            return (*row, 2 * column), (*row, 2 * column + 1)
        first, second = (tuple(split_task(self.nest, 2 * pair + k, self.spatial)) for k in range(2))
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


@template("conv_strassen")
@template("fused.conv")
def strassen(node: Node, scope: Scope, target: Target) -> list[Built] | None:
    """The kernel of a convolution by Strassen's algorithm, alone or with its epilogue; None for others."""
    core = anchor(node)
    if core is None or core.op != "conv_strassen":
        return None
    draft = StrassenConv(node, scope, target).write()
    draft.tags["template"] = "strassen"
    return [Built(*draft.finish())]
