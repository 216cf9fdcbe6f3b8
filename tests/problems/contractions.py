"""Problems of dot_general and conv."""

from __future__ import annotations

from tcompile.ir import dtypes
from tcompile.ir.dtypes import ALL, DType
from tests.problems.problem import EXTENTS, Case, problem

FACTORS = [dtype for dtype in ALL if dtype.kind != "b"]


def result_types(dtype: DType) -> list[DType]:
    """What products of a type may accumulate into: itself, the type it computes in, a wider one."""
    if dtype.is_float:
        return [dtype, dtype.compute, dtypes.F64 if dtype.bits >= 32 else dtypes.F32]
    return [dtype, dtypes.I32, dtypes.I64]


def partner(case: Case, dtype: DType) -> DType:
    """The type of the other factor: the same, or for bytes the other sign."""
    if dtype.is_integer and dtype.bits <= 8 and case.flag():
        return case.choice((dtypes.I8, dtypes.U8))
    return dtype


@problem("dot_general", FACTORS, form=["matmul", "batched", "any"])
def dot_general(case: Case, dtype: DType, form: str) -> None:
    """Matrices, stacks of matrices, and any assignment of axes to batch, sum and free."""
    long = (0, 1, 3, 8, 17, 40, 67)
    m, n, k = (case.extent(among=long) for _ in range(3))
    a, b, batch, contract = (m, k), (k, n), ((), ()), ((1,), (0,))
    if form == "batched":
        stack = case.extent(among=(0, 1, 3))
        a, b, batch, contract = (stack, m, k), (stack, k, n), ((0,), (0,)), ((2,), (1,))
    elif form == "any":
        a, b, batch, contract = _assigned(case)
    left, right = case.operand(dtype, a), case.operand(partner(case, dtype), b, constant=0.3)
    case.emit("dot_general", left, right, batch=batch, contract=contract, dtype=case.choice(result_types(dtype)))


def _assigned(case: Case):
    """Up to five axes, each in a role; each operand's axes in any order."""
    few = (1, 2, 3, 5)
    axes = {name: (case.choice(("batch", "sum", "a", "b")), case.extent(among=few)) for name in range(case.integer(1, 5))}
    of_a = [int(x) for x in case.rng.permutation([x for x, (role, _) in axes.items() if role != "b"])]
    of_b = [int(x) for x in case.rng.permutation([x for x, (role, _) in axes.items() if role != "a"])]
    named = {role: [x for x in of_a if axes[x][0] == role] for role in ("batch", "sum")}
    batch, contract = ((tuple(map(of_a.index, named[role])), tuple(map(of_b.index, named[role]))) for role in ("batch", "sum"))
    return tuple(axes[x][1] for x in of_a), tuple(axes[x][1] for x in of_b), batch, contract


@problem("conv", FACTORS, rank=[1, 2, 3])
def conv(case: Case, dtype: DType, rank: int) -> None:
    """Strides, dilations, transposed convolutions, groups and depthwise kernels."""
    groups, per_group, outputs = case.choice((1, 1, 2, 3)), case.choice((1, 2, 5)), case.choice((1, 2, 4))
    few = lambda high: tuple(case.integer(1, high) for _ in range(rank))  # noqa: E731
    kernel, strides, dilation, lhs = few(3), few(3), few(2), few(2)
    low, high = (tuple(case.integer(0, 2) for _ in range(rank)) for _ in range(2))
    least = [max(1, (k - 1) * d + 1 - a - b) for k, d, a, b in zip(kernel, dilation, low, high, strict=True)]
    among = EXTENTS if rank == 1 else (1, 2, 3, 5, 6, 7)
    space = tuple(case.extent(n, among=(*among, n)) for n in least)
    x = case.operand(dtype, (case.extent(among=(0, 1, 2)), groups * per_group, *space))
    w = case.operand(partner(case, dtype), (groups * outputs, per_group, *kernel), constant=0.5)
    geometry = {"strides": strides, "lhs_dilation": lhs, "dilation": dilation, "low": low, "high": high, "groups": groups}
    case.emit("conv", x, w, **geometry, dtype=case.choice(result_types(dtype)))
