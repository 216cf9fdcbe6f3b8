"""The GPU's own kernels under the shim: products, convolutions, attention, rows and transposes at sizes that fill no tile."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tcompile.codegen import cuda_tensor
from tcompile.codegen.cuda_tensor import WARP_TILES
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range, symbol
from tcompile.ir.dtypes import BF16, BOOL, F16, F32, F64, I8, I32, I64, U8, DType
from tcompile.ir.graph import Graph
from tcompile.ir.interpret import interpret
from tcompile.ir.target import named_target
from tcompile.ir.terms import Term
from tcompile.runtime import load
from tests.codegen.test_cpu_attention import Case, mixed, products, softmax
from tests.cuda.problems import TARGET, artifact_of
from tests.cuda.shim_device import ShimDevice

RNG = np.random.default_rng(0)


def run(graph: Graph, inputs: dict[str, np.ndarray], tolerance: float, precision: str = "f32") -> None:
    """Compares every output with the interpreter's, relative to its largest value."""
    target = replace(named_target(TARGET), precision=precision)
    compiled = load(artifact_of(graph, target, optimised=True), device=ShimDevice())
    got = compiled.run(inputs)
    for name, expected in interpret(graph, inputs).items():
        wide = expected.astype(np.float64)
        scale = max(float(np.abs(wide).max(initial=0)), 1.0)
        assert got[name].shape == expected.shape
        np.testing.assert_allclose(got[name].astype(np.float64), wide, rtol=0, atol=tolerance * scale)


def values(dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    if dtype.is_float:
        return RNG.standard_normal(shape).astype(np.float32).astype(dtype.numpy)
    return RNG.integers(0 if dtype.kind == "u" else -50, 50, shape).astype(dtype.numpy)


@pytest.mark.parametrize(
    ("rows", "terms", "columns", "turned"),
    [
        (20, 24, 40, (False, False)),
        (33, 17, 19, (True, False)),
        (40, 32, 36, (False, True)),
        (9, 600, 12, (True, True)),
        (1, 70, 130, (False, False)),
    ],
)
def test_products(rows, terms, columns, turned):
    """Any order of the axes, a bias behind; long sums of few results are split, single rows share their terms."""
    b = Builder()
    x = b.input("x", F32, (2, terms, rows) if turned[0] else (2, rows, terms))
    y = b.input("y", F32, (2, columns, terms) if turned[1] else (2, terms, columns))
    z = b.emit("dot_general", x, y, batch=((0,), (0,)), contract=((1 if turned[0] else 2,), (2 if turned[1] else 1,)), dtype=F32)
    bias = b.input("c", F32, (columns,))
    z = b.map("add", z, b.emit("broadcast", bias, shape=z.shape, axes=(2,)))
    run(b.graph([z], ["z"]), {value.name: values(F32, value.shape) for value in b.inputs}, 2e-6)


@pytest.mark.parametrize(("dtype", "result"), [(F16, F16), (BF16, F32), (F64, F64), (I8, I32), (U8, I32)])
@pytest.mark.parametrize("terms", [32, 21])
def test_products_of_other_types(dtype, result, terms):
    b = Builder()
    x, y = b.input("x", dtype, (18, terms)), b.input("y", dtype, (terms, 24))
    z = b.emit("dot_general", x, y, batch=((), ()), contract=((1,), (0,)), dtype=result)
    run(b.graph([z], ["z"]), {value.name: values(dtype, value.shape) for value in b.inputs}, 2e-3 if result is F16 else 1e-5)


@pytest.mark.parametrize(("dtype", "result"), [(F16, F16), (BF16, F32), (I8, I32)])
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_products_on_tensor_cores(dtype, result, turned):
    """Both orders of each operand, wide copies, more than one step and tile."""
    rows, terms, columns = 80, 160, 48
    b = Builder()
    x = b.input("x", dtype, (terms, rows) if turned[0] else (rows, terms))
    y = b.input("y", dtype, (columns, terms) if turned[1] else (terms, columns))
    z = b.emit("dot_general", x, y, batch=((), ()), contract=((0 if turned[0] else 1,), (1 if turned[1] else 0,)), dtype=result)
    run(b.graph([z], ["z"]), {value.name: values(dtype, value.shape) for value in b.inputs}, 1e-3 if result is F16 else 1e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 1e-3), ("f16", 1e-3), ("bf16", 1e-2)])
@pytest.mark.parametrize("columns", [24, 33])
def test_float32_products_at_lower_precision(precision, tolerance, columns):
    """The factors are rounded, and to no fewer bits than asked for."""
    b = Builder()
    x, y = b.input("x", F32, (40, 52)), b.input("y", F32, (52, columns))
    z = b.emit("dot_general", x, y, batch=((), ()), contract=((1,), (0,)), dtype=F32)
    run(b.graph([z], ["z"]), {value.name: values(F32, value.shape) for value in b.inputs}, tolerance, precision)


@pytest.mark.parametrize("tile", WARP_TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_rounded_products_of_every_tile_and_order(tile, turned, monkeypatch):
    monkeypatch.setattr(cuda_tensor, "WARP_TILES", (tile,))
    rows, terms, columns = 150, 72, 140
    for precision, tolerance in (("tf32", 1e-3), ("f16", 1e-3)):
        b = Builder()
        x = b.input("x", F32, (terms, rows) if turned[0] else (rows, terms))
        y = b.input("y", F32, (columns, terms) if turned[1] else (terms, columns))
        z = b.emit("dot_general", x, y, batch=((), ()), contract=((0 if turned[0] else 1,), (1 if turned[1] else 0,)), dtype=F32)
        run(b.graph([z], ["z"]), {value.name: values(F32, value.shape) for value in b.inputs}, tolerance, precision)


@pytest.mark.parametrize(("precision", "tolerance"), [("f16", 1e-3), ("bf16", 1e-2)])
@pytest.mark.parametrize(("rows", "columns"), [(40, 24), (33, 21), (1, 64), (70, 5)])
@pytest.mark.parametrize("turned", [False, True])
def test_products_with_narrow_constants(precision, tolerance, rows, columns, turned):
    """Constant factors are rounded when compiled, the others on their way into the multiplier; a few vectors' not at all."""
    b = Builder()
    x, w = b.input("x", F32, (rows, 72)), b.constant(values(F32, (columns, 72) if turned else (72, columns)))
    z = b.emit("dot_general", x, w, batch=((), ()), contract=((1,), (1 if turned else 0,)), dtype=F32)
    run(b.graph([z], ["z"]), {"x": values(F32, (rows, 72))}, tolerance, precision)


@pytest.mark.parametrize(("dtype", "result", "precision"), [(F16, F16, "f32"), (U8, I32, "f32"), (F32, F32, "tf32"), (F32, F32, "bf16")])
def test_convolutions_on_tensor_cores(dtype, result, precision):
    b = Builder()
    x, w = b.input("x", dtype, (2, 12, 7, 9)), b.input("w", dtype, (24, 12, 3, 3))
    attrs = {"strides": (1, 1), "lhs_dilation": (1, 1), "dilation": (1, 1), "low": (1, 1), "high": (1, 1), "groups": 1}
    z = b.emit("conv", x, w, **attrs, dtype=result)
    tolerance = 0 if result is I32 else 1e-2 if precision == "bf16" else 1e-3
    run(b.graph([z], ["z"]), {value.name: values(dtype, value.shape) for value in b.inputs}, tolerance, precision)


def test_products_of_run_time_sizes():
    b = Builder()
    b.symbols.update(m=Range(0, None), k=Range(0, None))
    m, k = symbol("m"), symbol("k")
    x, y = b.input("x", F32, (m, k)), b.input("y", F32, (k, 20))
    z = b.emit("dot_general", x, y, batch=((), ()), contract=((1,), (0,)), dtype=F32)
    graph = b.graph([z], ["z"])
    for rows, terms in ((1, 1), (37, 19), (0, 3), (3, 0), (70, 33)):
        run(graph, {"x": values(F32, (rows, terms)), "y": values(F32, (terms, 20))}, 2e-6)


@pytest.mark.parametrize(
    ("shape", "outputs", "kernel", "attrs"),
    [
        ((1, 3, 9, 9), 8, 3, {"low": (1, 1), "high": (1, 1)}),
        ((2, 8, 6, 6), 16, 3, {"groups": 2, "strides": (2, 2), "low": (1, 0), "high": (1, 2)}),
        ((1, 8, 9, 8), 16, 1, {}),
        ((2, 8, 3, 5), 16, 1, {"strides": (2, 1)}),
        ((1, 6, 8, 8), 6, 3, {"groups": 6, "low": (1, 1), "high": (1, 1), "dilation": (2, 1)}),
        ((1, 4, 5, 5), 9, 3, {"lhs_dilation": (2, 2), "low": (1, 1), "high": (2, 2)}),
    ],
)
def test_convolutions(shape, outputs, kernel, attrs):
    b = Builder()
    ones = {"strides": (1, 1), "lhs_dilation": (1, 1), "dilation": (1, 1), "low": (0, 0), "high": (0, 0), "groups": 1, "dtype": F32}
    attrs = ones | attrs
    x = b.input("x", F32, shape)
    w = b.input("w", F32, (outputs, shape[1] // attrs["groups"], kernel, kernel))
    z = b.emit("conv", x, w, **attrs)
    z = b.map("max", z, b.emit("broadcast", b.constant(np.float32(0)), shape=z.shape, axes=()))
    run(b.graph([z], ["z"]), {value.name: values(F32, value.shape) for value in b.inputs}, 2e-6)


@pytest.mark.parametrize("shape", [(3, 7, 33), (5, 300), (2, 5000), (1, 1025), (700, 64), (1, 1)])
def test_softmax_of_short_and_long_rows(shape):
    b = Builder()
    y = softmax(Term(b, b.input("x", F32, shape)))
    run(b.graph([y.value], ["y"]), {"x": values(F32, shape)}, 1e-6)


@pytest.mark.parametrize(
    ("rows", "keys", "depth", "columns", "symbolic"), [(5, 7, 8, 8, False), (20, 70, 6, 16, True), (1, 130, 64, 32, False)]
)
def test_attention(rows, keys, depth, columns, symbolic):
    case = Case(symbolic=symbolic)
    m, n = case.size("m", rows), case.size("n", keys)
    q, k = case.heads("q", m, rows, 2, depth), case.heads("k", n, keys, 2, depth)
    v = case.heads("v", n, keys, 2, columns)
    y = mixed(softmax(products(q, k) * (1 / math.sqrt(depth))), v).transpose(0, 2, 1, 3).reshape(2, m, 2 * columns)
    run(case.b.graph([y.value], ["y"]), case.arrays, 2e-6)


@pytest.mark.parametrize("shape", [(3, 40, 70), (1, 17, 16), (2, 300, 33)])
def test_transposes_through_shared_memory(shape):
    b = Builder()
    y = b.transpose(b.input("x", F32, shape), (0, 2, 1))
    run(b.graph([y], ["y"]), {"x": values(F32, shape)}, 0)


@pytest.mark.parametrize("count", [65536, 65539, 100_003])
def test_wide_accesses_and_their_rest(count):
    b = Builder()
    x = b.input("x", F32, (count,))
    run(b.graph([b.map("add", x, x)], ["y"]), {"x": values(F32, (count,))}, 0)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
def test_running_sums_of_several_blocks_of_elements(reverse, exclusive):
    b = Builder()
    x = b.input("x", F32, (3, 700))
    y = b.emit("cumulative", x, fn="add", axis=1, exclusive=exclusive, reverse=reverse)
    run(b.graph([y], ["y"]), {"x": values(F32, (3, 700))}, 1e-6)


def test_compact_of_several_blocks_of_elements():
    b = Builder()
    (indices, count) = b.emit_all("compact", (b.input("x", BOOL, (1000,)),), {}, ())
    run(b.graph([indices, count], ["i", "n"]), {"x": RNG.random(1000) < 0.3}, 0)


def test_sorts_keep_the_order_of_equal_keys():
    b = Builder()
    x = b.input("x", F32, (2, 1100))
    places = b.emit("iota", shape=(2, 1100), axis=1, dtype=I32)
    keys, positions = b.emit_all("sort", (x, places), {"axis": 1, "descending": True}, ())
    run(b.graph([keys, positions], ["k", "p"]), {"x": RNG.integers(0, 50, (2, 1100)).astype(np.float32)}, 0)


@pytest.mark.parametrize(("combiner", "dtype"), [("set", F32), ("add", I32), ("max", I64), ("add", F32)])
@pytest.mark.parametrize("op", ["scatter_nd", "scatter_elements"])
def test_scatters_of_many_updates_to_few_places(op, combiner, dtype):
    b = Builder()
    x = b.input("x", dtype, (30, 5))
    shape = (200, 1) if op == "scatter_nd" else (200, 5)
    attrs = {"combiner": combiner} if op == "scatter_nd" else {"combiner": combiner, "axis": 0}
    y = b.emit(op, x, b.input("i", I64, shape), b.input("u", dtype, (200, 5)), **attrs)
    arrays = {"x": values(dtype, (30, 5)), "i": RNG.integers(0, 30, shape), "u": values(dtype, (200, 5))}
    run(b.graph([y], ["y"]), arrays, 1e-6)
