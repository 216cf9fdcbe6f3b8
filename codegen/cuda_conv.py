"""Convolutions on a GPU as implicit matrix products: output channels x positions, summed over input channels and kernel elements.

    acc[o, p] += w[o, (c, tap)] * x[c, position of p and tap]           any rank, strides, dilations, groups; borders are masked

A pointwise convolution is a product per image whose columns are the image's positions, as they lie in memory.
"""

from __future__ import annotations

from tcompile.codegen.access import unravel
from tcompile.codegen.cpu_epilogue import anchor
from tcompile.codegen.cuda_direct import direct
from tcompile.codegen.cuda_dot import best_product, tiled
from tcompile.codegen.cuda_gemm import Extents, Product, sums_in
from tcompile.codegen.cuda_tensor import TensorProduct
from tcompile.codegen.cuda_warpgroup import WarpgroupProduct
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.lower_contraction import conv_taps
from tcompile.codegen.templates import Built, template
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape, product
from tcompile.ir.graph import Node, Value
from tcompile.ir.loops import Expr
from tcompile.ir.target import GpuTarget, Target

_FEW_OUTPUTS = 8  # channels of a group below which a tile would be mostly empty
_SMALL_IMAGE = 64  # positions below which several images share a tile


class Conv(Product):
    """out[n, g*O + row, position] = sum over terms (channel, tap) of w[g*O + row, term] * x[n, g*C + channel, ...]."""

    name = "conv"
    sides_of = 1, 0  # weights by images

    def _extents(self) -> Extents:
        x, w = self.core.inputs
        self.groups = self.core.attrs["groups"]
        self.outputs = dims.floordiv(w.shape[0], self.groups)
        self.images, self.spatial = x.shape[0], self.core.output.shape[2:]
        self.positions = product(self.spatial)
        self.pointwise = _is_pointwise(self.core) and not _below(self.positions, _SMALL_IMAGE)
        terms = product(w.shape[1:])
        self.by_taps = self._lies_by_taps(w)
        if self.pointwise:
            return Extents(self.outputs, self.positions, terms, sums_in(self.core), self.images * self.groups)
        return Extents(self.outputs, self.images * self.positions, terms, sums_in(self.core), self.groups)

    def _lies_by_taps(self, w: Value) -> bool:
        """Whether memory has the channels of a kernel element side by side: terms then go by elements, and a step of them has one."""
        made = self.draft.inliner.producers.get(w)
        return made is not None and made.op == "transpose" and made.attrs["perm"] == (0, w.rank - 1, *range(1, w.rank - 1))

    def _term(self, term: DimLike) -> tuple[DimLike, Shape]:
        """(channel, kernel element) of a term."""
        w = self.core.inputs[1]
        if self.by_taps:
            *taps, channel = unravel(term, (*w.shape[2:], w.shape[1]), self.nest.ranges)
        else:
            channel, *taps = unravel(term, w.shape[1:], self.nest.ranges)
        return channel, tuple(taps)

    def _group(self, batch: DimLike) -> DimLike:
        return dims.mod(batch, self.groups, self.nest.ranges) if self.pointwise else batch

    def _image(self, batch: DimLike, image: DimLike) -> DimLike:
        return dims.floordiv(batch, self.groups, self.nest.ranges) if self.pointwise else image

    def column_place(self, column: DimLike) -> Shape:
        """(image, positions...); a pointwise convolution's column is its position."""
        if self.pointwise:
            return (column,)
        extents = (self.images, *self.spatial)
        return self.named(unravel(column, extents, self.nest.ranges), extents)

    def left(self, batch: DimLike, row: Shape, term: DimLike, guard: Expr | None) -> Expr:
        w = self.core.inputs[1]
        channel = self._group(batch) * self.outputs + row[0]
        if self.by_taps:
            depth, taps = self._term(term)
            return self.draft.element(w, (channel, depth, *taps), guard)
        return self.draft.inliner.flat(w, channel * product(w.shape[1:]) + term, guard)

    def right(self, batch: DimLike, column: Shape, term: DimLike, guard: Expr | None) -> Expr:
        x, w = self.core.inputs
        first = self._group(batch) * w.shape[1]
        if self.pointwise:
            start = (self._image(batch, 0) * x.shape[1] + first + term) * self.positions
            return self.draft.inliner.flat(x, start + column[0], guard)
        channel, taps = self._term(term)
        positions, inside = conv_taps(self.draft, self.core, x, column[1:], taps)
        whole = self.draft.inliner.guarded(guard, inside)
        return self.draft.element(x, (column[0], first + channel, *positions), whole)

    def place(self, batch: DimLike, row: DimLike, column: DimLike) -> Shape:
        ranges = self.nest.ranges
        channel = self._group(batch) * self.outputs + row
        if self.pointwise:
            return (self._image(batch, 0), channel, *unravel(column, self.spatial, ranges))
        image, *position = unravel(column, (self.images, *self.spatial), ranges)
        return (image, channel, *position)


class TensorConv(TensorProduct, Conv):
    """The same on tensor cores."""


class WarpgroupConv(WarpgroupProduct, Conv):
    """The same by products of four warps."""


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
    return best_product((Conv, TensorConv, WarpgroupConv), node, core, scope, target).built()


template("fused.conv", "cuda")(conv)


def _is_pointwise(core: Node) -> bool:
    w, attrs = core.inputs[1], core.attrs
    ones = (*w.shape[2:], *attrs["strides"], *attrs["lhs_dilation"])
    return all(n == 1 for n in ones) and all(n == 0 for n in (*attrs["low"], *attrs["high"]))


def _below(extent: DimLike, limit: int) -> bool:
    return isinstance(extent, int) and extent < limit
