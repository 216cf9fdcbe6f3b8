"""GEMM templates against NumPy: odd, prime, zero and symbolic sizes, epilogues, element types."""

import numpy as np
import pytest

from tcompile.codegen.cpu_gemm import Problem, fetched_ahead, packed_tile
from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import BF16, F16, F32, F64, I8, I32, U8
from tcompile.ir.interpret import interpret
from tcompile.ir.ops_layout import pack_panels
from tcompile.ir.target import named_target, native_target
from tcompile.ir.tiles import FEW_ROWS, Tile, chains, panel_width
from tests.codegen.native import run_native
from tests.codegen.template_runs import check_template

RNG = np.random.default_rng(0)


def _array(shape, dtype=F32):
    if dtype.is_float:
        return RNG.standard_normal(shape).astype(dtype.numpy)
    return RNG.integers(-9 if dtype.kind == "i" else 0, 9, shape).astype(dtype.numpy)


def _packed(b, a, matrix, target, out=F32):
    machine = named_target(target) if target else native_target()
    width = panel_width(machine, dims.product(a.shape[:-1]), *matrix.shape, out)
    return b.emit("dot_packed", a, b.constant(pack_panels(matrix, width)), columns=matrix.shape[1], dtype=out)


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "aarch64-linux"])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 5, 7), (13, 3, 50), (3, 0, 5)])
def test_packed_on_other_targets(m, k, n, target):
    b = Builder()
    a = b.input("a", F32, (m, k))
    graph = b.graph([_packed(b, a, _array((k, n)), target)], ["y"])
    assert check_template(graph, {"a": _array((m, k))}, target) == ["gemm"]


@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 5, 7), (13, 7, 50), (8, 3, 48), (33, 1, 17), (3, 0, 5), (130, 2, 24), (0, 3, 5), (1, 300, 1000), (200, 64, 65)]
)
def test_packed(m, k, n, target=None):
    b = Builder()
    a = b.input("a", F32, (m, k))
    graph = b.graph([_packed(b, a, _array((k, n)), target)], ["y"])
    assert check_template(graph, {"a": _array((m, k))}, target) == ["gemm"]


@pytest.mark.parametrize(("m", "n"), [(1, 1000), (1, 1024), (2, 777), (3, 1025), (4, 640), (5, 700), (6, 1000), (7, 640)])
def test_few_rows_read_panels_of_a_large_matrix_side_by_side(m, n):
    b = Builder()
    a = b.input("a", F32, (m, 330))
    graph = b.graph([_packed(b, a, _array((330, n)), None)], ["y"])
    assert check_template(graph, {"a": _array((m, 330))}) == ["gemm"]


def test_a_single_row_of_a_large_matrix_has_four_streams_and_a_small_one_has_one():
    target = named_target("x86-64-v3")
    large, small = Problem(1, 3072, 768, F32), Problem(1, 100, 768, F32)
    width = panel_width(target, 1, 768, 3072, F32)
    assert (width, packed_tile(target, large, width).columns) == (16, 64)
    width = panel_width(target, 1, 768, 100, F32)
    assert packed_tile(target, small, width).columns == width


@pytest.mark.parametrize(("k", "n", "width"), [(11616, 32, 16), (20011, 17, 8), (20014, 16, 8), (11003, 31, 8)])
def test_two_threads_share_a_narrow_matrix_of_many_terms(k, n, width):
    assert panel_width(named_target("x86-64-v3"), 1, k, n, F32) == width
    test_packed(1, k, n)


@pytest.mark.parametrize(
    ("tile", "terms", "parts"),
    [(Tile(1, 2, 8), 11616, 4), (Tile(1, 2, 8), 11618, 2), (Tile(1, 4, 8), 64, 2), (Tile(1, 1, 8), 7, 1), (Tile(6, 2, 8), 64, 1)],
)
def test_tiles_of_few_sums_add_equal_parts_on_their_own(tile, terms, parts):
    assert chains(named_target("x86-64-v3"), tile, terms) == parts


def test_rows_that_leave_registers_for_one_stream_only_are_read_in_tiles():
    """A single stream uses a third of the memory's bandwidth: seven rows take two tiles instead, and the second finds the panel cached."""
    target = named_target("x86-64-v3")
    tile = packed_tile(target, Problem(7, 4096, 4096, F32), panel_width(target, 7, 4096, 4096, F32))
    assert (tile.rows, tile.columns) == (4, 24)


@pytest.mark.parametrize("m", [0, 1, 2, 5, 7, 8, 12, 300])
def test_symbolic_rows(m):
    b = Builder()
    b.symbols["m"] = Range(0, None)
    a = b.input("a", F32, (dims.symbol("m"), 6))
    graph = b.graph([_packed(b, a, _array((6, 40)), None)], ["y"])
    check_template(graph, {"a": _array((m, 6))})


@pytest.mark.parametrize("n", [24, 29])
@pytest.mark.parametrize("fn", ["max", "tanh"])
def test_epilogue_bias_residual_activation(n, fn):
    b = Builder()
    a, r = b.input("a", F32, (2, 5, 6)), b.input("r", F32, (2, 5, n))
    y = _packed(b, b.reshape(a, (10, 6)), _array((6, n)), None)
    y = b.nary("add", b.reshape(y, (2, 5, n)), b.constant(_array((n,))))
    y = b.map(fn, y) if fn == "tanh" else b.map(fn, y, b.scalar_like(0.0, y))
    y = b.map("add", y, r)
    graph = b.graph([y], ["y"])
    assert check_template(graph, {"a": _array((2, 5, 6)), "r": _array((2, 5, n))}) == ["gemm"]


@pytest.mark.parametrize(("a", "w", "out"), [(F64, F64, F64), (F16, F16, F16), (BF16, BF16, F32), (U8, I8, I32), (I8, I8, I32)])
def test_element_types(a, w, out):
    b = Builder()
    x = b.input("a", a, (5, 9))
    graph = b.graph([_packed(b, x, _array((9, 20), w), None, out)], ["y"])
    check_template(graph, {"a": _array((5, 9), a)}, rtol=1e-5 if out.is_float else 0)


@pytest.mark.parametrize(("m", "n", "k"), [(5, 7, 3), (16, 48, 4), (1, 30, 5), (9, 1, 2)])
def test_two_activations(m, n, k):
    b = Builder()
    x, y = b.input("x", F32, (2, 3, m, k)), b.input("y", F32, (2, 3, k, n))
    out = b.emit("dot_general", x, y, batch=((0, 1), (0, 1)), contract=((3,), (2,)), dtype=F32)
    graph = b.graph([out], ["out"])
    assert check_template(graph, {"x": _array((2, 3, m, k)), "y": _array((2, 3, k, n))}) == ["gemm"]


@pytest.mark.parametrize("tiles", [2, 3, 10, 32])
@pytest.mark.parametrize("row_bytes", [32, 64, 96, 192])
@pytest.mark.parametrize("terms", [4, 96, 100, 768])
def test_tiles_of_rows_fetch_the_whole_next_panel(terms, row_bytes, tiles):
    ahead = fetched_ahead(terms, row_bytes, tiles)
    lines = tiles * terms // ahead.terms * ahead.lines
    assert terms % ahead.terms == 0
    assert terms * row_bytes <= lines * 64 < 4 * terms * row_bytes + 64 * tiles * terms // ahead.terms


def test_a_single_tile_fetches_nothing_ahead():
    assert fetched_ahead(768, 96, 1) is None
    assert fetched_ahead(7 * 7 * 37, 96, 9).terms == 7
    assert fetched_ahead(37, 96, 9) is None


def test_prefetches_run_and_read_nothing():
    b = Builder()
    a = b.input("a", F32, (40, 32))
    graph = b.graph([_packed(b, a, _array((32, 72)), None)], ["y"])
    arrays = {"a": _array((40, 32))}
    assert check_template(graph, arrays) == ["gemm"]
    expected = interpret(graph, arrays)["y"]
    np.testing.assert_allclose(run_native(graph, arrays["a"])["y"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("s", [0, 1, 9, 30])
def test_attention_products_read_heads_in_place(s):
    """Head splits, transposes and the scale of both products leave no kernel of their own."""
    b = Builder()
    b.symbols["s"] = Range(0, None)
    length = dims.symbol("s")
    q, k, v = (b.input(name, F32, (2, length, 24)) for name in "qkv")

    def heads(x):
        return b.transpose(b.reshape(x, (2, length, 3, 8)), (0, 2, 1, 3))

    scores = b.emit("dot_general", heads(q), heads(k), batch=((0, 1), (0, 1)), contract=((3,), (3,)), dtype=F32)
    scores = b.map("mul", scores, b.scalar_like(0.5, scores))
    mixed = b.emit("dot_general", scores, heads(v), batch=((0, 1), (0, 1)), contract=((3,), (2,)), dtype=F32)
    out = b.reshape(b.transpose(mixed, (0, 2, 1, 3)), (2, length, 24))
    graph = b.graph([out], ["out"])
    assert check_template(graph, {name: _array((2, s, 24)) for name in "qkv"}) == ["gemm"] * 2


@pytest.mark.parametrize(("seq", "batch", "n"), [(3, 2, 41), (7, 1, 50), (12, 1, 512), (1, 5, 7), (0, 3, 41)])
def test_rows_of_two_symbols_beside_a_last_narrow_panel(seq, batch, n):
    """The epilogue adds what is indexed by both symbols: whole panels stay vectors, whose columns no division splits."""
    b = Builder()
    b.symbols["s"], b.symbols["b"] = Range(0, None), Range(0, None)
    rows, columns = (dims.symbol("s"), dims.symbol("b")), dims.symbol("b")
    a = b.reshape(b.input("a", F32, (*rows, 9)), (dims.product(rows), 9))
    bias, scale = b.input("bias", F32, (n,)), b.input("scale", F32, (columns, n))
    y = b.reshape(_packed(b, a, _array((9, n)), None), (*rows, n))
    y = b.map(
        "mul",
        b.map("add", y, b.emit("broadcast", bias, shape=(*rows, n), axes=(2,))),
        b.emit("broadcast", scale, shape=(*rows, n), axes=(1, 2)),
    )
    arrays = {"a": _array((seq, batch, 9)), "bias": _array((n,)), "scale": _array((batch, n))}
    assert check_template(b.graph([y], ["y"]), arrays) == ["gemm"]


def test_a_recurrence_of_few_rows_has_the_widest_panels_and_many_rows_those_that_stay_in_the_l1_cache():
    target, rows = named_target("x86-64-v3"), dims.symbol("m")
    few, many = panel_width(target, rows, 128, 512, F32, few=True), panel_width(target, rows, 128, 512, F32)
    assert few > many and many * 128 * 4 <= target.l1_bytes // 2
    tile = packed_tile(target, Problem(rows, 512, 128, F32), few, few=True)
    assert tile.rows == FEW_ROWS and tile.columns == few
