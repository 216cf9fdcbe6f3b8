"""Problems of the ops that move elements: every bit must arrive."""

from __future__ import annotations

from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import DType
from tcompile.ir.ops_movement import PAD_MODES
from tests.problems.problem import RUNS, Case, problem
from tests.problems.values import bits


@problem("broadcast")
def broadcast(case: Case, dtype: DType) -> None:
    """Axes kept, stretched, or left to the run: a symbol that is 1 or the output's extent."""
    shape = case.shape()
    kept = [axis for axis in range(len(shape)) if case.flag(0.7)]
    source = [_stretched(case, shape[axis]) for axis in kept]
    x = case.operand(dtype, source, bits)
    for extent in shape:
        if dims.symbols(extent):
            case.operand(dtype, (extent,))
    case.emit("broadcast", x, shape=shape, axes=tuple(kept))


def _stretched(case: Case, extent: DimLike) -> DimLike:
    pick = case.integer(0, 3)
    if pick == 0:
        return 1
    return case.symbol([case.choice((1, case.value(extent, run))) for run in range(RUNS)]) if pick == 1 else extent


@problem("reshape")
def reshape(case: Case, dtype: DType) -> None:
    """Axes merged and split."""
    a, b, c = case.shape(3)
    x = case.operand(dtype, (a, b * 2, c), bits)
    case.emit("reshape", x, shape=case.choice([(a * b, 2, c), (a * b * c * 2,), (1, a, 2, b, c, 1), (2, c, a * b), (a, b * c, 2)]))


@problem("transpose")
def transpose(case: Case, dtype: DType) -> None:
    """Any permutation."""
    shape = case.shape()
    case.emit("transpose", case.operand(dtype, shape, bits), perm=tuple(map(int, case.rng.permutation(len(shape)))))


@problem("slice")
def slice_(case: Case, dtype: DType) -> None:
    """Windows from the front, the back, backwards and of nothing."""
    shape = case.shape(case.integer(1, 3))
    parts = [_part(case, extent) for extent in shape]
    start, size, step = (tuple(part[k] for part in parts) for k in range(3))
    case.emit("slice", case.operand(dtype, shape, bits), start=start, size=size, step=step)


def _part(case: Case, extent: DimLike) -> tuple[DimLike, DimLike, int]:
    least = case.at_least(extent)
    if least < 1:
        return case.choice([(0, extent, 1), (extent - 1, extent, -1), (0, 0, 1)])
    step = case.integer(1, 3)
    first = case.integer(0, least - 1)
    whole = dims.floordiv(extent - first + step - 1, step)
    return case.choice([(first, whole, step), (extent - 1, extent, -1), (first, 1, step), (extent - 1 - first, case.integer(0, 1), -step)])


@problem("pad", mode=PAD_MODES)
def pad(case: Case, dtype: DType, mode: str) -> None:
    """Amounts longer than the axis among them."""
    shape = case.shape(case.integer(1, 3), 0 if mode == "constant" else 1)
    low, high = (tuple(case.choice((0, 0, 1, 2, 7, extent)) for extent in shape) for _ in range(2))
    fill = (case.operand(dtype, (), bits),) if mode == "constant" else ()
    case.emit("pad", case.operand(dtype, shape, bits), *fill, low=low, high=high, mode=mode)


@problem("concat", count=[1, 2, 3])
def concat(case: Case, dtype: DType, count: int) -> None:
    """Operands of other extents on the axis, none of them too."""
    shape = list(case.shape(case.integer(1, 3)))
    axis = case.integer(0, len(shape) - 1)
    operands = []
    for _ in range(count):
        shape[axis] = case.extent()
        operands.append(case.operand(dtype, shape, bits))
    case.emit("concat", *operands, axis=axis)
