"""ONNX control flow: If, Loop and Scan as the core ops ``if`` and ``loop``.

A branch or a number of turns that is known at import time leaves no control flow behind where that is simpler: a
known condition picks its branch, and a loop that carries sequences is unrolled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tcompile.ir import dims, dtypes
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import TensorType, Value
from tcompile.ir.onnx_builder import ImportBuilder
from tcompile.ir.onnx_context import GrowingSequence, Item, OpContext, OptionalValue, Region, SequenceValue, StackedSequence
from tcompile.ir.onnx_induction import count_turns
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.onnx_sequence import like, same_structure, tensors_of
from tcompile.ir.onnx_turns import Attempt, Turn, known_extent
from tcompile.ir.terms import Term

_MAX_UNROLLED = 512  # turns
_ENDLESS = 1 << 40  # a trip count from here on means "until the condition ends it"


# If -------------------------------------------------------------------------------------------------------------


@onnx_op("If")
def if_(ctx: OpContext) -> list[Item]:
    """If (opset 1, 11, 13, 16, 19, 21-25)."""
    known = ctx.constant(0)
    if known is not None:
        return ctx.inline("then_branch" if bool(known.reshape(-1)[0]) else "else_branch", [])
    b = ctx.builder
    captures = ctx.captures("then_branch", "else_branch")
    branches = [ctx.import_region(graph, (), captures) for graph in ("then_branch", "else_branch")]
    then, otherwise = branches
    for k, (ours, theirs) in enumerate(zip(then.outputs, otherwise.outputs, strict=True)):
        if not same_structure(ours, theirs):
            ctx.fail(f"output {k} of the branches differ in kind or in length")
    tensors = [[value for item in branch.outputs for value in tensors_of(ctx, item)] for branch in branches]
    squeezing = _squeezing_branch(branches, tensors)
    if squeezing is not None:
        return ctx.inline(("then_branch", "else_branch")[squeezing], [])
    tensors = _with_equal_ranks(branches, tensors)
    symbols = _output_symbols(ctx, *([value.type for value in values] for values in tensors))
    condition = b.reshape(ctx.input(0), ())
    regions = tuple(branch.close(values) for branch, values in zip(branches, tensors, strict=True))
    values = list(b.emit_all("if", [condition, *captures], {"shape_symbols": symbols}, regions))
    return [like(item, values) for item in then.outputs]


def _squeezing_branch(branches: Sequence[Region], tensors: Sequence[Sequence[Value]]) -> int | None:
    """Which branch only drops axes of extent 1 of the value that the other one hands on, where their ranks differ.

    PyTorch scripts ``x.squeeze(axis)`` as ``x.squeeze(axis) if x.shape[axis] == 1 else x``. A rank is no matter of the
    run here: the axis is squeezed, and the reshape stops a run in which its extent is not 1.
    """
    ranks = [[value.rank for value in values] for values in tensors]
    moves = [{node.op for node in branch.builder.nodes} for branch in branches]
    for k in (0, 1):
        fewer = all(a < b for a, b in zip(ranks[k], ranks[1 - k], strict=True))
        if fewer and moves[k] == {"reshape"} and not moves[1 - k]:
            return k
    return None


def _with_equal_ranks(branches: Sequence[Region], tensors: Sequence[Sequence[Value]]) -> list[list[Value]]:
    """A scalar where one branch gives a scalar and the other one a vector of one element, which broadcast alike."""
    result = [list(values) for values in tensors]
    for k, pair in enumerate(zip(*tensors, strict=True)):
        if {value.shape for value in pair} == {(), (1,)}:
            for values, branch, value in zip(result, branches, pair, strict=True):
                values[k] = branch.builder.reshape(value, ())
    return result


def _output_symbols(ctx: OpContext, ours: Sequence[TensorType], theirs: Sequence[TensorType]) -> tuple[tuple[int, int, str], ...]:
    """A symbol for each output extent on which the branches differ."""
    found = []
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.dtype != b.dtype or a.rank != b.rank:
            ctx.fail(f"output {k} of the branches is {a} and {b}", hint="fix input shapes so that the condition is known when compiling")
        for axis, (x, y) in enumerate(zip(a.shape, b.shape, strict=True)):
            if x != y:
                lo, hi = _hull(ctx.builder, x, y)
                found.append((k, axis, str(ctx.builder.fresh_symbol("branch", lo, hi))))
    return tuple(found)


def _hull(b: ImportBuilder, x: DimLike, y: DimLike) -> tuple[int, int | None]:
    """Constant bounds of two extents."""
    lows = [dims.lower_bound(extent, b.symbols) or 0 for extent in (x, y)]
    highs = [dims.upper_bound(extent, b.symbols) for extent in (x, y)]
    return max(min(lows), 0), None if None in highs else max(highs)


# Loop -----------------------------------------------------------------------------------------------------------


@onnx_op("Loop")
def loop(ctx: OpContext) -> list[Item]:
    """Loop (opset 1, 11, 13, 16, 19, 21-25).

    A loop that carries sequences is unrolled where the conditions of all its turns are known.
    """
    items = [ctx.item(k) for k in range(2, ctx.input_count)]
    trip = _trip(ctx)
    if not all(isinstance(item, Value) for item in items) and (trip is None or (isinstance(trip, int) and trip <= _MAX_UNROLLED)):
        attempt = Attempt(ctx)
        unrolled = _unrolled(ctx, trip, items)
        if unrolled is not None:
            return unrolled
        attempt.undo()
    return _Loop(ctx, trip, items).build()


def _trip(ctx: OpContext) -> DimLike | None:
    """The maximum number of turns, where it is known and bounds anything."""
    if not ctx.has(0):
        return None
    known = ctx.known(0)
    count = known[0] if isinstance(known, tuple) else known
    if count is None or (isinstance(count, int) and count >= _ENDLESS):
        return None
    return known_extent(ctx, count)


def _unrolled(ctx: OpContext, trip: int | None, carried: list[Item]) -> list[Item] | None:
    """The turns one after the other in the graph around; None where the condition of a turn is not known."""
    b, count = ctx.builder, len(carried)
    stacks: list[list[Value]] | None = None
    going = ctx.constant(1) if ctx.has(1) else np.array(True)
    turn = 0
    while trip is None or turn < trip:
        if going is None or turn == _MAX_UNROLLED:
            return None
        if not going.reshape(-1)[0]:
            break
        again, *outputs = ctx.inline("body", [b.dim(turn), b.known(np.array(True), dtypes.BOOL), *carried])
        going = b.constant_of(again)
        carried, elements = outputs[:count], outputs[count:]
        stacks = stacks or [[] for _ in elements]
        for stack, element in zip(stacks, elements, strict=True):
            stack.append(b.reshape(element, (1, *element.shape)))
        turn += 1
    if stacks is None and ctx.output_count > count:
        ctx.fail("a loop of no turns has scan outputs, whose shape nothing tells")
    return [*carried, *(b.concat(stack, 0) for stack in stacks or ())]


class _Loop:
    """One ONNX Loop as a core loop. Carried sequences may only grow at their ends: they become scan outputs."""

    def __init__(self, ctx: OpContext, trip: DimLike | None, items: list[Item]) -> None:
        self.ctx, self.items = ctx, items
        self.tensors = [k for k, item in enumerate(items) if isinstance(item, Value)]
        for item in items:
            if isinstance(item, OptionalValue):
                ctx.fail("a loop of an unknown number of turns carries an optional")
        self.turn = Turn(ctx, "body", trip, [items[k] for k in self.tensors], [], self._arrange, self._collect)

    def _arrange(self, rb: ImportBuilder, iteration: Value, carried: list[Value], wholes: list[Value]) -> list[Item]:
        values = dict(zip(self.tensors, carried, strict=True))
        items = [values.get(k, GrowingSequence((), getattr(item, "dtype", None))) for k, item in enumerate(self.items)]
        going = rb.known(np.array(True), dtypes.BOOL)  # a turn runs only where it is true
        return [iteration, going, *items]

    def _collect(self, outputs: list[Item]) -> list[Item]:
        return [outputs[1 + k] for k in self.tensors]

    def build(self) -> list[Item]:
        ctx, turn = self.ctx, self.turn
        start = ctx.constant(1) if ctx.has(1) else np.array(True)
        turn.run()
        if turn.inductions:
            turn.certain = self._count_turns(start)
            turn.run()
        rb, outputs = turn.region.builder, turn.region.outputs
        again = rb.constant_of(outputs[0])
        always = start is not None and bool(start.reshape(-1)[0]) and again is not None and bool(again.reshape(-1)[0])
        always = always or turn.certain
        if always and turn.trip is None and ctx.has(0):
            turn.trip = self._bound_trip()
        appended = {k: self._appended(rb, outputs[1 + k]) for k in range(len(self.items)) if k not in self.tensors}
        scans = [self._tensor(item) for item in outputs[1 + len(self.items) :]]
        extent = self._extent(always)
        going = ctx.builder.reshape(ctx.input(1), ()) if ctx.has(1) and not turn.certain else ctx.builder.constant(True)
        condition = None if always else rb.reshape(self._tensor(outputs[0]), ())
        results = turn.emit(self._trip_operand(), going, condition, [*appended.values(), *scans], extent)
        finals = dict(zip(self.tensors, results, strict=False))
        stacks = results[len(self.tensors) :]
        for k, stack in zip(appended, stacks, strict=False):
            finals[k] = self._grown(k, stack)
        return [*(finals[k] for k in range(len(self.items))), *stacks[len(appended) :]]

    def _count_turns(self, start: np.ndarray | None) -> bool:
        """Bounds the trip by the loop's conditions; returns whether just so many turns run."""
        turn, b = self.turn, self.ctx.builder
        if self.ctx.has(0) and turn.trip is None and self.ctx.known(0) is None:
            return False
        body, again = turn.region.builder, self._tensor(turn.region.outputs[0])
        constant = body.constant_of(again)
        if constant is not None and constant.reshape(-1)[0]:
            return turn.trip is not None and start is not None and bool(start.reshape(-1)[0])
        first = self.ctx.input(1) if self.ctx.has(1) else b.constant(True)
        turns = count_turns(b, first, body, again, turn.counter)
        if turns is None:
            return False
        turn.trip = turns.count if turn.trip is None else dims.minimum(turn.trip, turns.count, b.symbols)
        return turns.exact

    def _tensor(self, item: Item) -> Value:
        if not isinstance(item, Value):
            self.ctx.fail("the body of a loop hands on something that is no tensor")
        return item

    def _bound_trip(self) -> DimLike:
        """A run-time trip count as a symbol: the loop has no other end."""
        b = self.ctx.builder
        count = Term(b, self.ctx.input(0)).reshape().convert(dtypes.I64).map("max", 0)
        return b.bind_dim(count.value, "turns")

    def _trip_operand(self) -> Value:
        """The trip count; negative where only the condition ends the loop."""
        b, trip = self.ctx.builder, self.turn.trip
        if trip is not None:
            return b.dim(trip)
        known = self.ctx.known(0) if self.ctx.has(0) else _ENDLESS
        if known is not None:
            return b.constant(np.array(-1, np.int64))
        # a negative count runs no turn in ONNX, and has no end in the core op
        return Term(b, self.ctx.input(0)).reshape().convert(dtypes.I64).map("max", 0).value

    def _extent(self, always: bool) -> DimLike:
        """The number of turns as an extent: known, or a symbol that the loop binds."""
        trip = self.turn.trip
        if always and trip is not None:
            return trip
        return self.ctx.builder.fresh_symbol("turns", 0, trip)

    def _appended(self, rb: ImportBuilder, item: Item) -> Value:
        """What a turn appends to a sequence, as one scan element [count, ...]."""
        if not isinstance(item, GrowingSequence):
            self.ctx.fail("a loop changes a sequence otherwise than by appending to it")
        values = item.appended
        if not values or len({value.type for value in values}) > 1:
            self.ctx.fail("the turns of a loop append no tensor, or tensors of several types, to a sequence")
        return rb.concat([rb.reshape(value, (1, *value.shape)) for value in values], 0)

    def _grown(self, k: int, stack: Value) -> StackedSequence:
        """The sequence before the loop with all that the turns appended."""
        b, before = self.ctx.builder, self.items[k]
        turns, count, *shape = stack.shape
        joined = b.reshape(stack, (turns * count, *shape))
        if isinstance(before, StackedSequence):
            joined = b.concat([before.stack, joined], 0)
        elif isinstance(before, SequenceValue) and before.elements:
            rows = [b.reshape(self._tensor(element), (1, *element.shape)) for element in before.elements]
            joined = b.concat([*rows, joined], 0)
        return StackedSequence(joined)


# Scan -----------------------------------------------------------------------------------------------------------


@onnx_op("Scan", since=9)
def scan(ctx: OpContext) -> list[Value]:
    """Scan (opset 9, 11, 16, 19, 21-25): states, then sequences that the body gets one slice of per turn."""
    count = ctx.attr("num_scan_inputs")
    states = [ctx.input(k) for k in range(ctx.input_count - count)]
    wholes = [ctx.input(k) for k in range(ctx.input_count - count, ctx.input_count)]
    axes = [ctx.axis(axis, whole.rank) for axis, whole in zip(ctx.attr("scan_input_axes", None) or [0] * count, wholes, strict=True)]
    backwards = ctx.attr("scan_input_directions", None) or [0] * count
    results = _scan(ctx, states, wholes, axes, backwards)
    stacks = results[len(states) :]
    return [*results[: len(states)], *(_placed(ctx, k, stack, len(stacks)) for k, stack in enumerate(stacks))]


def _scan(ctx: OpContext, states: list[Value], wholes: list[Value], axes: Sequence[int], backwards: Sequence[int]) -> list[Value]:
    """Final states, and the outputs stacked on axis 0 in the order of the turns."""
    extents = [whole.shape[axis] for whole, axis in zip(wholes, axes, strict=True)]
    trip = next((extent for extent in extents if isinstance(extent, int)), extents[0])

    def arrange(rb: ImportBuilder, iteration: Value, carried: list[Value], inner: list[Value]) -> list[Item]:
        turn = rb.contents[iteration][()]
        slices = []
        for whole, axis, back in zip(inner, axes, backwards, strict=True):
            slices.append(Term(rb, whole).at(axis, trip - 1 - turn if back else turn).value)
        return [*carried, *slices]

    turn = Turn(ctx, "body", trip, states, wholes, arrange, lambda outputs: outputs[: len(states)], certain=True)
    turn.run()
    elements = turn.region.outputs[len(states) :]
    return turn.emit(ctx.builder.dim(trip), ctx.builder.constant(True), None, elements, trip)


def _placed(ctx: OpContext, k: int, stack: Value, count: int) -> Value:
    """A stack with its turns in the direction and on the axis that the node asks for."""
    term = Term(ctx.builder, stack)
    if (ctx.attr("scan_output_directions", None) or [0] * count)[k]:
        term = term.flip(0)
    axis = ctx.axis((ctx.attr("scan_output_axes", None) or [0] * count)[k], term.rank)
    order = [*range(1, term.rank)]
    order.insert(axis, 0)
    return term.transpose(*order).value


@onnx_op("Scan", since=8)
def scan_8(ctx: OpContext) -> list[Value]:
    """Scan (opset 8): sequence_lens, states and sequences with a batch axis in front, whose entries run one by one.

    An entry whose sequences are shorter gives zeros after its last turn.
    """
    b, count = ctx.builder, ctx.attr("num_scan_inputs")
    operands = [ctx.input(k) for k in range(1, ctx.input_count)]
    batch = operands[0].shape[0]
    if not isinstance(batch, int):
        ctx.fail("Scan of opset 8 with a symbolic batch", hint="convert the model to a newer opset")
    backwards = ctx.attr("directions", None) or [0] * count
    lengths = ctx.shape_operand(0, "length") if ctx.has(0) else [None] * batch
    rows = []
    for entry, length in zip(range(batch), lengths, strict=True):
        parts = [Term(b, value).at(0, entry) for value in operands]
        states, wholes = ([part.value for part in some] for some in (parts[:-count], parts[-count:]))
        if length is None:
            rows.append(_scan(ctx, states, wholes, [0] * count, backwards))
            continue
        cut = [part.part(0, 0, length).value for part in parts[-count:]]
        results = _scan(ctx, states, cut, [0] * count, backwards)
        longest = wholes[0].shape[0]
        rows.append([*results[: len(states)], *(_lengthened(b, stack, longest - length) for stack in results[len(states) :])])
    return [b.concat([b.reshape(value, (1, *value.shape)) for value in column], 0) for column in zip(*rows, strict=True)]


def _lengthened(b: ImportBuilder, stack: Value, missing: DimLike) -> Value:
    """A stack with zeros behind its last turn."""
    high, zero = (missing, *(0,) * (stack.rank - 1)), b.constant(0, stack.dtype)
    return b.emit("pad", stack, zero, low=(0,) * stack.rank, high=high, mode="constant")
