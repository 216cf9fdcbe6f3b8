"""Copies of a matrix in panels, for the micro-kernel: what is contiguous becomes a run of vectors, what is not goes through registers."""

from __future__ import annotations

from collections.abc import Callable

from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import compare, const
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.dtypes import F32
from tcompile.ir.loops import Expr, Load, LoopKind, Space
from tcompile.ir.loops_evaluate import postorder

Element = Callable[[DimLike, DimLike], Expr]


def pack_rows(nest: Nest, element: Element, terms: DimLike, columns: DimLike, width: int, lanes: int) -> str:
    """A buffer [panel][term][column of the panel] of ``element(term, column)``; columns of no element are zero."""
    panels = dims.ceildiv(columns, width, nest.ranges)
    packed = nest.alloc(F32, (panels * terms * width,))
    with nest.loop(panels) as panel:
        _copy_panel(nest, packed, panel, element, terms, columns, width, lanes)
    return packed


def pack_columns(nest: Nest, element: Element, columns: DimLike, terms: int, width: int, lanes: int) -> str:
    """A buffer [panel][term][column of the panel] of ``element(column, term)``.

    Panels without all their columns hold anything finite that some element is, or zero.
    """
    if _steps(nest, element, columns, terms, first=False) and terms % lanes == 0:
        panels = dims.ceildiv(columns, width, nest.ranges)
        packed = nest.alloc(F32, (panels * terms * width,))
        with nest.loop(panels) as panel:
            _turn_panel(nest, packed, panel, element, columns, terms, width, lanes)
        return packed
    return pack_rows(nest, lambda term, column: element(column, term), terms, columns, width, lanes)


def pack_panel(nest: Nest, packed: str, panel: DimLike, element: Element, columns: DimLike, terms: int, width: int, lanes: int) -> None:
    """Fills the buffer [term][column of the panel] with one panel of what ``pack_columns`` makes."""
    if _steps(nest, element, columns, terms, first=False) and terms % lanes == 0:
        _turn_panel(nest, packed, panel, element, columns, terms, width, lanes, place=0)
    else:
        _copy_panel(nest, packed, panel, lambda term, column: element(column, term), terms, columns, width, lanes, place=0)


def in_rows(nest: Nest, element: Element, terms: DimLike, columns: DimLike) -> bool:
    """Whether elements (term, column) lie together along columns, so that vectors of them load from where they are."""
    return _steps(nest, element, terms, columns, first=False)


def wide(extent: int, lanes: int) -> int:
    """Lanes of a copy of ``extent`` elements: a few registers at once, so that short rows take no loop."""
    width = lanes
    while width < 4 * lanes and extent % (2 * width) == 0:
        width *= 2
    return width


def _copy_panel(
    nest: Nest,
    packed: str,
    panel: DimLike,
    element: Element,
    terms: DimLike,
    columns: DimLike,
    width: int,
    lanes: int,
    place: DimLike | None = None,
) -> None:
    """``place``: which panel of the buffer it becomes, if not that of its number."""
    first = (panel if place is None else place) * terms

    def copy(count: DimLike | None) -> None:
        with nest.loop(terms) as term:
            place = (first + term) * width
            if count is not None:  # lanes of no column still take part in the arithmetic
                with nest.loop(width, LoopKind.VECTOR, lanes) as column:
                    nest.store(packed, place + column, const(0, F32))
            with nest.loop(width if count is None else count, LoopKind.VECTOR, wide(width, lanes) if count is None else lanes) as column:
                nest.store(packed, place + column, element(term, panel * width + column))

    if dims.mod(columns, width, nest.ranges) == 0:
        copy(None)
        return
    left = columns - panel * width
    with nest.branch(compare("ge", left, width)):
        copy(None)
    with nest.otherwise():
        copy(left)


def _turn_panel(
    nest: Nest,
    packed: str,
    panel: DimLike,
    element: Element,
    columns: DimLike,
    terms: int,
    width: int,
    lanes: int,
    place: DimLike | None = None,
) -> None:
    """Squares of ``lanes`` columns and terms: loaded along terms, stored along columns. Columns behind the last repeat it."""
    exact = dims.mod(columns, width, nest.ranges) == 0
    first = (panel if place is None else place) * terms
    with nest.loop(width // lanes) as group, nest.loop(terms // lanes) as block:
        square = nest.alloc(F32, (lanes, lanes), Space.REGISTER)
        start = panel * width + group * lanes
        for row in range(lanes):
            column = start + row if exact else dims.minimum(start + row, columns - 1, nest.ranges)
            with nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
                nest.store(square, (row, lane), element(column, block * lanes + lane))
        with nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
            for row in range(lanes):
                nest.store(packed, (first + block * lanes + row) * width + group * lanes + lane, Load(square, (lane, row), F32))


def _steps(nest: Nest, element: Element, columns: DimLike, terms: DimLike, *, first: bool) -> bool:
    """Whether an element's loads are contiguous along its first or its second index, and not along the other."""
    names = (nest.fresh("column"), nest.fresh("term"))
    for name, extent in zip(names, (columns, terms), strict=True):
        nest.ranges[name] = Range(0, extent - 1)
    with nest.nested():  # whatever it emits is dropped
        expr = element(*map(dims.symbol, names))
    loads = [node for node in postorder(expr) if isinstance(node, Load)]
    ours, theirs = names if first else reversed(names)
    return bool(loads) and all(_step(load, ours) == 1 != _step(load, theirs) for load in loads if _step(load, theirs) != 0)


def _step(load: Load, name: str) -> DimLike | None:
    parts = dims.linear(load.indices[0], name)
    return None if parts is None else parts[0]
