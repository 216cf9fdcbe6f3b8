"""Convolution by Winograd's F(m x m, r x r): the frame of ``cpu_transformed`` around tiles of m x m outputs.

    V = Bt d B      of every tile and input channel          ``cpu_winograd_input``
    Y = At M A      epilogue; what lies inside the output     ``cpu_winograd_output``

A block of tiles is small enough for V and M to stay in the L2 cache. With a dilation, a tile's inputs and outputs are that far
apart, and neighbouring tiles interleave: each phase of the positions is a convolution of its own. With a stride, a tile's inputs
are neighbours, and the transforms are those of the phases side by side.
"""

from __future__ import annotations

from tcompile.codegen.cpu_contraction import contraction
from tcompile.codegen.cpu_transformed import Shares, TransformedConv, Work
from tcompile.codegen.cpu_transformed_planes import Planes
from tcompile.codegen.cpu_winograd_input import transform_input
from tcompile.codegen.cpu_winograd_output import transform_output
from tcompile.codegen.cpu_winograd_tiles import Tiles
from tcompile.codegen.draft import Draft, Scope
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Node
from tcompile.ir.target import Target
from tcompile.ir.tiles import FMA, Step, winograd_together
from tcompile.ir.winograd import Winograd, form_of

SHARES = {axes: Shares(tasks=8, few=64, many=128, group=group) for axes, group in ((1, 128), (2, 64))}  # by the axes of a tile


class WinogradConv(TransformedConv):
    """Writes the kernel of one conv_winograd."""

    def __init__(self, node: Node, scope: Scope, target: Target) -> None:
        super().__init__(node, scope, target, "winograd")
        self.form = self._form()
        self.dilation = self.core.attrs.get("dilation", (1,) * self.form.axes)
        self.tiles = Tiles(self.nest, self.form.outputs, self.size, self.dilation)
        inputs = len(self.form.offsets) * self.x.shape[1]  # blocks of V: those of each piece of the kernel
        terms, step = self._terms()
        work = Work(self.form.values, self.tiles.count, inputs, self.core.output.shape[1], terms, step)
        channels = inputs * terms, work.outputs * self.block
        together = winograd_together(target, self.form, work.count, *channels, self.per_block, self.lanes, step)
        self.cut(work, together, SHARES[self.form.axes])
        taps = self.core.attrs.get("kernel", self.form.taps) ** self.form.axes
        self.draft.flops = 2 * self.core.output.type.size * taps * self.x.shape[1] * self.block
        name = "x".join([str(self.form.outputs)] * self.form.axes)
        self.draft.tags["tile"] = f"{self.together} x {name}, {self.tile.rows}x{self.tile.vectors}x{self.lanes}"

    def _form(self) -> Winograd:
        form = form_of(self.core.attrs["kernel"], self.x.type.rank - 3, self.core.attrs["tile"], self.core.attrs.get("stride", 1))
        assert form is not None, self.core.attrs
        return form

    def _terms(self) -> tuple[int, Step]:
        """How many terms of the products an input block has, and what each takes."""
        return self.block, FMA

    def fill(self, image: DimLike, first: DimLike, count: DimLike, v: Planes) -> None:
        """V of a block of tiles."""
        transform_input(self, image, first, count, v)

    def results(self, image: DimLike, m: Planes, first: DimLike, count: DimLike, lowest: DimLike, members: DimLike) -> None:
        """The outputs of a block of tiles."""
        transform_output(self, image, m, first, count, lowest, members)


@contraction("conv_winograd", "conv", "winograd")
def winograd(node: Node, scope: Scope, target: Target) -> Draft:
    """The kernel of a Winograd convolution."""
    return WinogradConv(node, scope, target).write()
