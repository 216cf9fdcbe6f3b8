"""rng_bits: Philox 4x32-10, one block of four words per turn. Each block depends on its number alone."""

from __future__ import annotations

from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import cast, compare, const, index_value, op
from tcompile.ir import dims
from tcompile.ir.dtypes import U32, U64
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr
from tcompile.ir.random import KEY_STEPS, MULTIPLIERS, ROUNDS

_LOW = 0xFFFFFFFF


def lower_random(node: Node, scope: Scope) -> list[Draft]:
    """Words 4*b .. 4*b + 3 of block b, as ``ir/random.py`` defines them."""
    draft = Draft("rng_bits", node, scope)
    nest, size = draft.nest, node.output.type.size
    with nest.loop(dims.ceildiv(size, 4), independent=True) as block:
        words = _philox(cast(index_value(block), U64), node.attrs["seed"])
        named = [nest.let(cast(word, U32)) for word in words]
        for k, word in enumerate(named):
            position = block * 4 + k
            nest.store(draft.write(node.output), position, word, compare("lt", position, size))
    draft.flops = size * 20
    return [draft]


def _philox(counter: Expr, seed: int) -> tuple[Expr, ...]:
    low, half, zero = const(_LOW, U64), const(32, U64), const(0, U64)
    c0, c1, c2, c3 = op("and", counter, low), op("shr", counter, half), zero, zero
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(ROUNDS):
        first, second = op("mul", c0, const(MULTIPLIERS[0], U64)), op("mul", c2, const(MULTIPLIERS[1], U64))
        c0, c1, c2, c3 = (
            op("xor", op("xor", op("shr", second, half), c1), const(k0, U64)),
            op("and", second, low),
            op("xor", op("xor", op("shr", first, half), c3), const(k1, U64)),
            op("and", first, low),
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & _LOW, (k1 + KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3
