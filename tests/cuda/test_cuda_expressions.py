"""Every elementwise function and conversion as CUDA C, on every dtype it takes, under the shim: the cases of the LLVM tests."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.ir import elementwise
from tcompile.ir.dims import symbol
from tcompile.ir.dtypes import ALL, BF16, F16, F32, F64, I16, I32, I64
from tcompile.ir.loops import Access, For, Kernel, Load, LoopKind, Op, Param, Store
from tests.codegen import kernel_runs as native
from tests.codegen import test_cpu_ops as cases
from tests.codegen.kernel_runs import assert_same
from tests.cuda.kernel_runs import Loaded, on_gpu

i, n = symbol("i"), symbol("n")


@pytest.fixture(autouse=True)
def under_the_shim(monkeypatch):
    """The cases run here as CUDA C."""
    monkeypatch.setattr(cases, "run_all", run_all)
    monkeypatch.setattr(cases, "WIDTHS", (1, 4))  # lanes are written out: sixteen of them take g++ minutes


def run_all(all_cases: list[cases.Case]) -> None:
    """Compiles the kernels of all cases together and compares each with what is expected."""
    kernels = [on_gpu(case[0]) for case in all_cases]
    loaded = Loaded(kernels)
    for made, (_, arrays, expected, ulp) in zip(kernels, all_cases, strict=True):
        result = np.zeros(expected.shape, expected.dtype)
        assert loaded.run(made, [*map(np.ascontiguousarray, arrays), result], [expected.size]) is None
        assert_same(result, expected, made.name, ulp)


@pytest.mark.parametrize("fn", cases.DIRECT)
def test_function_on_every_dtype(fn):
    cases.test_function_on_every_dtype(fn)


@pytest.mark.parametrize("source", ALL, ids=str)
def test_conversion_to_every_dtype(source):
    cases.test_conversion_to_every_dtype(source)


@pytest.mark.parametrize("bits", [4, 8, 16, 32, 64])
def test_bitcasts_keep_the_bits(bits):
    cases.test_bitcasts_keep_the_bits(bits)


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I16, I32, I64], ids=str)
def test_expanded_functions_have_the_bits_of_the_cpu(dtype):
    names = [name for name, row in elementwise.TABLE.items() if name not in cases.DIRECT and dtype.kind in row.kinds]
    names += ["fmod"] if dtype.is_float else []
    made = [kernel(name, dtype) for name in names]
    theirs, mine = native.load(*made), Loaded(map(on_gpu, made))
    for one in made:
        arrays = [np.ascontiguousarray(array) for array in cases.operands(one.name.split("_")[0], dtype)]
        results = [np.zeros(arrays[0].size, dtype.numpy) for _ in range(2)]
        theirs.run(one, [*arrays, results[0]], [arrays[0].size])
        mine.run(on_gpu(one), [*arrays, results[1]], [arrays[0].size])
        assert_same(results[1], results[0], one.name)


def kernel(fn: str, dtype) -> Kernel:
    """y[i] = fn(x0[i], ...)"""
    arity = elementwise.TABLE[fn].arity
    loads = tuple(Load(f"x{k}", (i,), dtype) for k in range(arity))
    params = tuple(Param(f"x{k}", dtype, (n,)) for k in range(arity))
    body = (For("i", n, (Store("y", (i,), Op(fn, loads, dtype)),), LoopKind.VECTOR, 8),)
    return Kernel(f"{fn}_{dtype}", (*params, Param("y", dtype, (n,), Access.OUT)), ("n",), body)
