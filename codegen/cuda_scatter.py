"""Scatters on a GPU, all updates at once, with the bits of updates in order.

    integers that are added, or of which the least or greatest stays:   atomics
    set: owner[position] = -1; owner[position] = max(owner[position], number of the update); the owner alone writes

Sums of floats, whose order shows, and scatters of few updates run in order, a thread for each element behind the indices.
"""

from __future__ import annotations

from dataclasses import replace

from tcompile.codegen.access import ravel
from tcompile.codegen.cuda_schedule import scheduled
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.lower_scatter import copy_operand
from tcompile.codegen.scalar import const, index_value, op
from tcompile.codegen.templates import Built, template
from tcompile.ir.dims import DimLike, Shape, product
from tcompile.ir.dtypes import I32, I64, U32, U64
from tcompile.ir.graph import Node, TensorType, Value
from tcompile.ir.loops import Access, Atomic, Load
from tcompile.ir.ops import spec
from tcompile.ir.target import GpuTarget, Target

FEW = 64  # updates of one place of the result that may as well run in order
_ATOMIC = (I32, I64, U32, U64)


class _Scatter:
    """The kernels of one node."""

    def __init__(self, node: Node, scope: Scope, target: GpuTarget) -> None:
        self.node, self.scope, self.target = node, scope, target
        self.x, self.indices, self.updates = node.inputs
        self.combiner = spec(node.op).complete(node.attrs)["combiner"]

    def place(self, draft: Draft, update: Shape) -> Shape:
        """The element of the result that an update goes to."""
        if self.node.op == "scatter_elements":
            axis = self.node.attrs["axis"]
            index = draft.inliner.lookup(self.indices, update, self.x.shape[axis], None)
            return (*update[:axis], index, *update[axis + 1 :])
        depth, rank = self.indices.shape[-1], self.indices.rank - 1
        found = tuple(draft.inliner.lookup(self.indices, (*update[:rank], k), self.x.shape[k], None) for k in range(depth))
        return (*found, *update[rank:])

    def number(self, update: Shape) -> DimLike:
        """The place of an update in the order of those that may meet."""
        if self.node.op == "scatter_elements":
            return update[self.node.attrs["axis"]]
        rank = self.indices.rank - 1
        return ravel(update[:rank], self.indices.shape[:-1])

    def together(self) -> DimLike:
        """Updates that may meet in one place."""
        if self.node.op == "scatter_elements":
            return self.indices.shape[self.node.attrs["axis"]]
        return product(self.indices.shape[:-1])

    def atomic(self) -> list[Draft]:
        """The copy, and one kernel of all updates."""
        draft = self._draft()
        with draft.nest.loops(self.updates.shape, independent=True) as update:
            position = ravel(self.place(draft, update), self.node.output.shape)
            buffer = draft.write(self.node.output, Access.INOUT)
            draft.nest.emit(Atomic(self.combiner, buffer, (position,), draft.element(self.updates, update)))
        return [draft]

    def owned(self, owner: Value) -> list[Draft]:
        """Nobody owns; the last update of each place does; owners write."""
        clear, claim, write = (self._draft() for _ in range(3))
        with clear.nest.loop(owner.type.size, independent=True) as k:
            clear.nest.store(clear.write(owner), k, const(-1, I32))
        with claim.nest.loops(self.updates.shape, independent=True) as update:
            position = ravel(self.place(claim, update), self.node.output.shape)
            number = index_value(self.number(update), I32)
            claim.nest.emit(Atomic("max", claim.write(owner, Access.INOUT), (position,), number))
        with write.nest.loops(self.updates.shape, independent=True) as update:
            position = ravel(self.place(write, update), self.node.output.shape)
            mine = op("eq", Load(write.read(owner), (position,), I32), index_value(self.number(update), I32))
            buffer = write.write(self.node.output, Access.INOUT)
            write.nest.store(buffer, position, write.element(self.updates, update), mine)
        return [clear, claim, write]

    def _draft(self) -> Draft:
        draft = Draft(f"scatter_{self.combiner}", self.node, self.scope)
        draft.flops = self.updates.type.size
        return draft


@template("scatter_nd", "cuda")
def scatter(node: Node, scope: Scope, target: Target) -> list[Draft | Built] | None:
    """Updates in any order with the result of one; None where they must run in order."""
    assert isinstance(target, GpuTarget), target
    made = _Scatter(node, scope, target)
    few = made.together()
    if isinstance(few, int) and few <= FEW:
        return None
    copy = copy_operand(node, node.inputs[0], scope)
    if made.combiner in ("add", "min", "max") and node.output.dtype in _ATOMIC:
        return [copy, *made.atomic()]
    if made.combiner != "set" or node.inputs[0] in scope.storage or node.output in scope.storage:
        return None
    owner = Value("owner", TensorType(I32, (node.output.type.size,)))
    drafts = [one for draft in made.owned(owner) for one in scheduled(draft, target)]
    return [copy, *(replace(one, scratch=(*one.scratch, owner)) for one in drafts)]


template("scatter_elements", "cuda")(scatter)
