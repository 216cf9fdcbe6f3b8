"""One kernel in the making: a root, the nodes evaluated inside its loops, and which elements each value is asked for.

The demand table maps a value to the set of index tuples at which the kernel evaluates it, in terms of the
variables of the root's loops. One tuple means the value is computed once per iteration; two mean recomputation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tcompile.ir import dims
from tcompile.ir.access import VIEWS, inlinable, iteration, operand_indices, result_index
from tcompile.ir.attention import Attention
from tcompile.ir.dims import Range, Shape
from tcompile.ir.graph import Node, Value
from tcompile.passes.fuse_costs import cost, estimate

RECOMPUTE_BUDGET = 4.0  # extra work per root element that a kernel may spend rather than write and read a buffer
MAX_MEMBERS = 64  # larger kernels gain nothing and compile slowly
CONTRACTIONS = {
    "dot_general": "dot", "dot_packed": "dot", "conv_blocked": "conv", "depthwise_blocked": "conv", "conv_stem": "conv",
    "conv_winograd": "conv", "conv_strassen": "conv", "conv_winograd_whole": "conv", "dot_interleaved": "dot", "conv_interleaved": "conv",
    "conv_bytes": "conv", "conv_pointwise": "conv",
}  # fmt: skip

PLAIN_CONTRACTIONS = {**CONTRACTIONS, "conv": "conv"}  # where convolutions keep ONNX's layout

BORDER_WRITERS = frozenset(CONTRACTIONS) - {"dot_general", "dot_packed", "dot_interleaved", "conv_pointwise"}


class Kind(StrEnum):
    """What the loops of a kernel look like; SINGLE is a node left as it is. ATTENTION is a DOT whose left operand is made in the kernel."""

    MAP = "map"
    ROWS = "rows"
    DOT = "dot"
    ATTENTION = "attention"
    CONV = "conv"
    SINGLE = "single"


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What groups know of their graph: attentions by the product that each ends in, and the broadcasts of scalars.

    ``contractions`` are the ops that templates make kernels around, and the kind of each; ``borders`` are the pads around results
    of contractions whose kernels write the border too.
    """

    attentions: Mapping[Node, Attention]
    splats: frozenset[Value]
    contractions: Mapping[str, str] = field(default_factory=lambda: CONTRACTIONS)
    borders: frozenset[Node] = frozenset()


@dataclass(eq=False)
class Group:
    """The members of one kernel, found from the root upwards. ``demand`` indices use variables o0.. (output), c0.. (row) and k0.. (dot)."""

    root: Node
    kind: Kind
    symbols: dict[str, Range]
    around: Surroundings
    members: list[Node] = field(default_factory=list)  # the root first, producers after their users
    demand: dict[Value, set[Shape]] = field(default_factory=dict)
    anchor: Node | None = None
    attention: Attention | None = None
    masks: set[Value] = field(default_factory=set)  # what the scores of an attention are made of beside its product
    columns: Shape | None = None  # extents of the axes that a ROWS kernel reduces
    awaited: Node | None = None  # the contraction that a code in the kernel is made of, before it is the anchor
    before_anchor: set[Node] = field(default_factory=set)
    extra: float = 0.0

    def __post_init__(self) -> None:
        self.index, self.variables = iteration(self.root.outputs[0].shape, "o") if self.root.outputs else ((), {})
        self.ranges = {**self.symbols, **self.variables}
        if self.kind is not Kind.SINGLE:
            self._start()
        self._add(self.root)

    def _start(self) -> None:
        self.demand[self.root.output] = {self.index}
        if self.kind is Kind.MAP:
            self._ask_operands(self.root)
        elif self.kind is Kind.ROWS:
            self._start_rows(self.root)
        else:
            self._start_anchor(self.root)

    # Joining ------------------------------------------------------------------------------------------

    def absorb(self, node: Node) -> bool:
        """Takes a node all of whose uses this kernel evaluates, if that is legal and worth it; tells whether it did."""
        if self.kind is Kind.SINGLE or len(self.members) >= MAX_MEMBERS:
            return False
        if inlinable(node):
            view = self._feeds_anchor(node) and node.output not in self.around.splats
            joined = self._absorb_view(node) if view else self._absorb_expression(node)
        elif node.op == "reduce":
            joined = self._absorb_reduction(node)
        else:
            joined = is_contraction(node, self.around.contractions) and self._absorb_contraction(node)
        if joined:
            self._add(node)
        return joined

    def _add(self, node: Node) -> None:
        self.members.append(node)
        if self.attention is not None and node is self.attention.second:
            self.members.extend(reversed(self.attention.members))

    def can_repeat(self, node: Node) -> bool:
        """Whether this kernel could evaluate a cheap node that others evaluate too."""
        if self.kind is Kind.SINGLE or len(self.members) >= MAX_MEMBERS or self._feeds_anchor(node):
            return False
        return self.extra + self._recompute_cost(node) <= RECOMPUTE_BUDGET

    def _feeds_anchor(self, node: Node) -> bool:
        return any(node.output in member.inputs for member in self._anchored())

    def _anchored(self) -> set[Node]:
        anchors = {self.anchor} if self.anchor else set()
        return self.before_anchor | anchors | ({self.attention.first} if self.attention else set())

    def _absorb_expression(self, node: Node) -> bool:
        if node.output in self.masks:
            if cost(node) > 1.0:
                return False  # a mask that takes work, which each head would do again
            self.masks.update(node.inputs)
        extra = self._recompute_cost(node)
        if self.extra + extra > RECOMPUTE_BUDGET:
            return False
        self.extra += extra
        self._ask_operands(node)
        return True

    def _absorb_view(self, node: Node) -> bool:
        """A contraction reads its operands many times, so only what moves elements by affine indices is free there."""
        if self.anchor is None or not self._is_view(node):
            return False
        # a convolution reads its image by computed positions, its weights as they come
        weights = self.anchor.op == "conv" and node.op == "transpose" and node.output is not self.anchor.inputs[0]
        if self.anchor.op != "dot_general" and not weights:
            return False
        if any(node.output in member.inputs for member in self.members if member not in self._anchored()):
            return False
        asked = [pair for index in self.demand[node.output] for pair in operand_indices(node, index, self.ranges)]
        if not all(_affine(index) for _, index in asked):
            return False
        self.before_anchor.add(node)
        self._ask(asked)
        return True

    def _is_view(self, node: Node) -> bool:
        """Data movement; for attention, which copies its operands, also a scale."""
        if self.attention is not None and node.op == "map" and node.attrs["fn"] in ("mul", "div"):
            return node.inputs[1] in self.around.splats
        return node.op in VIEWS - {"pack", "unpack"}

    def _absorb_reduction(self, node: Node) -> bool:
        """A reduction over trailing axes, asked for once per row of the root."""
        if self.kind not in (Kind.MAP, Kind.ROWS) or not reduces_trailing(node):
            return False
        demand = self.demand[node.output]
        if len(demand) != 1:
            return False
        (row,) = demand
        extents = node.inputs[0].shape[node.output.rank :]
        if not self._is_row(row, node.output.shape, extents):
            return False
        self.kind, self.columns = Kind.ROWS, extents
        self._ask([(node.inputs[0], (*row, *self._column_index()))])
        return True

    def _is_row(self, row: Shape, shape: Shape, extents: Shape) -> bool:
        """Whether the root's loops are exactly this row's, or this row's followed by its columns'."""
        if self.columns is not None and self.columns != extents:
            return False
        variables = [str(i) for i in row if i != 0]
        own = list(self.variables)
        if variables != own[: len(variables)]:
            return False
        if dims.product(shape) != dims.product(self._root_extents(variables)):
            return False  # only some of the rows are asked for
        rest = own[len(variables) :]
        return not rest or self._root_extents(rest) == tuple(extent for extent in extents if extent != 1)

    def _root_extents(self, variables: list[str]) -> Shape:
        return tuple(self.root.outputs[0].shape[int(name.removeprefix("o."))] for name in variables)

    def _column_index(self) -> Shape:
        assert self.columns is not None
        inner = sum(extent != 1 for extent in self.columns)
        rest = list(self.variables)[-inner:] if inner else []
        if self._root_extents(rest) == tuple(extent for extent in self.columns if extent != 1):
            names = iter(rest)
            return tuple(0 if extent == 1 else dims.symbol(next(names)) for extent in self.columns)
        index, ranges = iteration(self.columns, "c")
        self.ranges.update(ranges)
        return index

    def _absorb_contraction(self, node: Node) -> bool:
        """A contraction whose every result this kernel consumes exactly once becomes the kernel's core."""
        if self.kind is not Kind.MAP or len(self.demand[node.output]) != 1 or not self._epilogue_is_bijective(node):
            return False
        self._start_anchor(node)
        return True

    def _epilogue_is_bijective(self, anchor: Node) -> bool:
        index, ranges = iteration(anchor.output.shape, "a")
        ranges = {**self.symbols, **ranges}
        places: dict[Value, Shape] = {anchor.output: index}
        for member in reversed(self.members):
            sources = {places[value] for value in member.inputs if value in places}
            if not sources:
                continue
            place = result_index(member, sources.pop(), ranges)
            if sources or place is None or (member.op == "pad" and not self._writes_border(member, anchor)):
                return False
            places[member.output] = place
        root = self.root.output
        return root in places and _contiguous(places[root], root.shape, index)

    def _writes_border(self, pad: Node, anchor: Node) -> bool:
        """Whether the anchor's kernel can write the border: a blocked convolution, around its spatial axes, as its last step."""
        return pad is self.root and is_border(pad, anchor)

    # Starting -----------------------------------------------------------------------------------------

    def _start_rows(self, node: Node) -> None:
        self.columns = node.inputs[0].shape[node.output.rank :]
        self._ask([(node.inputs[0], (*self.index, *self._column_index()))])

    def _start_anchor(self, node: Node) -> None:
        self.kind, self.anchor = Kind(self.around.contractions[node.op]), node
        if node in self.around.attentions:
            self._start_attention(self.around.attentions[node])
        elif node.op == "dot_general":
            self._ask(list(zip(node.inputs, self._dot_indices(node), strict=True)))
        else:
            self._ask([(operand, iteration(operand.shape, f"w{k}")[0]) for k, operand in enumerate(node.inputs)])

    def _start_attention(self, found: Attention) -> None:
        """The softmax and the product before it; the weights' index is that of the left operand."""
        self.kind, self.attention = Kind.ATTENTION, found
        self._ask(list(zip(found.second.inputs, self._dot_indices(found.second), strict=True)))
        for node in reversed(found.members):
            for index in tuple(self.demand[node.output]):
                self._ask(self._asked(node, index))
        made = {node.output for node in found.members}
        self.masks = {value for node in found.members[1:] for value in node.inputs if value not in made}

    def _asked(self, node: Node, index: Shape) -> list[tuple[Value, Shape]]:
        """The operand elements that one element of a member of an attention is made of."""
        if node.op == "dot_general":
            return list(zip(node.inputs, self._dot_indices(node), strict=True))
        if node.op == "reduce":
            return [(node.inputs[0], (*index, dims.symbol("k0")))]
        return operand_indices(node, index, self.ranges)

    def _dot_indices(self, node: Node) -> list[Shape]:
        """The operands' indices; equal variables for axes that move together."""
        names: list[dict[int, str]] = [{}, {}]
        for group, letter in (("batch", "b"), ("contract", "k")):
            for number, axes in enumerate(zip(*node.attrs[group], strict=True)):
                for side, axis in enumerate(axes):
                    names[side][axis] = f"{letter}.{number}"
        found = []
        for side, operand in enumerate(node.inputs):
            index: list[dims.DimLike] = []
            for axis, extent in enumerate(operand.shape):
                name = names[side].get(axis, f"{'mn'[side]}.{axis}")
                self.ranges[name] = Range(0, extent - 1)
                index.append(0 if extent == 1 else dims.symbol(name))
            found.append(tuple(index))
        return found

    # Demand -------------------------------------------------------------------------------------------

    def _ask(self, pairs: list[tuple[Value, Shape]]) -> None:
        for value, index in pairs:
            self.demand.setdefault(value, set()).add(index)

    def _ask_operands(self, node: Node) -> None:
        for index in self.demand[node.output]:
            self._ask(operand_indices(node, index, self.ranges))

    def _recompute_cost(self, node: Node) -> float:
        """Extra work per root element against computing every element of the node's result once."""
        work = cost(node)
        if not work:
            return 0.0
        total = max(estimate(self.root.output.type.size, self.symbols), 1.0)
        evaluations = sum(self._evaluations(index) for index in self.demand[node.output])
        if self.root in self.around.borders:
            evaluations *= estimate(self.root.inputs[0].type.size, self.symbols) / total  # none for the border itself
        return work * max(evaluations - estimate(node.output.type.size, self.symbols), 0.0) / total

    def _evaluations(self, index: Shape) -> float:
        """How often an expression of these indices runs: once per turn of the innermost root loop that it depends on."""
        used = dims.shape_symbols(index)
        depth = max((k + 1 for k, name in enumerate(self.variables) if name in used), default=0)
        extents = [self.ranges[name].hi + 1 for name in list(self.variables)[:depth]]
        columns = [name for name in used if name not in self.variables and name in self.ranges and name.startswith("c.")]
        extents += [self.ranges[name].hi + 1 for name in columns]
        return estimate(dims.product(extents), self.symbols)


def is_contraction(node: Node, contractions: Mapping[str, str] = CONTRACTIONS) -> bool:
    """Whether a template makes a kernel around this node; others get naive loops of their own."""
    return node.op in contractions and all(value.dtype.bits >= 8 for value in node.inputs)


def is_border(pad: Node, anchor: Node) -> bool:
    """Whether the kernel of a contraction can write the border that a pad adds: a blocked convolution's, around its spatial axes."""
    low, high = pad.attrs["low"], pad.attrs["high"]
    outside = (0, 1, len(low) - 1)
    return anchor.op in BORDER_WRITERS and all(low[k] == 0 and high[k] == 0 for k in outside)


def is_code(node: Node) -> bool:
    """Whether a node makes narrow integers of floats: the last step of a quantised layer."""
    return node.op == "convert" and node.inputs[0].dtype.is_float and node.output.dtype.is_integer and node.output.dtype.bits <= 16


def reduces_trailing(node: Node) -> bool:
    """Whether a ``reduce`` goes over the last axes of its operand."""
    rank = node.inputs[0].rank
    axes = node.attrs["axes"]
    return bool(axes) and axes == tuple(range(rank - len(axes), rank))


def _affine(index: Shape) -> bool:
    return not any(isinstance(atom, dims.Call) for i in index if isinstance(i, dims.Dim) for monomial, _ in i.terms for atom in monomial)


def _contiguous(place: Shape, shape: Shape, index: Shape) -> bool:
    """Whether neighbours along the anchor's last axis stay neighbours in the root."""
    last = next((i for i in reversed(index) if i != 0), 0)
    if last == 0:
        return True
    flat: dims.DimLike = 0
    for i, extent in zip(place, shape, strict=True):
        flat = flat * extent + i
    parts = dims.linear(flat, str(last))
    return parts is not None and parts[0] == 1
