"""Problems of the ops that make or bridge values."""

from __future__ import annotations

import numpy as np

from tcompile.ir import dims, dtypes
from tcompile.ir.dtypes import ALL, I64, U32, DType
from tests.problems.problem import Case, problem
from tests.problems.values import bits

NUMBERS = [dtype for dtype in ALL if dtype.kind != "b"]


@problem("constant")
def constant(case: Case, dtype: DType) -> None:
    """Weights that are returned as they are."""
    shape = tuple(case.extent(symbolic=0) for _ in range(case.integer(0, 3)))
    case.emit("constant", value=np.asarray(bits(case.rng, dtype, shape)))


@problem("dim", [I64], rank=[0, 1, 2])
def dim(case: Case, dtype: DType, rank: int) -> None:
    """Polynomials, quotients, remainders and extremes of extents."""
    (a, b), shape = (case.extent(1, symbolic=1) for _ in range(2)), (3, 2)[:rank]
    case.operand(dtypes.F32, (a, b))
    exprs = [a, a * b - 3, dims.floordiv(a * 7, 3), dims.mod(b * 5, 4), dims.minimum(a, b), dims.maximum(a - b, 2)]
    count = int(np.prod(shape))
    case.emit("dim", exprs=tuple(case.choice(exprs) for _ in range(count)), shape=shape)


@problem("bind_dim", [I64], low=[0, 3])
def bind_dim(case: Case, dtype: DType, low: int) -> None:
    """A value of the run becomes the extent of what follows."""
    sizes = [case.integer(low, 11) for _ in range(2)]
    scalar = case.input(I64, (), lambda rng, kind, shape, run: np.asarray(sizes[run]))
    size = case.builder.bind_dim(scalar, lo=low)
    node = case.builder.nodes[-1]
    case.compare(case.builder.iota((size, 3), 0), node)
    case.compare(case.builder.dim((size * 2, size - low)), node)


@problem("iota", NUMBERS)
def iota(case: Case, dtype: DType) -> None:
    """The index along an axis; long enough to wrap in a byte now and then."""
    shape = (*case.shape(case.integer(0, 2)), case.choice((5, 17, 300)))
    for extent in shape:
        if not isinstance(extent, int):
            case.operand(dtypes.BOOL, (extent,))
    case.emit("iota", shape=shape, axis=case.integer(0, len(shape) - 1), dtype=dtype)


@problem("rng_bits", [U32], seed=[0, -1, 2**63 - 1])
def rng_bits(case: Case, dtype: DType, seed: int) -> None:
    """Random words of a seed."""
    (n,) = case.shape(1)
    case.operand(dtypes.BOOL, (n,))
    case.emit("rng_bits", shape=(n, 3), seed=seed)


def below(dtype: DType, step: int) -> DType:
    """The type ``step`` rows below one in the table."""
    return ALL[(ALL.index(dtype) + step) % len(ALL)]


@problem(
    "convert", step=[1, 5, 11, 17], saturate=[True, False], where=lambda dtype, step, saturate: saturate or below(dtype, step).bits <= 8
)
def convert(case: Case, dtype: DType, step: int, saturate: bool) -> None:
    """A type into the one ``step`` rows below it in the table, so that each is a source and a target."""
    case.emit("convert", case.operand(dtype, case.shape(), bits), dtype=below(dtype, step), saturate=saturate)


@problem("bitcast", NUMBERS)
def bitcast(case: Case, dtype: DType) -> None:
    """The same bits under another type of the width."""
    same = [other for other in NUMBERS if other.bits == dtype.bits]
    case.emit("bitcast", case.operand(dtype, case.shape(), bits), dtype=case.choice(same))
