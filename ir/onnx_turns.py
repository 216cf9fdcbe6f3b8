"""Importing the body of an ONNX Loop or Scan as the region of a core ``loop``.

The types of carried values come from the body itself: it is imported with the initial types first; extents that
the body changes get symbols, values that it hands on unchanged become captures, and it is imported again until
nothing new is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from tcompile.ir import dims, dtypes, onnx_content
from tcompile.ir.dims import Dim, DimLike
from tcompile.ir.graph import Graph, Value
from tcompile.ir.onnx_builder import ImportBuilder
from tcompile.ir.onnx_context import Item, OpContext, Region
from tcompile.ir.onnx_induction import Induction, initial_count, known_scalar, probe, step_of
from tcompile.ir.onnx_loops import loop_counter

# arrange(region builder, counter as a value, carried values, whole sequences) -> the body's inputs
Arrange = Callable[[ImportBuilder, Value, list[Value], list[Value]], list[Item]]
_MAX_ROUNDS = 16


class Attempt:
    """The state of an import that may be undone: nodes, deferred constants, symbols and reports."""

    def __init__(self, ctx: OpContext) -> None:
        b, self._state = ctx.builder, ctx.scope.state
        self._builder = b
        self._nodes, self._deferred, self._symbols = len(b.nodes), set(b.deferred), dict(b.symbols)
        self._problems = len(self._state.problems)

    def undo(self, keep: Collection[str] = ()) -> None:
        """Forgets all that was imported since, but the symbols to keep."""
        b = self._builder
        del b.nodes[self._nodes :]
        b.deferred |= self._deferred
        for name in b.symbols.keys() - self._symbols.keys() - set(keep):
            del b.symbols[name]
        del self._state.problems[self._problems :], self._state.causes[self._problems :]


@dataclass(eq=False)
class Turn:
    """A body under import. ``initial`` are the outer values that it carries, ``wholes`` outer values that it slices itself.

    ``collect(outputs)`` picks the next carried values out of the body's outputs. ``certain`` says that exactly
    ``trip`` turns run; then counters are no longer carried, but expressions of the turn.
    """

    ctx: OpContext
    graph: str
    trip: DimLike | None
    initial: list[Value]
    wholes: list[Value]
    arrange: Arrange
    collect: Callable[[list[Item]], list[Item]]
    fixed: set[int] = field(default_factory=set)  # carried values that no turn changes
    # (carried, axis) -> the symbols of its extent at the start of a turn and after the loop
    changing: dict[tuple[int, int], tuple[Dim, Dim]] = field(default_factory=dict)
    certain: bool = False
    inductions: dict[int, Induction] | None = None  # the counters among the carried values, once they are looked for
    counter: Dim | None = None
    region: Region | None = None
    _probes: dict[int, Dim] = field(default_factory=dict)

    def run(self) -> None:
        """Imports until the types are stable. Raises UnsupportedError where they never are."""
        captures = self.ctx.captures(self.graph)
        if self.inductions is None:
            self._find_inductions(captures)
        if self.counter is not None:
            self.ctx.builder.symbols.pop(str(self.counter), None)
        self._outer = set(self.ctx.builder.symbols)
        self.counter = loop_counter(self.ctx.builder, self.trip)
        for _ in range(_MAX_ROUNDS):
            attempt = Attempt(self.ctx)
            self.region = self.ctx.import_region(self.graph, self._inputs, captures)
            if not self._learn():
                self._captures = captures
                return
            attempt.undo(keep={str(symbol) for pair in self.changing.values() for symbol in pair})
        self.ctx.fail("the shapes of the values that the loop carries do not settle")

    def _find_inductions(self, captures: Sequence[Value]) -> None:
        """Imports the body once with a symbol for each integer that may be a counter, and sees what becomes of it."""
        b, attempt = self.ctx.builder, Attempt(self.ctx)
        self.inductions, self._probes = {}, {}
        starts = {k: initial_count(b, value) for k, value in enumerate(self.initial)}
        starts = {k: start for k, start in starts.items() if start is not None}
        if not starts:
            return
        self._probes = {k: probe(b) for k in starts}
        self.counter = loop_counter(b, self.trip)
        self.region = self.ctx.import_region(self.graph, self._inputs, captures)
        outputs = self.collect(self.region.outputs)
        for k, symbol in self._probes.items():
            step = step_of(self.region.builder, outputs[k], symbol) if isinstance(outputs[k], Value) else None
            if step is not None:
                self.inductions[k] = Induction(starts[k], step)
        self._probes = {}
        attempt.undo(keep=set())

    def emit(self, trip: Value, going: Value, again: Value | None, scans: Sequence[Value], scan_extent: DimLike | None) -> list[Value]:
        """Appends the core loop; ``again`` is the body's condition (None: always true). Returns carried finals, then stacks."""
        rb, b = self.region.builder, self.ctx.builder
        outputs = self.collect(self.region.outputs)
        live = self.live
        body = self._body([again if again is not None else rb.constant(True), *(outputs[k] for k in live), *scans])
        attrs = {
            "carried": len(live), "trip": self.trip, "counter": str(self.counter), "always": again is None, "scans": len(scans),
            "scan_extent": scan_extent, "shape_symbols": self._shape_symbols(live), "scan_symbols": self._scan_symbols(scans),
        }  # fmt: skip
        extra = [value for k, value in enumerate(self.initial) if k in self.fixed and not self._is_known(value)]
        operands = [trip, going, *(self.initial[k] for k in live), *extra, *self.wholes, *self._captures]
        results = list(b.emit_all("loop", operands, attrs, (body,)))
        finals = [results.pop(0) if k in live else self._final(k) for k in range(len(self.initial))]
        return finals + results

    def _final(self, k: int) -> Value:
        """What a value that is not carried is after the loop."""
        value = self.initial[k]
        if k in self.fixed:
            return value
        return self.ctx.builder.known(known_scalar(self.inductions[k].after(self.trip), value.shape), value.dtype)

    @property
    def live(self) -> list[int]:
        """The carried values that turns change, but for counters that are known."""
        derived = self.inductions if self.certain else ()
        return [k for k in range(len(self.initial)) if k not in self.fixed and k not in derived]

    def _body(self, outputs: Sequence[Value]) -> Graph:
        return self.region.close(outputs)

    def _shape_symbols(self, live: Sequence[int]) -> tuple[tuple[int, int, str, str], ...]:
        place = {k: position for position, k in enumerate(live)}
        return tuple((place[k], axis, str(inner), str(outer)) for (k, axis), (inner, outer) in self.changing.items())

    def _scan_symbols(self, scans: Sequence[Value]) -> tuple[tuple[int, int, str], ...]:
        """A symbol for each extent of a scan's elements that only the body knows."""
        b = self.ctx.builder
        inside = b.symbols.keys() - self._outer
        axes = ((index, axis, extent) for index, value in enumerate(scans) for axis, extent in enumerate(value.shape))
        return tuple((index, axis, str(b.fresh_symbol("element"))) for index, axis, extent in axes if dims.symbols(extent) & inside)

    def _is_known(self, value: Value) -> bool:
        return onnx_content.is_known(self.ctx.builder.contents.get(value))

    def _inputs(self, rb: ImportBuilder) -> list[Item]:
        """Declares the region's inputs in the order of the operands: iteration, carried, fixed, wholes."""
        iteration = rb.input("iteration", dtypes.I64, ())
        rb.contents[iteration] = np.array(self.counter, object)
        self._carried: dict[int, Value] = {}
        for k in self.live:
            value = self.initial[k]
            shape = [self.changing[k, axis][0] if (k, axis) in self.changing else extent for axis, extent in enumerate(value.shape)]
            self._carried[k] = rb.input(value.name, value.dtype, shape)
            expr = self._probes.get(k) if k in self._probes else self._counted(k)
            if expr is not None:
                rb.contents[self._carried[k]] = known_scalar(expr, value.shape)
        for k in self.inductions.keys() - set(self.live) - self.fixed:
            value = self.initial[k]
            self._carried[k] = rb.known(known_scalar(self._counted(k), value.shape), value.dtype)
        for k in sorted(self.fixed):
            self._carried[k] = self._copy(rb, self.initial[k])
        wholes = [self._declare(rb, value) for value in self.wholes]
        return self.arrange(rb, iteration, [self._carried[k] for k in range(len(self.initial))], wholes)

    def _counted(self, k: int) -> DimLike | None:
        """A counter as an expression of the turn."""
        return self.inductions[k].after(self.counter) if k in self.inductions else None

    def _copy(self, rb: ImportBuilder, value: Value) -> Value:
        content = self.ctx.builder.contents.get(value)
        return rb.known(content, value.dtype) if onnx_content.is_known(content) else self._declare(rb, value)

    def _declare(self, rb: ImportBuilder, value: Value) -> Value:
        inner = rb.input(value.name, value.dtype, value.shape)
        content = self.ctx.builder.contents.get(value)
        if content is not None:
            rb.contents[inner] = content
        return inner

    def _learn(self) -> bool:
        """Compares what a turn hands on with what it was given; whether that changes how the body must be imported."""
        outputs = self.collect(self.region.outputs)
        fixed, changing = set(), set()
        for k in self.live:
            given, handed = self._carried[k], outputs[k]
            if not isinstance(handed, Value) or handed.dtype != given.dtype or handed.rank != given.rank:
                what = handed.type if isinstance(handed, Value) else type(handed).__name__
                self.ctx.fail(f"carried value {k} is {given.type} before a turn and {what} after it")
            if handed is given:
                fixed.add(k)
            pairs = enumerate(zip(given.shape, handed.shape, strict=True))
            changing.update((k, axis) for axis, (before, after) in pairs if before != after)
        new = changing - self.changing.keys()
        if not fixed and not new:
            return False
        self.fixed |= fixed
        for k, axis in sorted(new):
            hint = f"{self.initial[k].name}_{axis}"
            self.changing[k, axis] = tuple(_plain_symbol(self.ctx.builder, hint) for _ in range(2))
        self.changing = {key: pair for key, pair in self.changing.items() if key[0] not in self.fixed}
        return True


def _plain_symbol(b: ImportBuilder, hint: str) -> Dim:
    """A fresh symbol called after a value, whose name may hold characters that no symbol does."""
    text = "".join(c if c.isalnum() else "_" for c in hint)
    symbol = b.fresh_symbol(text if text[:1].isalpha() else f"d_{text}")
    assert isinstance(symbol, Dim)
    return symbol


def known_extent(ctx: OpContext, count: DimLike) -> DimLike:
    """A number of turns as an extent: not negative."""
    return dims.maximum(count, 0, ctx.builder.symbols)
