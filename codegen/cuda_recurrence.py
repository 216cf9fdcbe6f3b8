"""Recurrences on a GPU: a loop whose turns multiply what they carry with constant matrices (LSTM, GRU, RNN cells) as one kernel.

    cluster of blocks for each row of the batch:
        weights of the thread's columns into registers, once;  carried[0] = initial;  meet
        for each turn:
            sums of the thread's terms of its unit's columns;  the lanes of a unit add theirs by shuffles
            (products of products: a unit's element of the next left operand -> memory;  meet;  its sums)
            everything else of the unit -> carried[(turn + 1) % 2], stacks[turn];  meet
        finals = carried[turns % 2]

A row is independent of the others, so only the blocks that share it meet, which those of a cluster may do within a kernel. What is
carried lies in memory twice: a turn writes where none reads. Loops that want rows of their neighbours, or more weights than registers
hold, run turn by turn (``lower_control.py``). Source: Diamos et al., Persistent RNNs (2016).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tcompile.codegen.access import unravel
from tcompile.codegen.cuda_block import cluster_thread, lane_terms, meeting
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.inline import INLINABLE
from tcompile.codegen.loop_rewrite import substitute
from tcompile.codegen.scalar import both, cast, compare, const, index_value, op, select
from tcompile.codegen.templates import Built, template
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Shape, product
from tcompile.ir.dtypes import F32
from tcompile.ir.graph import Graph, Node, TensorType, Value
from tcompile.ir.loops import Access, Expr, For, Load, LoopKind, Op, Shuffle, Space
from tcompile.ir.ops import spec
from tcompile.ir.ops_contraction import free_axes
from tcompile.ir.ops_control import loop_scan_symbol
from tcompile.ir.target import GpuTarget, Target

LANES = 32
HELD = 64  # weights that a thread keeps
MOST_THREADS = 512  # of a block, so that each has registers for them
FEWEST_THREADS = 128  # of a block, before fewer blocks take a row
MOST_PHASES = 3  # products one behind the other in a turn
MOST_ROWS = 512  # rows of a batch from which products of whole matrices are better
_FIXED = ("reshape", "transpose", "convert", "broadcast")  # what may stand between a constant and a product


class _Unsuitable(Exception):
    """The loop is no such recurrence."""


@dataclass(frozen=True, eq=False)
class Sum:
    """One product that a unit needs: of which node, and at which index of its result beside the row."""

    dot: Node
    column: Shape

    @property
    def terms(self) -> int:
        """How many products it adds."""
        return self.dot.inputs[0].shape[self.dot.attrs["contract"][0][0]]


@dataclass(frozen=True)
class Plan:
    """Who computes what: ``blocks`` share a row, each with ``units`` of it, ``lanes`` threads for each unit."""

    blocks: int
    units: int
    lanes: int

    @property
    def threads(self) -> int:
        return self.units * self.lanes


class Cell:
    """A loop as a recurrence: its parts, checked as far as they can be without writing the kernel. Raises _Unsuitable."""

    def __init__(self, node: Node) -> None:
        self.node, (region,) = node, node.regions
        self.attrs: Mapping[str, Any] = spec("loop").complete(node.attrs)
        _need(self.attrs["always"] and self.attrs["trip"] is not None and loop_scan_symbol(self.attrs) is None)
        _need(not self.attrs["shape_symbols"] and not self.attrs["scan_symbols"])
        count = self.attrs["carried"]
        _need(count > 0)
        self.initial, self.captures = node.inputs[2 : 2 + count], node.inputs[2 + count :]
        self.iteration, self.inside, captured = region.inputs[0], region.inputs[1 : 1 + count], region.inputs[1 + count :]
        nodes, outputs = flattened(region)
        self.next, self.elements = outputs[1 : 1 + count], outputs[1 + count :]
        self.finals, self.stacks = node.outputs[:count], node.outputs[count:]
        self.producers = {value: one for one in nodes for value in one.outputs}
        self.dots = [one for one in nodes if one.op == "dot_general"]
        _need(bool(self.dots) and all(one.op in INLINABLE or one.op in ("dot_general", "constant") for one in nodes))
        *rows, self.units = self.inside[0].shape
        self.rows = product(rows)
        _need(isinstance(self.units, int) and not (isinstance(self.rows, int) and not 0 < self.rows <= MOST_ROWS))
        for value in (*self.inside, *self.next, *self.elements):
            self.place(value, 0, 0)
        self._layers: dict[Value, int] = {}
        self.phases = 1 + max(self.phase(dot) for dot in self.dots)
        _need(self.phases <= MOST_PHASES)
        for dot in self.dots:
            self._check(dot)
        kept = [one for one in nodes if one.op != "constant" or one.attrs["value"].size == 1]
        turn = Graph("turn", captured, (), kept)
        self.body = replace(node, op="fused", inputs=self.captures, attrs={"kind": "recurrence"}, regions=(turn,))

    def _check(self, dot: Node) -> None:
        """A product of f32 of something of the row with a matrix that no turn changes."""
        left, right = dot.inputs
        batch, contract = dot.attrs["batch"], dot.attrs["contract"]
        _need(batch == ((), ()) and len(contract[0]) == 1 and left.dtype == right.dtype == dot.output.dtype == F32)
        terms = left.shape[contract[0][0]]
        _need(isinstance(terms, int) and product(left.shape[k] for k in free_axes(left.rank, (), contract[0])) == self.rows)
        _need(self._is_fixed(right) and (self.phase(dot) == 0 or terms == self.units))

    def _is_fixed(self, value: Value) -> bool:
        made = self.producers.get(value)
        if made is None:
            return value not in self.inside and value is not self.iteration
        return made.op == "constant" or (made.op in _FIXED and all(map(self._is_fixed, made.inputs)))

    def phase(self, dot: Node) -> int:
        """How many products lie one behind the other before this one in a turn."""
        return self._products_before(dot.inputs[0])

    def _products_before(self, value: Value) -> int:
        if value not in self._layers:
            made = self.producers.get(value)
            behind = 0 if made is None else max(map(self._products_before, made.inputs), default=0)
            self._layers[value] = behind + (made is not None and made.op == "dot_general")
        return self._layers[value]

    def later(self) -> list[Node]:
        """The products of products, one for each left operand."""
        return list({dot.inputs[0]: dot for dot in self.dots if self.phase(dot) > 0}.values())

    def place(self, value: Value, row: DimLike, unit: DimLike) -> Shape:
        """The index of a unit of a row in something carried or stacked, whose axes are those of the rows, then those of the units."""
        shape = value.shape
        for axis in range(len(shape) + 1):
            if product(shape[:axis]) == self.rows and product(shape[axis:]) == self.units:
                return (*unravel(row, shape[:axis], {}), *unravel(unit, shape[axis:], {}))
        raise _Unsuitable


def flattened(region: Graph) -> tuple[list[Node], list[Value]]:
    """The nodes of a region, those of fused ones instead of these, and its outputs."""
    known: dict[Value, Value] = {}
    nodes: list[Node] = []

    def add(graph: Graph) -> None:
        for node in graph.nodes:
            node = replace(node, inputs=tuple(known.get(value, value) for value in node.inputs))
            if node.op != "fused":
                nodes.append(node)
                continue
            (inner,) = node.regions
            known.update(zip(inner.inputs, node.inputs, strict=True))
            add(inner)
            known.update((mine, known.get(value, value)) for mine, value in zip(node.outputs, inner.outputs, strict=True))

    add(region)
    return nodes, [known.get(value, value) for value in region.outputs]


def _need(holds: bool) -> None:
    if not holds:
        raise _Unsuitable


class _Turn:
    """The code of a turn in one draft: elements of the cell at a row and a unit."""

    def __init__(self, cell: Cell, scope: Scope) -> None:
        self.cell = cell
        self.draft = Draft("recurrence", cell.body, scope)
        self.nest = self.draft.nest
        counter = cell.attrs["counter"]
        self.draft.bind(cell.iteration, lambda at, guard: index_value(dims.symbol(counter)))
        self.row: DimLike = 0

    def sums(self, unit: DimLike) -> list[Sum]:
        """The products that a unit needs, by going through its elements once. Raises _Unsuitable."""
        found: dict[tuple[Value, Shape], Sum] = {}
        self.bind_carried(lambda k, at: const(0, self.cell.inside[k].dtype))

        def asked(dot: Node, column: Shape) -> Expr:
            found.setdefault((dot.output, column), Sum(dot, column))
            return const(0, F32)

        self.bind_sums(asked)
        with self.nest.nested():
            for value in (*self.cell.next, *self.cell.elements):
                self.draft.element(value, self.cell.place(value, self.row, unit))
            for dot in self.cell.later():
                self.draft.element(dot.inputs[0], self.left_index(dot, unit))
        self.draft.inliner.forget()
        return list(found.values())

    def number(self, hint: str, extent: DimLike) -> DimLike:
        """A variable of 0 .. extent - 1."""
        name = self.nest.fresh(hint)
        self.nest.ranges[name] = Range(0, extent - 1)
        return 0 if extent == 1 else dims.symbol(name)

    def bind_carried(self, load: Any) -> None:
        """Elements of what is carried are ``load(number, flat position in the row)``; those of other rows are unsuitable."""
        for k, value in enumerate(self.cell.inside):

            def at(indices: Shape, guard: Expr | None, k: int = k, value: Value = value) -> Expr:
                rows = next(n for n in range(value.type.rank + 1) if product(value.shape[:n]) == self.cell.rows)
                _need(indices[:rows] == unravel(self.row, value.shape[:rows], {}))
                flat: DimLike = 0
                for index, extent in zip(indices[rows:], value.shape[rows:], strict=True):
                    flat = flat * extent + index
                return load(k, flat)

            self.draft.bind(value, at)

    def bind_sums(self, asked: Any) -> None:
        """Products are ``asked(dot, column)``; those of other rows are unsuitable."""
        for dot in self.cell.dots:
            rows = dot.inputs[0].type.rank - 1

            def at(indices: Shape, guard: Expr | None, dot: Node = dot, rows: int = rows) -> Expr:
                _need(indices[:rows] == self.left_place(dot))
                return asked(dot, indices[rows:])

            self.draft.bind(dot.output, at)

    def left_place(self, dot: Node) -> Shape:
        """The row among the left operand's axes, without that of the terms."""
        left = dot.inputs[0]
        axes = [left.shape[k] for k in free_axes(left.rank, (), dot.attrs["contract"][0])]
        return unravel(self.row, axes, {})

    def left_index(self, dot: Node, term: DimLike) -> Shape:
        """Where a term of the row is in the left operand."""
        row, ((axis,), _) = self.left_place(dot), dot.attrs["contract"]
        return (*row[:axis], term, *row[axis:])


def plan(target: GpuTarget, units: int, terms: Sequence[int]) -> Plan | None:
    """Blocks and lanes for so many units of sums of so many terms; None where registers do not hold the weights."""
    lanes = next((n for n in (8, 16, 32) if sum(-(-count // n) for count in terms) <= HELD), None)
    if lanes is None:
        return None
    blocks = 1
    while blocks * 2 <= target.cluster and units * lanes >= FEWEST_THREADS * blocks * 2:
        blocks *= 2
    together = LANES // lanes
    made = Plan(blocks, -(-units // (blocks * together)) * together, lanes)
    return made if made.threads <= MOST_THREADS else None


class Recurrence(_Turn):
    """Writes the kernel."""

    def __init__(self, cell: Cell, scope: Scope, target: GpuTarget) -> None:
        super().__init__(cell, scope)
        trial = _Turn(cell, scope)
        trial.row = trial.number("r", cell.rows)
        sums = trial.sums(trial.number("u", cell.units))
        made = plan(target, cell.units, [one.terms for one in sums])
        if made is None or not sums:
            raise _Unsuitable
        self.plan = made
        self.states = [Value("carried", TensorType(value.dtype, (2, cell.rows, cell.units))) for value in cell.inside]
        self.lefts = {
            dot.inputs[0]: Value("left", TensorType(F32, (cell.rows, cell.units))) for dot in cell.later()
        }  # the operands of later products
        self.draft.tags["recurrence"] = f"{made.blocks}x{made.threads}, {made.lanes} lanes a unit"
        self.draft.flops = 2 * cell.rows * cell.units * cell.attrs["trip"] * sum(one.terms for one in sums)

    def write(self) -> Built:
        """The whole kernel."""
        nest, made = self.nest, self.plan
        with cluster_thread(nest, self.cell.rows, made.blocks, made.threads) as (self.row, block, thread):
            self._thread(thread, block * made.units)
        kernel, values = self.draft.finish()
        return Built(kernel, values, (*self.states, *self.lefts.values()))

    def _thread(self, thread: DimLike, first: DimLike) -> None:
        nest, cell, made, ranges = self.nest, self.cell, self.plan, self.nest.ranges
        self.lane = nest.let_index(index_value(dims.mod(thread, made.lanes, ranges)), Range(0, made.lanes - 1))
        number = first + dims.floordiv(thread, made.lanes, ranges)
        whole = made.blocks * made.units == cell.units
        inside = None if whole else nest.let(compare("lt", number, cell.units))
        self.unit = nest.let_index(index_value(number if whole else dims.minimum(number, cell.units - 1, ranges)), Range(0, cell.units - 1))
        self.mine = both(compare("eq", self.lane, 0), inside)
        self.needed = self.sums(self.unit)
        weights = {one: self._weights(one) for one in self.needed}
        with nest.branch(self.mine):
            for value, state in zip(cell.initial, self.states, strict=True):
                self._put(state, 0, self.draft.element(value, cell.place(value, self.row, self.unit)))
        self.nest.emit(meeting(self.plan.blocks))
        self._turns(weights)
        with nest.branch(self.mine):
            for value, state in zip(cell.finals, self.states, strict=True):
                slot = dims.mod(cell.attrs["trip"], 2, ranges)
                self.draft.store(value, cell.place(value, self.row, self.unit), self._state(state, slot, self.unit))

    # What is carried ----------------------------------------------------------------------------------

    def _position(self, slot: DimLike, unit: DimLike) -> DimLike:
        return (slot * self.cell.rows + self.row) * self.cell.units + unit

    def _state(self, state: Value, slot: DimLike, unit: DimLike) -> Expr:
        return Load(self.draft.write(state, Access.INOUT), (self._position(slot, unit),), state.dtype)

    def _put(self, state: Value, slot: DimLike, value: Expr) -> None:
        self.nest.store(self.draft.write(state, Access.INOUT), self._position(slot, self.unit), cast(value, state.dtype))

    # Sums ---------------------------------------------------------------------------------------------

    def _weights(self, one: Sum) -> str:
        """This lane's weights of a sum, in registers; 0 beyond the last term."""
        nest, right = self.nest, one.dot.inputs[1]
        held = nest.alloc(F32, (-(-one.terms // self.plan.lanes),), Space.REGISTER)
        (axis,) = one.dot.attrs["contract"][1]

        def load(place: DimLike, term: DimLike, guard: Expr | None) -> None:
            index = [*one.column[:axis], term, *one.column[axis:]]
            value = self.draft.element(right, tuple(index), guard)
            nest.store(held, place, value if guard is None else select(guard, value, const(0, F32)))

        lane_terms(nest, one.terms, self.plan.lanes, self.lane, load)
        return held

    def _sums(self, needed: list[Sum], weights: Mapping[Sum, str]) -> list[Expr]:
        """Products of a turn, the same in all lanes of a unit."""
        nest = self.nest
        lefts = {(one.dot.inputs[0], one.dot.attrs["contract"][0]): one for one in needed}
        held = {key: self._left(one) for key, one in lefts.items()}
        results = []
        for one in needed:
            theirs = held[one.dot.inputs[0], one.dot.attrs["contract"][0]]
            total = nest.alloc(F32, (1,), Space.REGISTER)
            nest.store(total, 0, const(0, F32))
            with nest.loop(-(-one.terms // self.plan.lanes), LoopKind.UNROLLED) as k:
                factors = Load(weights[one], (k,), F32), Load(theirs, (k,), F32)
                nest.store(total, 0, Op("fma", (*factors, Load(total, (0,), F32)), F32))
            results.append(nest.let(Load(total, (0,), F32)))
        distance = self.plan.lanes // 2
        while distance:
            results = [nest.let(op("add", value, Shuffle(value, distance))) for value in results]
            distance //= 2
        return results

    def _left(self, one: Sum) -> str:
        """This lane's terms of a left operand."""
        nest, left = self.nest, one.dot.inputs[0]
        held = nest.alloc(F32, (-(-one.terms // self.plan.lanes),), Space.REGISTER)

        def load(place: DimLike, term: DimLike, guard: Expr | None) -> None:
            if left in self.lefts:
                buffer = self.draft.write(self.lefts[left], Access.INOUT)
                value: Expr = Load(buffer, (self.row * self.cell.units + term,), F32, guard)
            else:
                value = self.draft.element(left, self.left_index(one.dot, term), guard)
            nest.store(held, place, value if guard is None else select(guard, value, const(0, F32)))

        lane_terms(nest, one.terms, self.plan.lanes, self.lane, load)
        return held

    # Turns --------------------------------------------------------------------------------------------

    def _turns(self, weights: Mapping[Sum, str]) -> None:
        nest, cell, ranges = self.nest, self.cell, self.nest.ranges
        counter, turn = cell.attrs["counter"], nest.fresh("i")
        ranges[turn] = Range(0, cell.attrs["trip"] - 1)
        ranges[counter] = ranges[turn]
        now = dims.symbol(counter)
        with nest.nested() as body:
            slot, after = (nest.let_index(index_value(dims.mod(now + k, 2, ranges)), Range(0, 1)) for k in range(2))
            self.bind_carried(lambda k, at: self._state(self.states[k], slot, at))
            sums: dict[tuple[Value, Shape], Expr] = {}
            self.bind_sums(lambda dot, column: sums[dot.output, column])
            for phase in range(cell.phases):
                self._put_lefts(phase)
                needed = [one for one in self.needed if cell.phase(one.dot) == phase]
                for one, value in zip(needed, self._sums(needed, weights), strict=True):
                    sums[one.dot.output, one.column] = value
            self._results(after)
            nest.emit(meeting(self.plan.blocks))
        nest.emit(For(turn, cell.attrs["trip"], substitute(tuple(body), {counter: dims.symbol(turn)}, ranges)))

    def _put_lefts(self, phase: int) -> None:
        """The unit's element of the operands that a phase after the first multiplies."""
        nest, mine = self.nest, [dot for dot in self.cell.later() if self.cell.phase(dot) == phase]
        for dot in mine:
            left = dot.inputs[0]
            value = nest.let(self.draft.element(left, self.left_index(dot, self.unit)))
            with nest.branch(self.mine):
                nest.store(self.draft.write(self.lefts[left], Access.INOUT), self.row * self.cell.units + self.unit, value)
        if mine:
            nest.emit(meeting(self.plan.blocks))

    def _results(self, after: DimLike) -> None:
        """Everything behind the sums. All lanes compute it: what it loads is then on its way while they add their terms."""
        nest, cell = self.nest, self.cell
        made = {}
        for value in (*cell.next, *cell.elements):
            if value not in made:
                made[value] = nest.let(self.draft.element(value, cell.place(value, self.row, self.unit)))
        position = (dims.symbol(cell.attrs["counter"]) * cell.rows + self.row) * cell.units + self.unit
        with nest.branch(self.mine):
            for value, state in zip(cell.next, self.states, strict=True):
                self._put(state, after, made[value])
            for value, stack in zip(cell.elements, cell.stacks, strict=True):
                nest.store(self.draft.write(stack), position, made[value])


@template("loop", "cuda")
def recurrence(node: Node, scope: Scope, target: Target) -> list[Draft | Built] | None:
    """A recurrence's kernel; None for other loops, and for those whose weights no registers hold."""
    assert isinstance(target, GpuTarget), target
    try:
        return [Recurrence(Cell(node), scope, target).write()]
    except _Unsuitable:
        return None
