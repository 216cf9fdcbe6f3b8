"""dot_general on a GPU: any axes, batch and views of the operands, with what follows in the same kernel."""

from __future__ import annotations

from tcompile.codegen.access import unravel
from tcompile.codegen.cpu_epilogue import anchor
from tcompile.codegen.cuda_direct import direct
from tcompile.codegen.cuda_gemm import Extents, Product, sums_in
from tcompile.codegen.cuda_tensor import TensorProduct, factors
from tcompile.codegen.cuda_thin import FEW, Thin
from tcompile.codegen.cuda_warpgroup import WarpgroupProduct, suits
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.templates import Built, template
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr
from tcompile.ir.ops_contraction import free_axes
from tcompile.ir.target import GpuTarget, Target

_SHORT = 32  # terms, and columns of the matrix, from which threads share the sums of a few vectors


class Dot(Product):
    """out[batch, row, column] = sum over terms of a[batch, row, term] * b[batch, term, column]."""

    name = "gemm"

    def _extents(self) -> Extents:
        a, b = self.core.inputs
        batch, contract = self.core.attrs["batch"], self.core.attrs["contract"]
        self.free = [free_axes(x.rank, *axes) for x, *axes in zip((a, b), batch, contract, strict=True)]
        rows, columns = (dims.product(x.shape[k] for k in free) for x, free in zip((a, b), self.free, strict=True))
        terms, repeats = (dims.product(a.shape[k] for k in axes) for axes in (contract[0], batch[0]))
        return Extents(rows, columns, terms, sums_in(self.core), repeats)

    def row_place(self, row: DimLike) -> Shape:
        return self._split(0, row)

    def column_place(self, column: DimLike) -> Shape:
        return self._split(1, column)

    def _split(self, side: int, free: DimLike) -> Shape:
        """A free position along the operand's axes, named."""
        extents = [self.core.inputs[side].shape[k] for k in self.free[side]]
        return self.named(unravel(free, extents, self.nest.ranges), extents)

    def left(self, batch: DimLike, row: Shape, term: DimLike, guard: Expr | None) -> Expr:
        return self.draft.element(self.core.inputs[0], self._index(0, batch, row, term), guard)

    def right(self, batch: DimLike, column: Shape, term: DimLike, guard: Expr | None) -> Expr:
        return self.draft.element(self.core.inputs[1], self._index(1, batch, column, term), guard)

    def _index(self, side: int, batch: DimLike, free: Shape, term: DimLike) -> Shape:
        """An operand's index from the flat positions of batch and term."""
        operand = self.core.inputs[side]
        index: list[DimLike] = [0] * operand.rank
        for axes, flat in ((self.core.attrs["batch"][side], batch), (self.core.attrs["contract"][side], term)):
            for axis, i in zip(axes, unravel(flat, [operand.shape[k] for k in axes], self.nest.ranges), strict=True):
                index[axis] = i
        for axis, i in zip(self.free[side], free, strict=True):
            index[axis] = i
        return tuple(index)

    def place(self, batch: DimLike, row: DimLike, column: DimLike) -> Shape:
        shape = self.core.output.shape
        repeats, rows = len(self.core.attrs["batch"][0]), len(self.free[0])
        parts = ((shape[:repeats], batch), (shape[repeats : repeats + rows], row), (shape[repeats + rows :], column))
        return tuple(i for part, flat in parts for i in unravel(flat, part, self.nest.ranges))

    def thin(self) -> Draft | None:
        """The kernel for a few rows or columns; None where there are more, or fewer terms than are worth it."""
        e = self.extents
        if isinstance(e.terms, int) and e.terms < _SHORT:
            return None
        rows, columns = (self.left, self.row_place), (self.right, self.column_place)
        self.draft.flops = 2 * e.batch * e.rows * e.columns * e.terms
        if _is_few(e.rows) and not _below(e.columns, _SHORT):

            def across(batch: DimLike, vector: DimLike, column: DimLike, value: Expr) -> None:
                self.epilogue.store(self.place(batch, vector, column), value)

            return Thin(self.draft, (*rows, e.rows), (*columns, e.columns), e.terms, e.batch, e.dtype, across).write()
        if _is_few(e.columns) and not _below(e.rows, _SHORT):

            def down(batch: DimLike, vector: DimLike, row: DimLike, value: Expr) -> None:
                self.epilogue.store(self.place(batch, row, vector), value)

            return Thin(self.draft, (*columns, e.columns), (*rows, e.rows), e.terms, e.batch, e.dtype, down).write()
        return None


def _is_few(extent: DimLike) -> bool:
    return isinstance(extent, int) and 1 <= extent <= FEW


def _below(extent: DimLike, limit: int) -> bool:
    return isinstance(extent, int) and extent < limit


class TensorDot(TensorProduct, Dot):
    """The same on tensor cores."""


class WarpgroupDot(WarpgroupProduct, Dot):
    """The same by products of four warps."""


@template("dot_general", "cuda")
def dot(node: Node, scope: Scope, target: Target) -> list[Draft | Built] | None:
    """A product of matrices; narrow ones get a thread for each result."""
    assert isinstance(target, GpuTarget), target
    core = anchor(node)
    if core is None or core.op != "dot_general" or not tiled(core):
        return direct(node, scope) if node.op == "fused" else None
    thin = Dot(node, scope, target).thin()
    if thin is not None:
        return [Built(*thin.finish())]
    made = best_product((Dot, TensorDot, WarpgroupDot), node, core, scope, target)
    small = _below(made.extents.rows, FEW) or _below(made.extents.columns, FEW)
    return direct(node, scope) if small else made.built()


template("fused.dot", "cuda")(dot)


def best_product(
    kinds: tuple[type[Product], type[TensorProduct], type[WarpgroupProduct]], node: Node, core: Node, scope: Scope, target: GpuTarget
) -> Product:
    """A product without tensor cores, with them, or by four warps together, whichever its operands suit and takes the least time."""
    plain, tensor, warpgroup = kinds
    if factors(core, target) is None:
        return plain(node, scope, target)
    made = tensor(node, scope, target)
    if suits(made, target):
        other = warpgroup(node, scope, target)
        return other if other.time <= made.time else tensor(node, scope, target)
    return tensor(node, scope, target)


def tiled(core: Node) -> bool:
    """Whether the operands' dtypes can lie in tiles: whole bytes, and with a zero."""
    return all(value.dtype.bits >= 8 and value.dtype.name != "f8e8m0" for value in core.inputs)
