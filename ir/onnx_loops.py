"""Building core ``loop`` nodes from a Python function that describes one turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tcompile.ir import dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Dim, DimLike
from tcompile.ir.graph import Value
from tcompile.ir.onnx_builder import ImportBuilder
from tcompile.ir.terms import Term

# turn(counter, carried, captures) -> (carried of the next turn, elements to stack)
Turn = Callable[[DimLike, list[Term], list[Term]], tuple[Sequence[Term], Sequence[Term]]]
# the same, and whether to go on
EndingTurn = Callable[[DimLike, list[Term], list[Term]], tuple[Sequence[Term], Sequence[Term], Term | None]]


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
    return _loop(b, trip, carried, captures, lambda *args: (*turn(*args), None))


def loop_while(
    b: ImportBuilder, trip: DimLike, carried: Sequence[Term], captures: Sequence[Term | None], turn: EndingTurn
) -> tuple[list[Term], list[Term]]:
    """As ``counted_loop``, but ends early where a turn's condition is false; the stacks have a new symbol as extent."""
    return _loop(b, trip, carried, captures, turn)


def _loop(
    b: ImportBuilder, trip: DimLike, carried: Sequence[Term], captures: Sequence[Term | None], turn: EndingTurn
) -> tuple[list[Term], list[Term]]:
    counter = loop_counter(b, trip)
    region = b.region("turn")
    region.input("iteration", dtypes.I64, ())
    inner = [Term(region, region.input(f"carried{k}", value.dtype, value.shape)) for k, value in enumerate(carried)]
    outer = [value.value for value in captures if value is not None and b.constant_of(value.value) is None]
    within = [None if value is None else _inside(b, region, value.value) for value in captures]
    finals, elements, going = turn(counter, inner, within)
    finals = [final.reshape(*start.shape) for final, start in zip(finals, carried, strict=True)]
    condition = region.constant(True) if going is None else going.value
    body = region.graph([condition, *(term.value for term in (*finals, *elements))])
    attrs = {
        "carried": len(carried), "trip": trip, "counter": str(counter), "always": going is None, "scans": len(elements),
        "scan_extent": trip if going is None else b.fresh_symbol("turns", 0, trip), "shape_symbols": (),
    }  # fmt: skip
    operands = [b.dim(trip), b.constant(True), *(term.value for term in carried), *outer]
    terms = [Term(b, value) for value in b.emit_all("loop", operands, attrs, (body,))]
    return terms[: len(carried)], terms[len(carried) :]


def _inside(b: ImportBuilder, region: ImportBuilder, value: Value) -> Term:
    array = b.constant_of(value)
    return Term(region, region.input(value.name, value.dtype, value.shape) if array is None else region.constant(array))


def branch(condition: Term, captures: Sequence[Term], then: Callable[..., Term], otherwise: Callable[..., Term]) -> Term:
    """A core ``if`` on a scalar; both functions get the captures inside their region. Extents that differ become symbols."""
    b = condition.b
    regions = []
    for name, function in (("then", then), ("otherwise", otherwise)):
        region = b.region(name)
        inner = [Term(region, region.input(value.value.name, value.dtype, value.shape)) for value in captures]
        regions.append(region.graph([function(*inner).value]))
    shapes = (region.outputs[0].shape for region in regions)
    unlike = [axis for axis, (x, y) in enumerate(zip(*shapes, strict=True)) if x != y]
    symbols = tuple((0, axis, str(b.fresh_symbol("branch"))) for axis in unlike)
    operands = [condition.value, *(value.value for value in captures)]
    (result,) = b.emit_all("if", operands, {"shape_symbols": symbols}, regions)
    return Term(b, result)


def loop_counter(b: Builder, trip: DimLike | None) -> Dim:
    """A symbol for the number of a turn."""
    last = 0 if trip == 0 else None if trip is None else trip - 1  # of no turns the body is still a body
    counter = b.fresh_symbol("turn", 0, last)
    assert isinstance(counter, Dim)
    return counter
