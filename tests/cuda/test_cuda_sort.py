"""Rows beyond one network, under the shim: merges of sorted runs keep the order of equals, at every length of a symbolic row."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.codegen.cuda_sort import MOST
from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.interpret import interpret
from tcompile.runtime import load
from tests.cuda.compiled import shim_artifact
from tests.cuda.shim_device import ShimDevice


def sorting(shape, axis, dtype, *, descending):
    """Keys with their places: (sorted keys, places of the sorted keys)."""
    b = Builder("sorting")
    b.symbols["n"] = Range(0, None)
    keys, places = b.input("keys", dtype, shape), b.input("places", dtypes.I64, shape)
    outputs = b.emit_all("sort", (keys, places), {"axis": axis, "descending": descending})
    return b.graph(list(outputs), ["sorted", "order"])


def check(exe, graph, shape, axis, seed):
    rng = np.random.default_rng(seed)
    dtype = graph.inputs[0].dtype.numpy
    keys = rng.integers(-20, 20, shape).astype(dtype)  # many equals
    if dtype == np.float32 and keys.size:
        keys.reshape(-1)[rng.integers(0, keys.size, keys.size // 7)] = np.nan
    along = [-1 if k == axis else 1 for k in range(len(shape))]
    inputs = {"keys": keys, "places": np.broadcast_to(np.arange(shape[axis]).reshape(along), shape).astype(np.int64)}
    got = exe.run(inputs)
    for name, expected in interpret(graph, inputs).items():
        np.testing.assert_array_equal(got[name], expected)


@pytest.mark.parametrize(("dtype", "descending"), [(dtypes.F32, True), (dtypes.I64, False)])
def test_rows_of_any_length(dtype, descending):
    graph = sorting((2, dims.symbol("n")), 1, dtype, descending=descending)
    exe = load(shim_artifact(graph), device=ShimDevice())
    for seed, length in enumerate((0, 1, 7, MOST - 1, MOST, MOST + 1, 2 * MOST, 2 * MOST + 77, 5 * MOST - 3)):
        check(exe, graph, (2, length), 1, seed)


def test_long_rows_along_the_first_axis():
    graph = sorting((4099, 3), 0, dtypes.F32, descending=False)
    exe = load(shim_artifact(graph), device=ShimDevice())
    assert any("sort_long" in kernel["name"] for kernel in exe.report()["kernels"])
    check(exe, graph, (4099, 3), 0, 0)
