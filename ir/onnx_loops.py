"""Building core ``loop`` nodes from a Python function that describes one turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tcompile.ir import dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Dim, DimLike
from tcompile.ir.graph import Graph, Value
from tcompile.ir.onnx_builder import ImportBuilder
from tcompile.ir.terms import Term

# turn(counter, carried, captures) -> (carried of the next turn, elements to stack)
Turn = Callable[[DimLike, list[Term], list[Term]], tuple[Sequence[Term], Sequence[Term]]]


def counted_loop(
    b: ImportBuilder, trip: DimLike, carried: Sequence[Term], captures: Sequence[Term | None], turn: Turn
) -> tuple[list[Term], list[Term]]:
    """Runs ``turn`` for counter 0 .. trip-1; returns the final carried values and the stacks (a new axis 0 of extent trip).

    Constants among the captures are made anew inside the region, where passes can see them. A single turn becomes
    plain nodes.
    """
    if trip == 1:
        finals, elements = turn(0, list(carried), list(captures))
        return list(finals), [element.expand(0) for element in elements]
    counter = loop_counter(b, trip)
    region = b.region("turn")
    region.input("iteration", dtypes.I64, ())
    inner = [Term(region, region.input(f"carried{k}", value.dtype, value.shape)) for k, value in enumerate(carried)]
    outer = [value.value for value in captures if value is not None and b.constant_of(value.value) is None]
    within = [None if value is None else _inside(b, region, value.value) for value in captures]
    finals, elements = turn(counter, inner, within)
    finals = [final.reshape(*start.shape) for final, start in zip(finals, carried, strict=True)]
    body = region.graph([region.constant(True), *(term.value for term in (*finals, *elements))])
    outputs = emit_loop(b, body, trip, [term.value for term in carried], outer, str(counter), len(elements))
    terms = [Term(b, value) for value in outputs]
    return terms[: len(carried)], terms[len(carried) :]


def _inside(b: ImportBuilder, region: ImportBuilder, value: Value) -> Term:
    array = b.constant_of(value)
    return Term(region, region.input(value.name, value.dtype, value.shape) if array is None else region.constant(array))


def loop_counter(b: Builder, trip: DimLike | None) -> Dim:
    """A symbol for the number of a turn."""
    counter = b.fresh_symbol("turn", 0, None if trip is None else trip - 1)
    assert isinstance(counter, Dim)
    return counter


def emit_loop(
    b: Builder, body: Graph, trip: DimLike, carried: Sequence[Value], captures: Sequence[Value], counter: str, scans: int
) -> tuple[Value, ...]:
    """A core loop of exactly ``trip`` turns."""
    attrs = {
        "carried": len(carried), "trip": trip, "counter": counter, "always": True, "scans": scans, "scan_extent": trip, "shape_symbols": (),
    }  # fmt: skip
    return b.emit_all("loop", [b.dim(trip), b.constant(True), *carried, *captures], attrs, (body,))
