"""Problems of the ops that read and write at indices, and of sort and compact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import BOOL, I32, DType
from tcompile.ir.graph import Value
from tcompile.ir.ops_indexing import COMBINERS
from tests.problems.folds import values_for
from tests.problems.problem import Case, problem
from tests.problems.values import awkward, bits, indices_below


def combines(dtype: DType, combiner: str) -> bool:
    """Whether a combiner takes a dtype."""
    return combiner == "set" or dtype.kind != "b"


@problem("gather")
def gather(case: Case, dtype: DType) -> None:
    """numpy.take along any axis, by indices of any rank."""
    shape = case.shape(case.integer(1, 3), 1)
    axis = case.integer(0, len(shape) - 1)
    indices = case.indices(case.shape(case.integer(0, 2)), shape[axis])
    case.emit("gather", case.operand(dtype, shape, bits), indices, axis=axis)


@problem("gather_nd", batch=[0, 1])
def gather_nd(case: Case, dtype: DType, batch: int) -> None:
    """Points, rows or blocks."""
    shape = case.shape(3, 1)
    depth = case.integer(0, 3 - batch)
    indices = _points(case, (*shape[:batch], *case.shape(case.integer(1, 2) - batch if batch else 1)), shape[batch : batch + depth])
    case.emit("gather_nd", case.operand(dtype, shape, bits), indices, batch=batch)


def _points(case: Case, shape: Sequence[DimLike], extents: Sequence[DimLike]) -> Value:
    """Indices [*shape, len(extents)], column k below extents[k]."""

    def fill(rng: np.random.Generator, kind: DType, got: tuple[int, ...], run: int) -> np.ndarray:
        columns = [indices_below(case.value(extent, run), rng, kind, got[:-1]) for extent in extents]
        return np.stack(columns, -1) if columns else np.zeros(got, kind.numpy)

    return case.input(I32, (*shape, len(extents)), fill)


@problem("gather_elements")
def gather_elements(case: Case, dtype: DType) -> None:
    """One index for each result; other axes of the indices may be shorter."""
    shape = case.shape(case.integer(1, 3), 1)
    axis = case.integer(0, len(shape) - 1)
    indices = case.indices(_shorter(case, shape, axis), shape[axis])
    case.emit("gather_elements", case.operand(dtype, shape, bits), indices, axis=axis)


def _shorter(case: Case, shape: Sequence[DimLike], axis: int) -> list[DimLike]:
    found = [case.choice((extent, case.integer(0, case.at_least(extent)))) for extent in shape]
    found[axis] = case.extent()
    return found


@problem("scatter_nd", combiner=COMBINERS, where=combines)
def scatter_nd(case: Case, dtype: DType, combiner: str) -> None:
    """Updates combined in order; the same point again and again."""
    shape = case.shape(case.integer(1, 3), 1)
    depth = case.integer(0, len(shape))
    points = case.shape(case.integer(0, 2))
    indices = _points(case, points, shape[:depth])
    x, updates = (case.operand(dtype, extents, values_for(combiner)) for extents in (shape, (*points, *shape[depth:])))
    case.emit("scatter_nd", x, indices, updates, combiner=combiner)


@problem("scatter_elements", combiner=COMBINERS, where=combines)
def scatter_elements(case: Case, dtype: DType, combiner: str) -> None:
    """Updates along an axis, in row-major order."""
    shape = case.shape(case.integer(1, 3), 1)
    axis = case.integer(0, len(shape) - 1)
    where = _shorter(case, shape, axis)
    indices = case.indices(where, shape[axis])
    x, updates = (case.operand(dtype, extents, values_for(combiner)) for extents in (shape, where))
    case.emit("scatter_elements", x, indices, updates, axis=axis, combiner=combiner)


@problem("sort", descending=[False, True])
def sort(case: Case, dtype: DType, descending: bool) -> None:
    """Keys that repeat, with payloads that tell whether the order is stable."""
    shape = case.shape(case.integer(1, 3))
    payloads = [case.operand(case.choice((dtype, I32)), shape, bits) for _ in range(case.integer(0, 2))]
    case.emit("sort", case.operand(dtype, shape, awkward), *payloads, axis=case.integer(0, len(shape) - 1), descending=descending)


@problem("compact", [BOOL], size=[0, 1, 40, 3000])
def compact(case: Case, dtype: DType, size: int) -> None:
    """The places of true elements, and how many they are."""
    case.emit("compact", case.operand(dtype, (case.choice((size, case.symbol([size, 7]))),)))
