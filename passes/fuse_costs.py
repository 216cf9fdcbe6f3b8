"""What evaluating an op again would cost, in units of one vector addition per element."""

from __future__ import annotations

from tcompile.ir import dims
from tcompile.ir.dims import DimError, DimLike, Range
from tcompile.ir.graph import Node

NOMINAL = 64  # what an unbounded symbol counts for in an estimate

_CHEAP = frozenset({
    "add", "sub", "mul", "min", "max", "neg", "abs", "and", "or", "xor", "not", "shl", "shr", "fma",
    "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "where", "sign", "ceil", "floor", "round", "trunc",
})  # fmt: skip
_MIDDLE = {"div": 4.0, "sqrt": 4.0, "rsqrt": 5.0, "recip": 4.0, "mod": 8.0, "fmod": 20.0, "pow": 40.0}
_FUNCTION = 16.0  # a polynomial: exp, tanh, erf...


def cost(node: Node) -> float:
    """The work for one result element, its operands given."""
    if node.op == "map":
        fn = node.attrs["fn"]
        return 1.0 if fn in _CHEAP else _MIDDLE.get(fn, _FUNCTION)
    return {"convert": 1.0, "pad": 1.0, "concat": 1.0, "pack": 1.0, "gather": 3.0, "gather_elements": 3.0, "gather_nd": 4.0}.get(
        node.op, 0.0
    )


def estimate(size: DimLike, symbols: dict[str, Range]) -> float:
    """A plausible number for an extent or size: symbols at the upper end of their range, or ``NOMINAL``."""
    if isinstance(size, int):
        return float(size)
    values: dict[str, int] = {}
    for name in dims.symbols(size):
        end = symbols.get(name, Range()).hi
        values[name] = min(end, 4096) if isinstance(end, int) else NOMINAL
    try:
        return float(max(dims.evaluate(size, values), 0))
    except DimError:  # sizes that do not go together: unlike extents broadcast, a quotient by 0
        return float(NOMINAL)
