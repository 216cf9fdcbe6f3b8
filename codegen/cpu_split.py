"""Tasks of a parallel loop: from the number of a task to its coordinates."""

from __future__ import annotations

from tcompile.codegen.access import unravel
from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import index_value
from tcompile.ir.dims import DimLike, Range, Shape


def split_task(nest: Nest, task: DimLike, shape: Shape) -> list[DimLike]:
    """The coordinates of a task, the last fastest, as variables: they are computed once."""
    found: list[DimLike] = []
    for i, extent in zip(unravel(task, shape, nest.ranges), shape, strict=True):
        simple = isinstance(i, int) or i == task
        found.append(i if simple else nest.let_index(index_value(i), Range(0, extent - 1)))
    return found
