"""Problems of the ops that own regions: if, loop, fused."""

from __future__ import annotations

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dtypes import ALL, BOOL, F32, I64, DType
from tcompile.ir.graph import Value
from tests.problems.problem import Case, problem
from tests.problems.values import bits, numbers

NUMBERS = [dtype for dtype in ALL if dtype.kind != "b" and dtype != dtypes.F8E8M0]


def flags(case: Case) -> Value:
    """A condition that is one thing in one run and may be another in the next."""
    first = case.flag()
    return case.input(BOOL, (), lambda rng, kind, shape, run: np.asarray(first ^ bool(run)))


@problem("if", grows=[False, True])
def if_(case: Case, dtype: DType, grows: bool) -> None:
    """Branches that give results of one shape, or of two."""
    (n,) = case.shape(1)
    x, condition = case.operand(dtype, (n, 3), bits), flags(case)
    then, otherwise = case.builder.region("then"), case.builder.region("else")
    mine, theirs = (region.input("x", dtype, (n, 3)) for region in (then, otherwise))
    other = otherwise.concat([theirs, theirs], 0) if grows else otherwise.slice(theirs, (0, 2), (n, 3), (1, -1))
    symbols = ((0, 0, str(case.builder.fresh_symbol("joined"))),) if grows else ()
    regions = (then.graph([mine, then.dim((n, 2))]), otherwise.graph([other, otherwise.constant(np.array([5, 6]))]))
    case.emit("if", condition, x, regions=regions, shape_symbols=symbols)


def turn_count(case: Case, trips: list[int]) -> Value:
    """A number of turns that each run chooses."""
    return case.input(I64, (), lambda rng, kind, shape, run: np.asarray(trips[run], np.int64))


@problem("loop", NUMBERS, kind=["known", "counted", "stopped"])
def loop(case: Case, dtype: DType, kind: str) -> None:
    """A running sum with a scan of its states: of known length, of a length that the run tells, and one that its condition ends."""
    (n,) = case.shape(1)
    start, step = case.operand(dtype, (n,)), case.operand(dtype, (n,))
    trips = [case.integer(0, 5) for _ in range(2)]
    known = case.integer(0, 4) if kind == "known" else None
    trip = case.builder.constant(known, I64) if known is not None else turn_count(case, trips)
    body = case.builder.region("body")
    turn, state, more = body.input("turn", I64, ()), body.input("state", dtype, (n,)), body.input("step", dtype, (n,))
    going = body.map("lt", turn, body.constant(2, I64)) if kind == "stopped" else body.constant(np.array(True))
    after = body.map("add", state, more)
    region = body.graph([going, after, after])
    attrs = {
        "carried": 1,
        "trip": known,
        "counter": str(case.builder.fresh_symbol("turn")),
        "always": kind != "stopped",
        "scans": 1,
        "scan_extent": known if known is not None else case.builder.fresh_symbol("turns"),
    }
    case.emit("loop", trip, case.builder.constant(np.array(True)), start, step, regions=(region,), **attrs)


@problem("loop", body=["grows"])
def growing_loop(case: Case, dtype: DType, body: str) -> None:
    """What is carried gets longer with every turn."""
    (n,) = case.shape(1)
    x, trip = case.operand(dtype, (n, 2), bits), turn_count(case, [case.integer(0, 3), case.integer(3, 9)])
    inner, outer, counter = (case.builder.fresh_symbol(hint) for hint in ("before", "after", "turn"))
    region = case.builder.region("body")
    region.input("turn", I64, ())
    state, more = region.input("state", dtype, (inner, 2)), region.input("more", dtype, (n, 2))
    graph = region.graph([region.constant(np.array(True)), region.concat([state, more], 0)])
    attrs = {"carried": 1, "trip": None, "counter": str(counter), "always": True, "scans": 0}
    symbols = ((0, 0, str(inner), str(outer)),)
    case.emit("loop", trip, case.builder.constant(np.array(True)), x, x, regions=(graph,), shape_symbols=symbols, **attrs)


@problem("fused", NUMBERS, kind=["map", "rows"])
def fused(case: Case, dtype: DType, kind: str) -> None:
    """Elementwise chains with data movement, and rows with their reductions, as one kernel."""
    shape = case.shape(2)
    x, y = case.operand(dtype, shape), case.operand(dtype, shape[1:])
    region = case.builder.region(kind)
    a, b = region.input("a", dtype, shape), region.input("b", dtype, shape[1:])
    results = _chain(region, a, b) if kind == "map" else _rows(region, a, b)
    case.emit("fused", x, y, regions=(region.graph(results),), kind=kind)


def _chain(region: Builder, a: Value, b: Value) -> list[Value]:
    wide = region.emit("broadcast", b, shape=a.shape, axes=(1,))
    larger = region.map("max", a, wide)
    return [region.map("add", larger, wide), region.map("ge", a, wide)]


def _rows(region: Builder, a: Value, b: Value) -> list[Value]:
    highest = region.reduce("max", a, (1,), keepdims=True)
    wide = region.emit("broadcast", b, shape=a.shape, axes=(1,))
    below = region.map("min", region.broadcast_to(highest, a.shape), wide)
    return [below, region.reshape(highest, (a.shape[0],))]


@problem("fused", [F32], kind=["softmax"])
def softmax(case: Case, dtype: DType, kind: str) -> None:
    """The rows that most models have."""
    shape = case.shape(3)
    x, region = case.operand(dtype, shape, numbers), case.builder.region("rows")
    a = region.input("a", dtype, shape)
    shifted = region.map("sub", a, region.broadcast_to(region.reduce("max", a, (2,), keepdims=True), shape))
    e = region.map("exp", shifted)
    out = region.map("div", e, region.broadcast_to(region.reduce("add", e, (2,), keepdims=True), shape))
    case.emit("fused", x, regions=(region.graph([out]),), kind="rows")
