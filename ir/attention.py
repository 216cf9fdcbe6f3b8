"""Attention among core ops: two products with a softmax between them.

    s = dot_general(q, k)
    x = f(s, masks...)              elementwise: scales, masks, caps, in any order
    t = reduce(x, max); e = exp(x - t'); n = reduce(e, add)      over the keys; t' is made of t, row by row
    p = g(e, n)                     elementwise with values of the row
    y = dot_general(p, v)

Fusion asks here what belongs together, the CPU template how the indices of the parts correspond.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tcompile.ir import dims
from tcompile.ir.access import iteration, result_index
from tcompile.ir.dims import DimLike, Ranges, Shape
from tcompile.ir.dtypes import F32
from tcompile.ir.graph import Node, Value
from tcompile.ir.ops_contraction import free_axes

_BETWEEN = frozenset({"map", "broadcast", "reshape", "transpose", "reduce"})


@dataclass(frozen=True, eq=False)
class Attention:
    """The nodes of one attention. ``members``: those computed from the first product, it included, before their users."""

    first: Node
    second: Node
    members: tuple[Node, ...]
    top: Node
    total: Node

    @property
    def scores(self) -> Value:
        """x: what the softmax is taken of."""
        return self.top.inputs[0]

    @property
    def powers(self) -> Value:
        """e: the exponentials."""
        return self.total.inputs[0]

    @property
    def exponents(self) -> Value:
        """x - t': never positive."""
        return next(node for node in self.members if node.output is self.powers).inputs[0]

    @property
    def weights(self) -> Value:
        """p: the left operand of the second product."""
        return self.second.inputs[0]

    def places(self, index: Shape, ranges: Ranges) -> dict[Value, Shape]:
        """Where the first product's element ``index`` lands in every value of its size, the last product's left operand included."""
        found = {self.first.output: index}
        for node in self.members:
            sources = {found[value] for value in node.inputs if value in found}
            if len(sources) != 1 or node.op == "reduce":
                continue
            place = result_index(node, sources.pop(), ranges)
            if place is not None:
                found[node.output] = place
        return found

    def query_axes(self) -> tuple[int, ...]:
        """The axes of q that are rows of scores."""
        return _free(self.first, 0)

    def key_axis(self) -> int:
        """The axis of k along which keys stand."""
        return _free(self.first, 1)[0]

    def value_axes(self) -> tuple[int, int]:
        """(keys, columns): axes of v."""
        return self.second.attrs["contract"][1][0], _free(self.second, 1)[0]

    def result_place(self, weights: Shape) -> Shape:
        """The index of the second product's rows, without its last axis, from that of the weights."""
        (batch, _), ((key,), _) = self.second.attrs["batch"], self.second.attrs["contract"]
        rest = [i for axis, i in enumerate(weights) if axis not in batch and axis != key]
        return (*(weights[axis] for axis in batch), *rest)

    def value_batch(self, weights: Shape) -> dict[int, DimLike]:
        """The index of v along its batch axes, from that of the weights."""
        return {theirs: weights[ours] for ours, theirs in zip(*self.second.attrs["batch"], strict=True)}

    def divisor(self) -> tuple[str, Value] | None:
        """(mul or div, row value) where the weights are nothing but the powers times or divided by a value of their row."""
        producers = {node.output: node for node in self.members}
        node = producers[self.weights]
        while node.op in ("reshape", "transpose"):
            node = producers[node.inputs[0]]
        if node.op != "map" or node.attrs["fn"] not in ("mul", "div"):
            return None
        left, right = node.inputs
        if left is self.powers and _by_row(right, producers):
            return node.attrs["fn"], right
        return ("mul", left) if node.attrs["fn"] == "mul" and right is self.powers and _by_row(left, producers) else None


def find_attention(second: Node, producers: Mapping[Value, Node]) -> Attention | None:
    """The attention that ends in a product; None where there is none of the form above, in f32."""
    if second.op != "dot_general" or len(second.attrs["contract"][0]) != 1 or second.attrs["dtype"] != F32:
        return None
    members = _between(second, producers)
    first = members[0] if members else None
    reductions = [node for node in members if node.op == "reduce"]
    if first is None or [node.attrs["fn"] for node in reductions] != ["max", "add"]:
        return None
    found = Attention(first, second, tuple(members), *reductions)
    return found if _is_softmax(found) and _is_aligned(found) else None


def _between(second: Node, producers: Mapping[Value, Node]) -> list[Node]:
    """The nodes that make the left operand out of one product, it first, before their users; none where that is not so."""
    order: list[Node] = []
    state: dict[Value, bool] = {}  # whether a value depends on the product
    dots: set[Node] = set()

    def visit(value: Value) -> bool:
        if value in state:
            return state[value]
        node = producers.get(value)
        if node is None or len(state) > 64:
            state[value] = False
        elif node.op == "dot_general":
            dots.add(node)
            state[value] = True
            order.insert(0, node)
        elif node.op in _BETWEEN:
            state[value] = False
            reached = [visit(operand) for operand in node.inputs]
            state[value] = any(reached)
            if state[value]:
                order.append(node)
        else:
            state[value] = False
        return state[value]

    return order if visit(second.inputs[0]) and len(dots) == 1 else []


def _is_softmax(found: Attention) -> bool:
    """Reductions over the last axis of values of one shape; the powers are exp(x - a value of the row)."""
    producers = {node.output: node for node in found.members}
    shape = found.scores.shape
    reductions = (found.top, found.total)
    if any(node.attrs["axes"] != (len(shape) - 1,) or node.inputs[0].shape != shape for node in reductions):
        return False
    power = producers.get(found.powers)
    shift = producers.get(power.inputs[0]) if power and power.attrs.get("fn") == "exp" else None
    if shift is None or shift.attrs.get("fn") != "sub" or shift.inputs[0] is not found.scores:
        return False
    return _by_row(shift.inputs[1], producers)


def _full(node: Node, found: Attention) -> bool:
    return node.output.type.size == found.scores.type.size


def _by_row(value: Value, producers: Mapping[Value, Node]) -> bool:
    """Whether a value is the same along its last axis."""
    node = producers.get(value)
    return node is not None and node.op == "broadcast" and value.rank - 1 not in node.attrs["axes"]


def _is_aligned(found: Attention) -> bool:
    """Keys are one axis of k, the softmax's axis and the one that the second product sums over; its batch does not depend on rows."""
    first, second = found.first, found.second
    if len(_free(first, 1)) != 1 or len(_free(second, 1)) != 1 or len(first.attrs["contract"][0]) != 1 or first.attrs["dtype"] != F32:
        return False
    if any(value.dtype != F32 for value in (*first.inputs, *second.inputs)):
        return False
    index, ranges = iteration(first.output.shape, "a")
    places = found.places(index, ranges)
    if not {found.scores, found.powers, found.weights} <= places.keys() or any(value.dtype != F32 for value in places):
        return False
    if not all(node.output in places or node.op in ("broadcast", "reduce") for node in found.members if _full(node, found)):
        return False
    key, rows = index[-1], index[len(first.attrs["batch"][0]) : -1]
    (key_axis,) = second.attrs["contract"][0]
    if places[found.scores][-1] != key or places[found.powers][-1] != key or places[found.weights][key_axis] != key:
        return False
    moving = dims.shape_symbols(rows) | dims.symbols(key)
    return moving.isdisjoint(dims.shape_symbols(found.value_batch(places[found.weights]).values()))


def _free(dot: Node, side: int) -> tuple[int, ...]:
    return free_axes(dot.inputs[side].rank, dot.attrs["batch"][side], dot.attrs["contract"][side])
