"""Convolutions on a GPU as implicit matrix products: output channels x positions, summed over input channels and kernel elements.

    acc[o, p] += w[o, (c, tap)] * x[c, position of p and tap]           any rank, strides, dilations, groups; borders are masked

A pointwise convolution is a product per image whose columns are the image's positions, as they lie in memory.
"""

from __future__ import annotations

from tcompile.codegen.access import unravel
from tcompile.codegen.cpu_epilogue import anchor
from tcompile.codegen.cuda_direct import direct
from tcompile.codegen.cuda_dot import tiled
from tcompile.codegen.cuda_gemm import Extents, Product, sums_in
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.lower_contraction import conv_taps
from tcompile.codegen.templates import Built, template
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape, product
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr
from tcompile.ir.target import GpuTarget, Target

_FEW_OUTPUTS = 8  # channels of a group below which a tile would be mostly empty
_SMALL_IMAGE = 64  # positions below which several images share a tile


class Conv(Product):
    """out[n, g*O + row, position] = sum over terms (channel, tap) of w[g*O + row, term] * x[n, g*C + channel, ...]."""

    name = "conv"

    def _extents(self) -> Extents:
        x, w = self.core.inputs
        self.groups = self.core.attrs["groups"]
        self.outputs = dims.floordiv(w.shape[0], self.groups)
        self.images, self.spatial = x.shape[0], self.core.output.shape[2:]
        self.positions = product(self.spatial)
        self.pointwise = _is_pointwise(self.core) and not _below(self.positions, _SMALL_IMAGE)
        terms = product(w.shape[1:])
        if self.pointwise:
            return Extents(self.outputs, self.positions, terms, sums_in(self.core), self.images * self.groups)
        return Extents(self.outputs, self.images * self.positions, terms, sums_in(self.core), self.groups)

    def _image(self, batch: DimLike, column: DimLike) -> tuple[DimLike, DimLike, DimLike]:
        """(group, image, position) of a column."""
        ranges = self.nest.ranges
        if self.pointwise:
            return dims.mod(batch, self.groups, ranges), dims.floordiv(batch, self.groups, ranges), column
        image, position = unravel(column, (self.images, self.positions), ranges)
        return batch, image, position

    def left(self, batch: DimLike, row: DimLike, term: DimLike, guard: Expr | None) -> Expr:
        w = self.core.inputs[1]
        group, _, _ = self._image(batch, 0)
        return self.draft.inliner.flat(w, (group * self.outputs + row) * self.extents_terms(w.shape) + term, guard)

    @staticmethod
    def extents_terms(shape: Shape) -> DimLike:
        """Terms of one output channel."""
        return product(shape[1:])

    def right(self, batch: DimLike, column: DimLike, term: DimLike, guard: Expr | None) -> Expr:
        x, w = self.core.inputs
        group, image, position = self._image(batch, column)
        if self.pointwise:
            channel = group * w.shape[1] + term
            return self.draft.inliner.flat(x, (image * x.shape[1] + channel) * self.positions + position, guard)
        channel, *taps = unravel(term, w.shape[1:], self.nest.ranges)
        at = unravel(position, self.spatial, self.nest.ranges)
        positions, inside = conv_taps(self.draft, self.core, x, at, tuple(taps))
        whole = self.draft.inliner.guarded(guard, inside)
        return self.draft.element(x, (image, group * w.shape[1] + channel, *positions), whole)

    def place(self, batch: DimLike, row: DimLike, column: DimLike) -> Shape:
        group, image, position = self._image(batch, column)
        return (image, group * self.outputs + row, *unravel(position, self.spatial, self.nest.ranges))


@template("conv", "cuda")
def conv(node: Node, scope: Scope, target: Target) -> list[Draft | Built] | None:
    """A convolution; depthwise ones and those of few output channels get a thread for each result."""
    assert isinstance(target, GpuTarget), target
    core = anchor(node)
    if core is None or core.op != "conv":
        return None
    outputs = dims.floordiv(core.inputs[1].shape[0], core.attrs["groups"])
    if not tiled(core) or _below(outputs, _FEW_OUTPUTS):
        return direct(node, scope) if node.op == "fused" else None
    return Conv(node, scope, target).built()


template("fused.conv", "cuda")(conv)


def _is_pointwise(core: Node) -> bool:
    w, attrs = core.inputs[1], core.attrs
    ones = (*w.shape[2:], *attrs["strides"], *attrs["lhs_dilation"])
    return all(n == 1 for n in ones) and all(n == 0 for n in (*attrs["low"], *attrs["high"]))


def _below(extent: DimLike, limit: int) -> bool:
    return isinstance(extent, int) and extent < limit
