"""The output transform of a Winograd convolution, Y = At M A, and what follows each result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tcompile.codegen.cpu_transformed_planes import Patch, Planes, along_row, combination, down_columns, linear
from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import compare
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.loops import Expr, LoopKind, Op

if TYPE_CHECKING:
    from tcompile.codegen.cpu_winograd import WinogradConv


def transform_output(
    conv: WinogradConv, image: DimLike, m: Planes, first: DimLike, count: DimLike, lowest: DimLike, members: DimLike
) -> None:
    """Results of ``members`` output blocks from the ``lowest``, for ``count`` tiles from the ``first``."""
    with conv.nest.loop(members) as member, conv.nest.loop(count) as tile:
        origin = conv.tiles.origin(first + tile)
        with conv.nest.loop(conv.per_block) as part:
            write = _line if conv.form.axes == 1 else _square
            write(conv, m, member, tile, origin, (image, lowest + member), part * conv.lanes)


def _square(conv: WinogradConv, m: Planes, member: DimLike, tile: DimLike, origin: Shape, block: Shape, start: DimLike) -> None:
    """The results of one vector of channels of a tile of two axes; ``block`` is the image and the output block."""
    nest, form, lanes = conv.nest, conv.form, conv.lanes
    steps = conv.dilation
    rows, columns = (conv.tiles.inside(axis, at) for axis, at in enumerate(origin))

    def formula(values: Sequence[Expr]) -> list[Expr]:
        return output_values(conv, values)

    def source(row: DimLike, column: DimLike, lane: DimLike) -> Expr:
        return m.load(row * form.inputs + column, member, tile, start + lane)

    def place(row: DimLike, column: DimLike, lane: DimLike) -> Shape:
        return (*block, origin[0] + row * steps[0], origin[1] + column * steps[1], start + lane)

    between = down_columns(nest, formula, form.outputs, form.inputs, lanes, conv.dtype, source)

    def store(count: int) -> None:
        with nest.loop(rows) as row, nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
            for column, value in enumerate(along_row(nest, formula, between, row, lane)[:count]):
                conv.epilogue.store(place(row, column, lane), value)

    if conv.epilogue.small and (counts := conv.tiles.counts(1)):
        _for_each(nest, columns, counts, store)
    else:
        y = Patch(nest, conv.dtype, (form.outputs,) * 2, lanes)
        with nest.loop(form.outputs) as row, nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
            for column, value in enumerate(along_row(nest, formula, between, row, lane)):
                y.store(row, column, lane, value)
        with nest.loops((rows, columns)) as (row, column), nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
            conv.epilogue.store(place(row, column, lane), y.load(row, column, lane))


def _line(conv: WinogradConv, m: Planes, member: DimLike, tile: DimLike, origin: Shape, block: Shape, start: DimLike) -> None:
    """The same of a tile of one axis."""
    nest, form, lanes = conv.nest, conv.form, conv.lanes
    (step,) = conv.dilation
    count = conv.tiles.inside(0, origin[0])

    def place(column: DimLike, lane: DimLike) -> Shape:
        return (*block, origin[0] + column * step, start + lane)

    def results(lane: DimLike) -> list[Expr]:
        return output_values(conv, [nest.let(m.load(k, member, tile, start + lane), "m") for k in range(form.inputs)])

    def store(count: int) -> None:
        with nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
            for column, value in enumerate(results(lane)[:count]):
                conv.epilogue.store(place(column, lane), value)

    if counts := conv.tiles.counts(0):
        _for_each(nest, count, counts, store)
        return
    y = Patch(nest, conv.dtype, (form.outputs,), lanes)
    with nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
        for column, value in enumerate(results(lane)):
            y.store(column, lane, value)
    with nest.loop(count) as column, nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
        conv.epilogue.store(place(column, lane), y.load(column, lane))


def _for_each(nest: Nest, number: DimLike, known: Sequence[int], emit: Callable[[int], None]) -> None:
    """Runs ``emit(number)``, once for each of the one or two that it may be."""
    first, *others = known
    if not others:
        emit(first)
        return
    (other,) = others
    with nest.branch(compare("eq", number, first)):
        emit(first)
    with nest.otherwise():
        emit(other)


def output_values(conv: WinogradConv, m: Sequence[Expr]) -> list[Expr]:
    """At m, from the sums and differences of the pairs of points."""
    if conv.form.stride > 1:
        return [combination(row, m, conv.dtype) for row in conv.form.output_matrix]
    nest, dtype, points = conv.nest, conv.dtype, [float(point) for point in conv.form.pairs]
    pairs = range(1, 2 * len(points), 2)
    sums = [nest.let(Op("add", (m[k], m[k + 1]), dtype), "s") for k in pairs]
    gaps = [nest.let(Op("sub", (m[k], m[k + 1]), dtype), "t") for k in pairs]
    results = []
    for row in range(conv.form.outputs):
        factors = [conv.form.factor(k) for k in pairs]  # alike for a point and its negative
        terms = [(point**row * factor, value) for point, factor, value in zip(points, factors, gaps if row % 2 else sums, strict=True)]
        ends = [(conv.form.factor(0), m[0])] if row == 0 else [(1.0, m[-1])] if row == conv.form.outputs - 1 else []
        results.append(linear([*terms, *ends], dtype))
    return results
