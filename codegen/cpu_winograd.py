"""Convolution by Winograd's F(m x m, r x r): transform, n * n small GEMMs and transform back per block of tiles.

    parallel for (image, block of tiles, share of output blocks):
        V[n * n][input block][tile][B] = Bt d B                  of every tile and input channel (``cpu_winograd_input``)
        for each group of output blocks:
            for each value:  M[value][output block][tile][B] = V[value] * U[value]       ``cpu_winograd_products``
            Y = At M A; epilogue; store                          what lies inside the output (``cpu_winograd_output``)

A block of tiles is small enough for V and M to stay in the L2 cache. With a dilation, a tile's inputs and outputs are that far
apart, and neighbouring tiles interleave: each phase of the positions is a convolution of its own. With a stride, a tile's inputs
are neighbours, and the transforms are those of the phases side by side.
"""

from __future__ import annotations

from tcompile.codegen.cpu_epilogue import Epilogue, anchor
from tcompile.codegen.cpu_split import split_task
from tcompile.codegen.cpu_winograd_input import transform_input
from tcompile.codegen.cpu_winograd_output import transform_output
from tcompile.codegen.cpu_winograd_products import Products
from tcompile.codegen.cpu_winograd_tiles import Planes, Tiles
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import compare
from tcompile.codegen.templates import Built, template
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Node
from tcompile.ir.loops import LoopKind
from tcompile.ir.target import Target
from tcompile.ir.tiles import FMA, Step, lanes, winograd_tile, winograd_together
from tcompile.ir.winograd import Winograd, form_of

GROUP_CHANNELS = {1: 128, 2: 64}  # outputs of one pass over V, by the axes of a tile
MIN_TASKS = 8  # below that, tasks also share the output blocks and repeat the input transform
REPEAT_CHANNELS = 64, 128  # outputs of a task that outweigh its input transform: of one of two tasks, of one of more


class WinogradConv:
    """Writes the kernel of one conv_winograd."""

    def __init__(
        self, node: Node, scope: Scope, target: Target, form: Winograd | None = None, terms: int | None = None, step: Step = FMA
    ) -> None:
        """``form`` and ``terms`` (of a block of inputs) by default are the op's, ``step`` is that of its products."""
        found = anchor(node)
        assert found is not None, node.op
        self.core, self.target = found, target
        self.draft = Draft("winograd", node, scope)
        self.nest = self.draft.nest
        self.epilogue = Epilogue(self.draft, node, self.core)
        self.x, self.u = self.core.inputs
        self.form = form or self._form()
        self.dilation = self.core.attrs.get("dilation", (1,) * self.form.axes)
        self.images, self.outputs, *self.size, self.block = self.core.output.shape
        self.inputs = len(self.form.offsets) * self.x.shape[1]  # blocks of V: those of each piece of the kernel
        self.dtype = self.core.output.dtype.compute
        self.lanes = min(lanes(target, self.dtype), self.block)
        self.per_block = self.block // self.lanes
        self.tiles = Tiles(self.nest, self.form.outputs, tuple(self.size), self.dilation)
        inputs = self.inputs * (terms or self.block)
        vectors = self.per_block, self.lanes, step
        together = winograd_together(target, self.form, self.tiles.count, inputs, self.outputs * self.block, *vectors)
        self.share = self._share(together)
        self.shares = self.outputs // self.share
        self.tile, self.together = winograd_tile(target, self.tiles.count, together, inputs, self.share * self.block, *vectors)
        self.wide = self.tile.vectors // self.per_block
        self.blocks = dims.ceildiv(self.tiles.count, self.together, self.nest.ranges)
        group = max(GROUP_CHANNELS[self.form.axes] // (self.wide * self.block), 1) * self.wide
        self.group = min(group, self.share)
        taps = self.core.attrs.get("kernel", self.form.taps) ** self.form.axes
        self.draft.flops = 2 * self.core.output.type.size * taps * self.x.shape[1] * self.block
        name = "x".join([str(self.form.outputs)] * self.form.axes)
        self.draft.tags["tile"] = f"{self.together} x {name}, {self.tile.rows}x{self.tile.vectors}x{self.lanes}"

    def _form(self) -> Winograd:
        form = form_of(self.core.attrs["kernel"], self.x.type.rank - 3, self.core.attrs["tile"], self.core.attrs.get("stride", 1))
        assert form is not None, self.core.attrs
        return form

    def _share(self, together: int) -> int:
        """Output blocks of one task: all, or where there are few blocks of tiles a part that still outweighs the input transform."""
        images = self.images if isinstance(self.images, int) else 1  # a single image has to do for all threads, more may repeat a little
        tasks = dims.ceildiv(self.tiles.count, together) * images
        wanted = -(-MIN_TASKS // max(tasks, 1)) if isinstance(tasks, int) else 1
        few, many = (channels // self.block for channels in REPEAT_CHANNELS)
        least = max(few, min(many, self.outputs // 2), -(-self.outputs // wanted))
        return next((share for share in range(least, self.outputs) if self.outputs % share == 0), self.outputs)

    def write(self) -> Draft:
        """The whole kernel."""
        nest = self.nest
        with nest.loop(self.images * self.blocks * self.shares, LoopKind.PARALLEL) as task:
            image, block, share = split_task(nest, task, (self.images, self.blocks, self.shares))
            first = block * self.together
            count = dims.minimum(self.together, self.tiles.count - first, nest.ranges)
            v, m = self.planes()
            self.fill(image, first, count, v)
            with nest.loop(-(-self.share // self.group)) as group:
                done = group * self.group
                lowest, members = share * self.share + done, dims.minimum(self.group, self.share - done, nest.ranges)
                self.multiply(v, m, lowest, members)
                transform_output(self, image, m, first, count, lowest, members)
            if self.epilogue.pad is not None:
                self._border(image, block, share * self.share, self.share)
        return self.draft

    def planes(self) -> tuple[Planes, Planes]:
        """The buffers V and M."""
        v = Planes(self.nest, self.dtype, self.form, self.inputs, self.together, self.block)
        return v, Planes(self.nest, self.dtype, self.form, self.group, self.together, self.block)

    def fill(self, image: DimLike, first: DimLike, count: DimLike, v: Planes) -> None:
        """V of a block of tiles."""
        transform_input(self, image, first, count, v)

    def _border(self, image: DimLike, block: DimLike, start: DimLike, count: DimLike) -> None:
        with self.nest.branch(compare("eq", block, 0)), self.nest.loop(count) as part:
            self.epilogue.store_border(image, start + part)

    def multiply(self, v: Planes, m: Planes, lowest: DimLike, members: DimLike) -> None:
        """M of a group of output blocks."""
        Products(self, v, m).write(lowest, members)


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
