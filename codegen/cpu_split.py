"""Tasks of a parallel loop: from the number of a task to its coordinates."""

from __future__ import annotations

from tcompile.codegen.access import unravel
from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import index_value
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Shape


def split_task(nest: Nest, task: DimLike, shape: Shape) -> list[DimLike]:
    """The coordinates of a task, the last fastest, as variables: they are computed once."""
    found: list[DimLike] = []
    for i, extent in zip(unravel(task, shape, nest.ranges), shape, strict=True):
        simple = isinstance(i, int) or i == task
        found.append(i if simple else nest.let_index(index_value(i), Range(0, extent - 1)))
    return found


def even_share(nest: Nest, number: DimLike, count: DimLike, total: DimLike, size: int) -> tuple[DimLike, DimLike]:
    """The ``number``-th of ``count`` runs that ``total`` is cut into: its start and its length.

    Runs have near lengths; where ``total`` is symbolic all but the last have ``size``, which takes less arithmetic.
    """
    if isinstance(total, int) and isinstance(count, int) and count:
        if total % count:
            first, end = (nest.let_index(index_value(dims.floordiv(k * total, count)), Range(0, total)) for k in (number, number + 1))
            return first, end - first
        size = total // count
        return number * size, size
    return number * size, dims.minimum(size, total - number * size, nest.ranges)
