"""The output transform of a Winograd convolution, Y = At M A, and what follows each result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tcompile.codegen.cpu_winograd_tiles import Planes, Square, along_row, down_columns, linear
from tcompile.ir.dims import DimLike
from tcompile.ir.loops import Expr, LoopKind, Op

if TYPE_CHECKING:
    from tcompile.codegen.cpu_winograd import WinogradConv


def transform_output(
    conv: WinogradConv, image: DimLike, m: Planes, first: DimLike, count: DimLike, lowest: DimLike, members: DimLike
) -> None:
    """Results of ``members`` output blocks from the ``lowest``, for ``count`` tiles from the ``first``."""
    nest, form, lanes = conv.nest, conv.form, conv.lanes

    def formula(values: Sequence[Expr]) -> list[Expr]:
        return output_values(conv, values)

    with nest.loop(members) as member, nest.loop(count) as tile:
        origin = conv.tiles.origin(first + tile)
        rows, columns = (conv.tiles.inside(axis, at) for axis, at in enumerate(origin))
        with nest.loop(conv.per_block) as part:
            start = part * lanes

            def source(row: DimLike, column: DimLike, lane: DimLike) -> Expr:
                return m.load(row * form.inputs + column, member, tile, start + lane)

            def place(row: DimLike, column: DimLike, lane: DimLike) -> tuple[DimLike, ...]:
                steps = conv.core.attrs["dilation"]
                return (image, lowest + member, origin[0] + row * steps[0], origin[1] + column * steps[1], start + lane)

            between = down_columns(nest, formula, form.outputs, form.inputs, lanes, conv.dtype, source)
            if conv.epilogue.small and isinstance(columns, int):
                with nest.loop(rows) as row, nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
                    for column, value in enumerate(along_row(nest, formula, between, row, lane)[:columns]):
                        conv.epilogue.store(place(row, column, lane), value)
            else:
                y = Square(nest, conv.dtype, form.outputs, form.outputs, lanes)
                with nest.loop(form.outputs) as row, nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
                    for column, value in enumerate(along_row(nest, formula, between, row, lane)):
                        y.store(row, column, lane, value)
                with nest.loops((rows, columns)) as (row, column), nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
                    conv.epilogue.store(place(row, column, lane), y.load(row, column, lane))


def output_values(conv: WinogradConv, m: Sequence[Expr]) -> list[Expr]:
    """At m, from the sums and differences of the pairs of points."""
    nest, dtype, points = conv.nest, conv.dtype, [float(point) for point in conv.form.pairs]
    pairs = range(1, 2 * len(points), 2)
    sums = [nest.let(Op("add", (m[k], m[k + 1]), dtype), "s") for k in pairs]
    gaps = [nest.let(Op("sub", (m[k], m[k + 1]), dtype), "t") for k in pairs]
    results = []
    for row in range(conv.form.outputs):
        terms = [(point**row, value) for point, value in zip(points, gaps if row % 2 else sums, strict=True)]
        ends = [(1.0, m[0])] if row == 0 else [(1.0, m[-1])] if row == conv.form.outputs - 1 else []
        results.append(linear([*terms, *ends], dtype))
    return results
