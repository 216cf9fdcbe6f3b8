"""A choice that is the same for all lanes and turns of a vector loop is made once, before it: a border takes no masked loads.

vector i in n { store y[i] = select(c, load x[i] if c, 0) }
-->
if c { vector i in n { store y[i] = load x[i] } } else { vector i in n { store y[i] = 0 } }
"""

from __future__ import annotations

from dataclasses import replace

from tcompile.codegen.loop_rewrite import Rewriter
from tcompile.codegen.schedule_access import mentions
from tcompile.ir.loops import Block, Expr, For, If, Load, LoopKind, Select, Store, Var
from tcompile.ir.loops_evaluate import postorder

_FEWEST_VECTORS = 4  # of a loop that is worth being there twice


def unswitched(loop: For) -> Block | None:
    """Two loops under a condition in place of one whose only statement stores a choice; None where that is not the case."""
    if loop.kind is not LoopKind.VECTOR or len(loop.body) != 1 or not isinstance(loop.body[0], Store):
        return None
    (store,) = loop.body
    if not isinstance(store.value, Select) or (isinstance(loop.extent, int) and loop.extent < _FEWEST_VECTORS * loop.width):
        return None
    cond = store.value.cond
    if mentions(cond, {loop.var}) or any(isinstance(part, Load | Var) for part in postorder(cond)):
        return None
    then = replace(store, value=_Known(cond).expr(store.value.then))
    otherwise = replace(store, value=store.value.otherwise)
    return (If(cond, *((replace(loop, body=(one,)),) for one in (then, otherwise))),)


class _Known(Rewriter):
    """Loads under a mask that is known to hold."""

    def __init__(self, cond: Expr) -> None:
        super().__init__()
        self.cond = cond

    def rebuild(self, expr: Expr) -> Expr:
        if isinstance(expr, Load) and expr.mask is self.cond:
            expr = replace(expr, mask=None)
        return super().rebuild(expr)
