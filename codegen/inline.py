"""The expression builder: the Loop IR expression of one element of a value.

A value is followed through the producers it was given down to sources (buffers, accumulators, constants).
Elementwise functions become expressions; data movement becomes index arithmetic, so a transpose or a slice
inside a kernel costs no memory. Equal requests give the same expression object, so that shared work is done once.

A guard is a bool expression under which the element is needed: what a pad or a concat does not read is loaded masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from tcompile.codegen.access import ravel, reshaped, unravel
from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import both, cast, compare, const, index_value, negation, op, select, within
from tcompile.errors import UnsupportedError
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import BOOL, I64
from tcompile.ir.graph import Node, Value
from tcompile.ir.loops import Bitcast, Expr, Index, Load, Op, Status

Element = Callable[[Shape, Expr | None], Expr]  # the element at indices, needed under a guard


class Source(Protocol):
    """Where elements of a value come from."""

    def at(self, indices: Shape, guard: Expr | None) -> Expr: ...


class Stored:
    """A value that lies in a buffer, declared flat; ``storage`` is the shape that the buffer is addressed by."""

    def __init__(self, buffer: str, value: Value, storage: Shape | None = None) -> None:
        self.buffer, self.value = buffer, value
        self.storage = value.shape if storage is None else storage

    @property
    def has_gaps(self) -> bool:
        return self.storage != self.value.shape

    def at(self, indices: Shape, guard: Expr | None) -> Expr:
        return Load(self.buffer, (ravel(indices, self.storage),), self.value.dtype, guard)

    def flat(self, index: DimLike, guard: Expr | None) -> Expr:
        """The element at a row-major position; the buffer must have no gaps."""
        return Load(self.buffer, (index,), self.value.dtype, guard)


class Bound:
    """A value whose elements a callback gives: an accumulator, a row buffer, a scalar constant."""

    def __init__(self, element: Element) -> None:
        self.element = element

    def at(self, indices: Shape, guard: Expr | None) -> Expr:
        return self.element(indices, guard)


class Inliner:
    """Builds expressions in a ``Nest``; ``sources`` end the search, everything else must have a producer.

    ``missing`` is asked for the source of a value that has neither (an operand seen for the first time).
    """

    def __init__(
        self,
        nest: Nest,
        producers: Mapping[Value, Node],
        sources: Mapping[Value, Source] | None = None,
        missing: Callable[[Value], Source] | None = None,
    ) -> None:
        self.nest = nest
        self.producers = producers
        self.sources: dict[Value, Source] = dict(sources or {})
        self.missing = missing
        self._memo: dict[tuple, tuple[int, Expr, object]] = {}

    @property
    def ranges(self) -> dict[str, Range]:
        return self.nest.ranges

    def bind(self, value: Value, element: Element) -> None:
        """From now on, ``element`` gives the elements of ``value``."""
        self.sources[value] = Bound(element)
        self._memo = {key: entry for key, entry in self._memo.items() if key[0] is not value}

    def forget(self) -> None:
        """Drops shared expressions: what they load has changed."""
        self._memo.clear()

    def value(self, value: Value, indices: Shape, guard: Expr | None = None) -> Expr:
        """The element of ``value`` at ``indices`` (one per axis, in range wherever ``guard`` holds)."""
        return self._shared((value, tuple(indices), id(guard)), guard, lambda: self._build(value, tuple(indices), guard))

    def flat(self, value: Value, position: DimLike, guard: Expr | None = None) -> Expr:
        """The element at a row-major position: a reshape of a buffer costs no division."""
        source = self._source(value)
        if isinstance(source, Stored) and not source.has_gaps:
            return self._shared((value, position, id(guard)), guard, lambda: source.flat(position, guard))
        node = self.producers.get(value) if source is None else None
        if node is not None and node.op == "reshape":
            return self.flat(node.inputs[0], position, guard)
        return self.value(value, unravel(position, value.shape, self.ranges), guard)

    def _shared(self, key: tuple, guard: object, make: Callable[[], Expr]) -> Expr:
        """The expression made for a key before, where the block it was made in is still open."""
        known = self._memo.get(key)
        if known is not None and known[0] in self.nest.scopes:
            return known[1]
        scope = self.nest.scopes[-1]
        expr = make()
        self._memo[key] = (scope, expr, guard)  # the guard is kept alive: its id is in the key
        return expr

    def _source(self, value: Value) -> Source | None:
        source = self.sources.get(value)
        if source is None and value not in self.producers and self.missing is not None:
            source = self.sources[value] = self.missing(value)
        return source

    def _build(self, value: Value, indices: Shape, guard: Expr | None) -> Expr:
        source = self._source(value)
        if source is not None:
            return source.at(indices, guard)
        node = self.producers.get(value)
        rule = _RULES.get(node.op) if node is not None else None
        if rule is None:
            raise UnsupportedError(
                f"{value.name} ({value.type}), made by {node.op if node else 'nothing'}, cannot be computed one element at a time",
                hint="only elementwise and data movement ops join a kernel",
            )
        return rule(self, node, indices, guard)

    def guarded(self, guard: Expr | None, extra: Expr | None) -> Expr | None:
        """The conjunction of two guards; the same object for the same pair."""
        if guard is None or extra is None:
            return both(guard, extra)
        return self._shared(("and", id(guard), id(extra)), (guard, extra), lambda: both(guard, extra))

    def within(self, index: DimLike, extent: DimLike) -> Expr | None:
        """0 <= index < extent; the same object for the same question."""
        if within(index, extent, self.ranges) is None:
            return None
        return self._shared(("within", index, extent), None, lambda: within(index, extent, self.ranges))

    def lookup(self, indices: Value, at: Shape, extent: DimLike, guard: Expr | None, *, proved: bool = False) -> DimLike:
        """An element of an index tensor as an index into an axis of ``extent``, checked where ``guard`` holds unless it is in range."""
        key = ("lookup", indices, at, extent, id(guard), proved)
        expr = self._shared(key, guard, lambda: self._checked(indices, at, extent, guard, proved))
        return expr.expr  # type: ignore[union-attr]

    def _checked(self, indices: Value, at: Shape, extent: DimLike, guard: Expr | None, proved: bool) -> Expr:
        loaded = cast(self.value(indices, at, guard), I64)
        index = self.nest.let_index(loaded, Range(0, extent - 1))
        if proved:
            return Index(index)
        inside = both(compare("ge", index, 0), compare("lt", index, extent))
        self.nest.check(inside if guard is None else Op("or", (negation(guard), inside), BOOL), Status.INDEX)
        return Index(index)


# Rules: (inliner, node, indices of its output, guard) -> the element -------------------------------------------


def _map(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    return op(node.attrs["fn"], *(self.value(operand, at, guard) for operand in node.inputs))


def _convert(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    return cast(self.value(node.inputs[0], at, guard), node.attrs["dtype"], saturate=node.attrs.get("saturate", True))


def _bitcast(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    return Bitcast(self.value(node.inputs[0], at, guard), node.attrs["dtype"])


def _constant(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    array = node.attrs["value"]
    if array.size != 1:
        raise UnsupportedError(f"the constant {node.output.name} of {array.size} elements must be an operand of its kernel")
    return const(array.reshape(()).item(), node.output.dtype)


def _dim(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    exprs = node.attrs["exprs"]
    place = ravel(at, node.attrs["shape"])
    if isinstance(place, int):
        return index_value(exprs[place])
    result = index_value(exprs[-1])
    for k in reversed(range(len(exprs) - 1)):
        result = select(compare("eq", place, k), index_value(exprs[k]), result)
    return result


def _iota(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    return index_value(at[node.attrs["axis"]], node.output.dtype)


def _broadcast(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    (source,) = node.inputs
    indices = []
    for axis, extent in zip(node.attrs["axes"], source.shape, strict=True):
        if extent == node.output.shape[axis]:
            indices.append(at[axis])
        elif extent == 1:
            indices.append(0)
        else:  # equal or 1, decided when it runs
            indices.append(dims.minimum(at[axis], extent - 1, self.ranges))
    return self.value(source, tuple(indices), guard)


def _reshape(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    (source,) = node.inputs
    shape = node.output.shape
    if isinstance(self._source(source), Stored) or _is_reshape(self, source):
        return self.flat(source, ravel(at, shape), guard)
    return self.value(source, reshaped(at, shape, source.shape, self.ranges), guard)


def _is_reshape(self: Inliner, value: Value) -> bool:
    node = self.producers.get(value)
    return value not in self.sources and node is not None and node.op == "reshape"


def _transpose(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    perm = node.attrs["perm"]
    indices: list[DimLike] = [0] * len(perm)
    for k, axis in enumerate(perm):
        indices[axis] = at[k]
    return self.value(node.inputs[0], tuple(indices), guard)


def _slice(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    attrs = node.attrs
    indices = tuple(start + index * step for start, step, index in zip(attrs["start"], attrs["step"], at, strict=True))
    return self.value(node.inputs[0], indices, guard)


def _pad(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    source, mode = node.inputs[0], node.attrs["mode"]
    shifted = [index - low for index, low in zip(at, node.attrs["low"], strict=True)]
    if mode != "constant":
        return self.value(source, tuple(_reflected(self, mode, i, e) for i, e in zip(shifted, source.shape, strict=True)), guard)
    inside: Expr | None = None
    for index, extent in zip(shifted, source.shape, strict=True):
        if _never(self, index, extent):
            return self.value(node.inputs[1], (), guard)
        inside = self.guarded(inside, self.within(index, extent))
    if inside is None:
        return self.value(source, tuple(shifted), guard)
    element = self.value(source, tuple(shifted), self.guarded(guard, inside))
    return select(inside, element, self.value(node.inputs[1], (), guard))


def _reflected(self: Inliner, mode: str, index: DimLike, extent: DimLike) -> DimLike:
    """The index that an index outside 0 .. extent-1 stands for (NumPy's pad modes)."""
    if dims.nonnegative(index, self.ranges) and dims.nonnegative(extent - 1 - index, self.ranges):
        return index
    if mode == "edge":
        return dims.minimum(dims.maximum(index, 0, self.ranges), extent - 1, self.ranges)
    if mode == "wrap":
        return dims.mod(index, extent, self.ranges)
    period = dims.maximum(2 * extent - 2, 1, self.ranges)
    phase = dims.mod(index, period, self.ranges)
    return dims.minimum(phase, dims.maximum(period - phase, 0, self.ranges), self.ranges) if extent != 1 else 0


def _concat(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    axis = node.attrs["axis"]
    index = at[axis]
    pieces: list[tuple[Expr | None, Expr]] = []
    start: DimLike = 0
    for operand in node.inputs:
        extent = operand.shape[axis]
        local = index - start
        start = start + extent
        inside = self.within(local, extent)
        if extent == 0 or _never(self, local, extent):
            continue
        element = self.value(operand, (*at[:axis], local, *at[axis + 1 :]), self.guarded(guard, inside))
        pieces.append((inside, element))
        if inside is None:
            break
    result = pieces[-1][1] if pieces else const(0, node.output.dtype)
    for inside, element in reversed(pieces[:-1]):
        result = select(inside, element, result)
    return result


def _never(self: Inliner, index: DimLike, extent: DimLike) -> bool:
    return dims.nonnegative(-1 - index, self.ranges) or dims.nonnegative(index - extent, self.ranges)


def _gather(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    source, indices = node.inputs
    axis = node.attrs["axis"]
    index = self.lookup(indices, at[axis : axis + indices.rank], source.shape[axis], guard, proved=_is_proved(node))
    return self.value(source, (*at[:axis], index, *at[axis + indices.rank :]), guard)


def _gather_elements(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    source, indices = node.inputs
    axis = node.attrs["axis"]
    index = self.lookup(indices, at, source.shape[axis], guard, proved=_is_proved(node))
    return self.value(source, (*at[:axis], index, *at[axis + 1 :]), guard)


def _gather_nd(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    source, indices = node.inputs
    batch, count = node.attrs.get("batch", 0), indices.shape[-1]
    outer = at[: indices.rank - 1]
    found = tuple(self.lookup(indices, (*outer, k), source.shape[batch + k], guard, proved=_is_proved(node)) for k in range(count))
    return self.value(source, (*at[:batch], *found, *at[indices.rank - 1 :]), guard)


def _is_proved(node: Node) -> bool:
    return node.attrs.get("proved", False)


def _pack(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    """[.., C, ..] -> [.., ceil(C / block), .., block]; lanes beyond C are 0."""
    (source,) = node.inputs
    axis, block = node.attrs["axis"], node.attrs["block"]
    *outer, lane = at
    channel = outer[axis] * block + lane
    inside = self.within(channel, source.shape[axis])
    outer[axis] = channel
    element = self.value(source, tuple(outer), self.guarded(guard, inside))
    return element if inside is None else select(inside, element, const(0, source.dtype))


def _unpack(self: Inliner, node: Node, at: Shape, guard: Expr | None) -> Expr:
    axis, block = node.attrs["axis"], node.attrs["block"]
    outer = list(at)
    lane = dims.mod(outer[axis], block, self.ranges)
    outer[axis] = dims.floordiv(outer[axis], block, self.ranges)
    return self.value(node.inputs[0], (*outer, lane), guard)


_RULES: dict[str, Callable[[Inliner, Node, Shape, Expr | None], Expr]] = {
    "map": _map,
    "convert": _convert,
    "bitcast": _bitcast,
    "constant": _constant,
    "dim": _dim,
    "iota": _iota,
    "broadcast": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "pad": _pad,
    "concat": _concat,
    "pack": _pack,
    "unpack": _unpack,
    "gather": _gather,
    "gather_elements": _gather_elements,
    "gather_nd": _gather_nd,
}
INLINABLE = frozenset(_RULES)
