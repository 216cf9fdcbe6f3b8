"""AArch64 code, run under QEMU where it is installed: every op and conversion, and register tiles."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.ir.dtypes import ALL
from tcompile.ir.target import named_target
from tests.codegen import emulated
from tests.codegen.kernel_runs import assert_same
from tests.codegen.test_cpu_llvm import gemm
from tests.codegen.test_cpu_ops import DIRECT, Case, conversion_cases, function_cases

pytestmark = pytest.mark.skipif(emulated.EMULATOR is None, reason="qemu-aarch64 is not installed")
TARGET = named_target("aarch64-linux")


def run_all(cases: list[Case]) -> None:
    calls = [(kernel, [*map(np.ascontiguousarray, arrays), np.zeros_like(wanted)], [wanted.size]) for kernel, arrays, wanted, _ in cases]
    for (kernel, _, expected, ulp), (status, arrays) in zip(cases, emulated.run(calls, TARGET), strict=True):
        assert status == 0
        assert_same(arrays[-1], expected, kernel.name, ulp)


@pytest.mark.parametrize("fn", DIRECT)
def test_function_on_every_dtype(fn):
    run_all(function_cases(fn))


@pytest.mark.parametrize("source", ALL, ids=str)
def test_conversion_to_every_dtype(source):
    run_all(conversion_cases(source))


def test_register_tiles():
    a, b = np.random.default_rng(1).standard_normal((2, 8, 64)).astype(np.float32)
    ((_, (_, _, product)),) = emulated.run([(gemm(4, 64, 8), [a[:4, :8].copy(), b, np.zeros((4, 64), np.float32)], [])], TARGET)
    np.testing.assert_allclose(product, a[:4, :8] @ b, rtol=1e-5, atol=1e-6)
