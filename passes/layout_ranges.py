"""The range of integers that a tensor of codes may hold, as far as the nodes that made it say."""

from __future__ import annotations

from tcompile.ir.casts import integer_limits
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Node, Value
from tcompile.passes.layout_forms import Forms

Bounds = tuple[int, int]
_MOVES = frozenset(("reshape", "transpose", "slice", "broadcast"))
_DEEPEST = 8  # nodes to look through


def code_range(value: Value, forms: Forms, deepest: int = _DEEPEST) -> Bounds:
    """The least and the greatest number of a tensor of integers (of the graph whose layouts are assigned)."""
    low, high = limits = integer_limits(value.dtype)
    node = forms.producers.get(value)
    if node is None or not deepest:
        return limits
    found = _made(node, forms, deepest - 1)
    return found if found is not None and low <= found[0] <= found[1] <= high else limits  # what does not fit wraps


def _made(node: Node, forms: Forms, deepest: int) -> Bounds | None:
    if node.op == "constant":
        array = node.attrs["value"]
        return (int(array.min()), int(array.max())) if array.size else None
    if node.op == "convert":
        source = node.inputs[0]
        return code_range(source, forms, deepest) if source.dtype.is_integer else _clamped(source, node.output.dtype, forms)
    if node.op in _MOVES or _is_full_pool(node):
        return code_range(node.inputs[0], forms, deepest)
    if node.op == "map" and node.attrs["fn"] in ("add", "sub"):
        (low, high), (least, most) = (code_range(operand, forms, deepest) for operand in node.inputs)
        return (low + least, high + most) if node.attrs["fn"] == "add" else (low - most, high - least)
    return None


def _is_full_pool(node: Node) -> bool:
    """A maximum over windows each of which has an element: the maximum of none is the least integer."""
    if node.op != "reduce_window" or node.attrs["fn"] != "max":
        return False
    sized = zip(node.attrs["window"], node.attrs["low"], node.attrs["high"], strict=True)
    return all(isinstance(low, int) and isinstance(high, int) and max(low, high) < n for n, low, high in sized)


def _clamped(value: Value, dtype: DType, forms: Forms) -> Bounds | None:
    """The bounds of a float that is clamped before it is converted; NaN becomes 0."""
    bounds: dict[str, float] = {}
    node = forms.producers.get(value)
    while node is not None and node.op == "map" and node.attrs["fn"] in ("min", "max") and node.attrs["fn"] not in bounds:
        number = forms.scalar(node.inputs[1])
        if number is None:
            break
        bounds[node.attrs["fn"]] = number
        node = forms.producers.get(node.inputs[0])
    if len(bounds) < 2 or not bounds["max"] <= bounds["min"]:
        return None
    return min(int(bounds["max"]), 0), max(int(bounds["min"]), 0)
