"""A reduction loop as several sums side by side, for loops whose lanes are another loop: one sum would wait for itself.

The order of the sum changes, once: it depends on the extent alone, never on threads.
"""

from __future__ import annotations

from tcompile.codegen.loop_rewrite import substitute
from tcompile.codegen.scalar import identity, op
from tcompile.codegen.schedule import Names
from tcompile.codegen.schedule_access import KNOWN
from tcompile.codegen.schedule_lanes import accumulation, redirected
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.loops import Alloc, Block, Expr, For, Load, Space, Stmt, Store

CHAINS = 4  # an addition takes 3 or 4 cycles, in which a core loads 4 vectors or more
_ENOUGH_TURNS = 4 * CHAINS  # of a loop that is worth the join


def chains_of(loop: For, names: Names) -> Block | None:
    """A reduction loop in CHAINS partial results, joined as a tree; None for other loops, and short ones.

    for k in n: acc[0] = acc[0] + f(k)
    -->
    parts[j] = 0 (j in 4);  for o in n // 4: parts[j] = parts[j] + f(4*o + j) (j in 4);  for r in n % 4: parts[0] = ...
    acc[0] = acc[0] + ((parts[0] + parts[2]) + (parts[1] + parts[3]))
    """
    found = accumulation(loop)
    if found is None or len(loop.body) != 1 or (isinstance(loop.extent, int) and loop.extent < _ENOUGH_TURNS):
        return None
    acc, dtype, parts = found.store.buffer, found.store.value.dtype, names("b")

    def turn(chain: int, place: DimLike) -> Block:
        return redirected(substitute(loop.body, {loop.var: place}, KNOWN), acc, parts, (chain,))

    outer, last = names("i"), names("i")
    turns = dims.floordiv(loop.extent, CHAINS)
    body: list[Stmt] = [Alloc(parts, dtype, (CHAINS,), Space.REGISTER)]
    body += [Store(parts, (chain,), identity(found.fn, dtype)) for chain in range(CHAINS)]
    whole = [stmt for chain in range(CHAINS) for stmt in turn(chain, dims.symbol(outer) * CHAINS + chain)]
    body.append(For(outer, turns, tuple(whole)))
    rest = dims.mod(loop.extent, CHAINS)
    if rest != 0:
        body.append(For(last, rest, turn(0, turns * CHAINS + dims.symbol(last))))
    sums: list[Expr] = [Load(parts, (chain,), dtype) for chain in range(CHAINS)]
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [op(found.fn, a, b) for a, b in zip(sums[:half], sums[half:], strict=True)]
    return (*body, Store(acc, (0,), op(found.fn, Load(acc, (0,), dtype), sums[0])))
