"""Sums over outer loops in several chains against NumPy, every length of the last ones."""

import numpy as np
import pytest

from tcompile.codegen import schedule_chains
from tcompile.ir.build import Builder
from tcompile.ir.dtypes import F32, I32
from tests.codegen.native import run_native

RNG = np.random.default_rng(4)


@pytest.mark.parametrize("fn", ["add", "max", "min", "mul"])
@pytest.mark.parametrize("extent", [1, 15, 16, 17, 18, 19, 61])
@pytest.mark.parametrize("columns", [8, 13])
def test_reduction_over_the_outer_axis(columns, extent, fn):
    b = Builder()
    x = b.input("x", F32, (3, extent, columns))
    graph = b.graph([b.emit("reduce", x, fn=fn, axes=(1,))], ["y"])
    array = RNG.uniform(0.5, 1.5, (3, extent, columns)).astype(np.float32)
    want = {"add": np.sum, "max": np.max, "min": np.min, "mul": np.prod}[fn](array.astype(np.float64), axis=1)
    np.testing.assert_allclose(run_native(graph, array)["y"], want, rtol=1e-5)


def test_nan_and_integers():
    b = Builder()
    x, n = b.input("x", F32, (33, 9)), b.input("n", I32, (33, 9))
    outputs = [b.emit("reduce", x, fn="max", axes=(0,)), b.emit("reduce", n, fn="add", axes=(0,))]
    array, numbers = RNG.standard_normal((33, 9)).astype(np.float32), RNG.integers(-(2**30), 2**30, (33, 9)).astype(np.int32)
    array[7, 2] = array[32, 4] = np.nan
    got = run_native(b.graph(outputs, ["y", "z"]), array, numbers)
    np.testing.assert_array_equal(got["y"], array.max(axis=0))
    np.testing.assert_array_equal(got["z"], numbers.sum(axis=0, dtype=np.int32))


def test_the_last_chain_is_reached():
    assert schedule_chains.CHAINS == 4, "the extents above are around multiples of it"
