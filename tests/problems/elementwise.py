"""Problems of ``map``: every function on every dtype it takes."""

from __future__ import annotations

from tcompile.ir import dtypes, elementwise
from tcompile.ir.dtypes import BOOL, DType
from tests.problems.problem import Case, problem
from tests.problems.values import awkward


def takes(dtype: DType, fn: str) -> bool:
    """Whether a function takes a dtype. What underflows has no value in f8e8m0, which has no zero: exact functions only."""
    row = elementwise.TABLE[fn]
    return row.takes(dtype) and not (row.wide and dtype == dtypes.F8E8M0)


@problem("map", fn=elementwise.TABLE, where=takes)
def map_(case: Case, dtype: DType, fn: str) -> None:
    """A function of operands of one shape."""
    shape = case.shape()
    kinds = [dtype] * elementwise.TABLE[fn].arity
    if fn == "where":
        kinds[0] = BOOL
    case.emit("map", *(case.operand(kind, shape, awkward) for kind in kinds), fn=fn)
