"""Problems of the ops that fold axes."""

from __future__ import annotations

from tcompile.ir.dtypes import DType
from tcompile.ir.ops_reduction import FOLDS
from tests.problems.problem import Case, problem
from tests.problems.values import Fill, awkward, numbers

WINDOW_FOLDS = ("add", "max", "min", "mul")


def folds(dtype: DType, fn: str) -> bool:
    """Whether a fold takes a dtype."""
    return dtype.kind in FOLDS[fn].kinds


def values_for(fn: str) -> Fill:
    """Sums and products of awkward numbers say nothing; extremes and bits of them do."""
    return numbers if fn in ("add", "mul") else awkward


@problem("reduce", fn=FOLDS, where=folds)
def reduce(case: Case, dtype: DType, fn: str) -> None:
    """Any axes; the identity where they are empty."""
    shape = case.shape(case.integer(1, 4))
    axes = tuple(axis for axis in range(len(shape)) if case.flag())
    case.emit("reduce", case.operand(dtype, shape, values_for(fn)), fn=fn, axes=axes)


@problem("arg_reduce", fn=["max", "min"], last=[False, True])
def arg_reduce(case: Case, dtype: DType, fn: str, last: bool) -> None:
    """The first or last of equal extremes, NaN first of all."""
    shape = list(case.shape(case.integer(1, 3)))
    axis = case.integer(0, len(shape) - 1)
    shape[axis] = case.extent(1)
    case.emit("arg_reduce", case.operand(dtype, shape, awkward), fn=fn, axis=axis, last=last)


@problem("reduce_window", fn=WINDOW_FOLDS, where=folds)
def reduce_window(case: Case, dtype: DType, fn: str) -> None:
    """Windows with strides, dilations and borders on some axes."""
    rank = case.integer(1, 3)
    pick = lambda low, high: tuple(case.integer(low, high) for _ in range(rank))  # noqa: E731
    window, strides, dilation, low, high = pick(1, 3), pick(1, 3), pick(1, 2), pick(0, 2), pick(0, 2)
    least = [max(0, (k - 1) * d + 1 - a - b) for k, d, a, b in zip(window, dilation, low, high, strict=True)]
    shape = tuple(case.extent(n, among=(1, 2, 3, 5, 8, 13, n)) for n in least)
    case.emit(
        "reduce_window",
        case.operand(dtype, shape, values_for(fn)),
        fn=fn,
        window=window,
        strides=strides,
        dilation=dilation,
        low=low,
        high=high,
    )


@problem("cumulative", fn=WINDOW_FOLDS, where=folds)
def cumulative(case: Case, dtype: DType, fn: str) -> None:
    """Running folds from either end, with or without the own element."""
    shape = case.shape(case.integer(1, 3))
    x = case.operand(dtype, shape, values_for(fn))
    case.emit("cumulative", x, fn=fn, axis=case.integer(0, len(shape) - 1), exclusive=case.flag(), reverse=case.flag())
