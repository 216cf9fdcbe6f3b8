"""The input transform of a Winograd convolution, V = Bt d B, and the zeros around the input: tiles that are not whole load what is
inside under masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tcompile.codegen.access import ravel
from tcompile.codegen.cpu_transformed_planes import Planes, along_row, combination, down_columns, linear
from tcompile.codegen.scalar import both, compare, within
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.loops import Expr, LoopKind

if TYPE_CHECKING:
    from tcompile.codegen.cpu_winograd import WinogradConv


def transform_input(conv: WinogradConv, image: DimLike, first: DimLike, count: DimLike, v: Planes) -> None:
    """Fills V for ``count`` tiles from the ``first``."""
    nest, steps = conv.nest, conv.dilation
    pieces, lows = (conv.form.pieces,) * conv.form.axes, conv.core.attrs["low"]
    with nest.loops((*pieces, conv.x.shape[1], count)) as (*piece, source, tile):
        taps = [number * conv.form.taps for number in piece]
        places = zip(conv.tiles.origin(first + tile), lows, taps, steps, strict=True)
        corner = tuple(at * conv.form.stride - low + tap * step for at, low, tap, step in places)
        block = ravel((*piece, source), (*pieces, conv.x.shape[1]))
        with nest.loop(conv.per_block) as part:
            start = part * conv.lanes

            def element(*place: DimLike, guard: Expr | None = None) -> Expr:
                *tap, lane = place
                position = [at + k * step for at, k, step in zip(corner, tap, steps, strict=True)]
                return conv.draft.element(conv.x, (image, source, *position, start + lane), guard)

            whole = _whole(conv, corner)
            if whole is None:
                _transform(conv, v, block, tile, start, element)
            else:
                with nest.branch(whole):
                    _transform(conv, v, block, tile, start, element)
                with nest.otherwise():
                    _transform(conv, v, block, tile, start, _masked(conv, corner, element))


def _transform(conv: WinogradConv, v: Planes, block: DimLike, tile: DimLike, start: DimLike, source) -> None:
    nest, size = conv.nest, conv.form.inputs

    def formula(d: Sequence[Expr]) -> list[Expr]:
        return input_values(conv, d)

    if conv.form.axes == 1:
        with nest.loop(conv.lanes, LoopKind.VECTOR, conv.lanes) as lane:
            loaded = [nest.let(source(k, lane), "d") for k in range(size)]
            for k, value in enumerate(formula(loaded)):
                v.store(k, block, tile, start + lane, value)
        return
    between = down_columns(nest, formula, size, size, conv.lanes, conv.dtype, source)
    with nest.loop(size) as row, nest.loop(conv.lanes, LoopKind.VECTOR, conv.lanes) as lane:
        for column, value in enumerate(along_row(nest, formula, between, row, lane)):
            v.store(row * size + column, block, tile, start + lane, value)


def _whole(conv: WinogradConv, corner: Shape) -> Expr | None:
    """Whether no input of a tile is outside; None where that is certain."""
    cond: Expr | None = None
    for at, extent, step in zip(corner, conv.x.shape[2:-1], conv.dilation, strict=True):
        last = at + (conv.form.inputs - 1) * step
        for place in (at, extent - 1 - last):
            if not dims.nonnegative(place, conv.nest.ranges):
                cond = both(cond, compare("ge", place, 0))
    return cond


def _masked(conv: WinogradConv, corner: Shape, element: Callable[..., Expr]) -> Callable[..., Expr]:
    """The inputs of a tile, zero where they are outside; those of each row have one mask."""

    def inside(axis: int, tap: DimLike) -> Expr | None:
        return within(corner[axis] + tap * conv.dilation[axis], conv.x.shape[2 + axis], conv.nest.ranges)

    conds = [inside(0, row) for row in range(conv.form.inputs)]
    rows = [cond if cond is None else conv.nest.let(cond, "inside") for cond in conds]

    def masked(row: int, *place: DimLike) -> Expr:
        guard = rows[row]
        for axis, tap in enumerate(place[:-1], 1):
            guard = both(guard, inside(axis, tap))
        return element(row, *place, guard=guard)

    return masked


def input_values(conv: WinogradConv, d: Sequence[Expr]) -> list[Expr]:
    """Bt d: the rows of points p and -p from their even and odd parts.

    The polynomial without -p is (x**2 + p x) Q(x**2) with Q the product of (x**2 - q**2) over the other pairs.
    """
    if conv.form.stride > 1:
        return _phase_values(conv, d)
    nest, dtype = conv.nest, conv.dtype
    squares = [float(point) ** 2 for point in conv.form.pairs]
    whole = _roots(squares)
    results = [linear([(c, d[2 * k]) for k, c in enumerate(whole)], dtype)]
    for number, point in enumerate(conv.form.pairs):
        others = _roots(squares[:number] + squares[number + 1 :])
        even = nest.let(linear([(c, d[2 * k + 2]) for k, c in enumerate(others)], dtype), "e")
        odd = nest.let(linear([(c, d[2 * k + 1]) for k, c in enumerate(others)], dtype), "o")
        results += [linear([(sign * float(point), odd), (1, even)], dtype) for sign in (1, -1)]
    return [*results, linear([(c, d[2 * k + 1]) for k, c in enumerate(whole)], dtype)]


def _phase_values(conv: WinogradConv, d: Sequence[Expr]) -> list[Expr]:
    """Bt d of a form with a stride: short combinations of a phase's inputs, or the inputs themselves."""
    return [combination(row, d, conv.dtype) for row in conv.form.input_matrix]


def _roots(roots: Sequence[float]) -> list[float]:
    """Coefficients, lowest first, of the monic polynomial with these roots."""
    poly = [1.0]
    for root in roots:
        poly = [up - root * same for up, same in zip([0.0, *poly], [*poly, 0.0], strict=True)]
    return poly
