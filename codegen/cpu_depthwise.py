"""Depthwise convolution on blocked activations: every channel, or every narrow group of them, has its own kernel.

    w [C/B, kernel, B]        acc += x[lanes] * w[lanes]
    w [C/B, G, kernel, B]     for j in G:  acc += x[lanes, turned by j inside of their groups] * w[j][lanes]

A vector that is turned inside of groups is one shuffle away from the one in memory.
"""

from __future__ import annotations

from tcompile.codegen.access import ravel
from tcompile.codegen.cpu_contraction import contraction
from tcompile.codegen.cpu_kernel_rows import KernelRows, RowAt
from tcompile.codegen.draft import Draft, Scope
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr, Load
from tcompile.ir.target import Target


class DepthwiseConv(KernelRows):
    """depthwise_blocked: x [N, C/B, spatial, B], w [C/B, kernel, B] or [C/B, G, kernel, B]. A tile is one vector of channels wide."""

    def _geometry(self) -> None:
        self.kernel = self.w.shape[-1 - len(self.spatial) : -1]
        self.group = self.w.shape[1] if self.w.rank == self.x.rank else 1  # channels
        self.turns = range(self.group)
        self.taps = (self.group, *self.kernel)

    def _near(self, units: DimLike, bundles: int) -> None:
        """No bundle reads what another does."""

    def row_weight(self, at: RowAt, turn: int, term: Shape, tap: DimLike, lane: DimLike) -> Expr:
        """The weights of a vector of channels."""
        turned = (turn,) if self.w.rank == self.x.rank else ()
        return Load(self.draft.read(self.w), (ravel((at.block, *turned, *term, tap, at.first + lane), self.w.shape),), self.w.dtype)

    def row_input(self, at: RowAt, turn: int, term: Shape, tap: DimLike, lane: DimLike, position: int) -> Expr:
        """A vector of channels, turned."""
        whole = self.tile.lanes % self.group == 0  # groups in a vector, whose first lane is then a group's first too
        first, lane = (at.first, lane) if whole else (0, at.first + lane)
        if turn:
            ranges = self.nest.ranges
            start = dims.floordiv(lane, self.group, ranges) * self.group
            lane = start + dims.mod(lane + turn, self.group, ranges)
        return self.draft.element(self.x, (at.image, at.block, *self.place_of(at, (*term, tap), position), first + lane))


@contraction("depthwise_blocked", "conv", "depthwise")
def depthwise(node: Node, scope: Scope, target: Target) -> Draft:
    """The kernel of a depthwise convolution, alone or with its epilogue."""
    return DepthwiseConv(node, scope, target, "depthwise").write()
