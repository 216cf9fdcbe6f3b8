"""Blocked convolutions whose groups have one vector of output channels each: a tile is one vector wide, by rows of the kernel.

A scalar of input is broadcast once for as many columns as a part of a kernel row has taps.
"""

from __future__ import annotations

from tcompile.codegen.cpu_conv import BlockedConv
from tcompile.codegen.cpu_kernel_rows import KernelRows, RowAt
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr
from tcompile.ir.target import Target
from tcompile.ir.tiles import accumulator_type, lanes


def is_by_rows(core: Node, target: Target) -> bool:
    """Whether a conv_blocked has one vector of output channels in a group, and more than one tap in a row of its kernel."""
    x, w = core.inputs
    dtype = accumulator_type(x.dtype, w.dtype, core.output.dtype)
    whole = not core.attrs.get("windows") and not core.attrs.get("reads")
    return whole and w.shape[0] == core.attrs["groups"] and w.shape[-1] == lanes(target, dtype) and w.shape[-3] > 1 and w.shape[1] > 0


class ConvByRows(KernelRows, BlockedConv):
    """conv_blocked: x [N, I/B, spatial, B], w [O/B, I/g/B, kernel, Bi, Bo], where O/B is the number of groups."""

    def outer_terms(self) -> Shape:
        """The group's input blocks, the kernel's rows, the channels of a block."""
        return (self.w.shape[1], *self.kernel[:-1], self.w.shape[-2])

    def row_weight(self, at: RowAt, turn: int, term: Shape, tap: DimLike, lane: DimLike) -> Expr:
        """The weights of a vector of output channels for one channel of input."""
        block, *rows, channel = term
        return self.weight(at.block, lane, (block, *rows, tap, channel))

    def row_input(self, at: RowAt, turn: int, term: Shape, tap: DimLike, lane: DimLike, position: int) -> Expr:
        """One channel of input."""
        block, *rows, channel = term
        first = 0 if self.groups == 1 else at.block * self.w.shape[1]
        place = self.place_of(at, (*rows, tap), position)
        return self.draft.element(self.x, (at.image, first + block, *place, channel))
