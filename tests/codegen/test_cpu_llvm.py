"""Kernels through LLVM against the Loop IR interpreter: loops, lanes, masks, registers, scratch, checks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tcompile.codegen import cpu_llvm
from tcompile.errors import InvalidModelError
from tcompile.ir.dims import floordiv, maximum, minimum, mod, symbol
from tcompile.ir.dtypes import BOOL, F32, F64, I8, I32, I64, U8
from tcompile.ir.loops import (
    Access,
    Alloc,
    Cast,
    Check,
    Const,
    For,
    If,
    Index,
    Kernel,
    Let,
    Load,
    LoopKind,
    Op,
    Param,
    Select,
    Space,
    Status,
    Store,
    Var,
    While,
)
from tests.codegen import kernel_runs
from tests.codegen.kernel_runs import compare

VECTOR, UNROLLED, PARALLEL, SERIAL = LoopKind.VECTOR, LoopKind.UNROLLED, LoopKind.PARALLEL, LoopKind.SERIAL
n, m, i, j, k, u, v = map(symbol, ("n", "m", "i", "j", "k", "u", "v"))
RNG = np.random.default_rng(7)


# what the generator does for other machines, run on this one: masks for all sizes, none, f16 and minima by sequences
SHAPES = {
    "native": kernel_runs.NATIVE,
    "masks": replace(kernel_runs.NATIVE, mask_bytes=(1, 2, 4, 8), vector_bytes=64),
    "no-masks": replace(kernel_runs.NATIVE, mask_bytes=(), vector_bytes=16, nan_minmax=True, half=False),
}


@pytest.fixture(autouse=True, params=SHAPES)
def target_shape(request, monkeypatch):
    """Every test runs for machines of three shapes."""
    monkeypatch.setattr(kernel_runs, "NATIVE", SHAPES[request.param])


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def zeros(*shape: int, dtype=np.float32) -> np.ndarray:
    return np.full(shape, 77).astype(dtype)


def x_at(*indices, dtype=F32) -> Load:
    return Load("x", indices, dtype)


def op(fn: str, *args, dtype=F32) -> Op:
    return Op(fn, args, dtype)


def out(shape, dtype=F32, name="y") -> Param:
    return Param(name, dtype, shape, Access.OUT)


@pytest.mark.parametrize("extent", [0, 1, 7, 8, 15, 16, 17, 31, 32, 100])
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("dtype", [F32, I64, U8])
def test_vector_loop_and_its_tail(extent, symbolic, dtype):
    size = n if symbolic else extent
    body = (Store("y", (i,), op("add", x_at(i, dtype=dtype), x_at(i, dtype=dtype), dtype=dtype)),)
    kernel = Kernel("k", (Param("x", dtype, (size,)), out((size,), dtype)), ("n",) if symbolic else (), (For("i", size, body, VECTOR, 16),))
    compare(kernel, [RNG.integers(0, 100, extent).astype(dtype.numpy), zeros(extent, dtype=dtype.numpy)], [extent] if symbolic else [])


@pytest.mark.parametrize("width", [1, 4, 16])
def test_parallel_loop_runs_its_part(width):
    body = (For("j", m, (Store("y", (i, j), op("mul", x_at(i, j), Const(3.0, F32))),), VECTOR, width),)
    kernel = Kernel("k", (Param("x", F32, (n, m)), out((n, m))), ("n", "m"), (For("i", n, body, PARALLEL),))
    compare(kernel, [floats(9, 21), zeros(9, 21)], [9, 21], 2, 7)
    compare(kernel, [floats(9, 21), zeros(9, 21)], [9, 21], 4, 4)


def test_transpose_gathers_by_a_symbolic_stride():
    body = (For("j", m, (Store("y", (i, j), x_at(j, i)),), VECTOR, 16),)
    kernel = Kernel("k", (Param("x", F32, (m, n)), out((n, m))), ("n", "m"), (For("i", n, body),))
    compare(kernel, [floats(37, 5), zeros(5, 37)], [5, 37])


@pytest.mark.parametrize("step", [-1, 2, 3, -2])
def test_constant_strides(step):
    place = i * step + (0 if step > 0 else 60)
    kernel = Kernel("k", (Param("x", F32, (61,)), out((61,))), (), (For("i", 20, (Store("y", (place,), x_at(place)),), VECTOR, 16),))
    compare(kernel, [floats(61), zeros(61)], [])


def test_indices_that_are_not_linear_in_the_lane():
    places = (floordiv(i, 7), mod(i, 7) * 2 + 1)
    kernel = Kernel("k", (Param("x", F32, (10, 16)), out((70,))), (), (For("i", 70, (Store("y", (i,), x_at(*places)),), VECTOR, 16),))
    compare(kernel, [floats(10, 16), zeros(70)], [])
    dividing = (floordiv(i, n), mod(i, n))
    symbolic = Kernel(
        "k", (Param("x", F32, (m, n)), out((70,))), ("m", "n"), (For("i", 70, (Store("y", (i,), x_at(*dividing)),), VECTOR, 16),)
    )
    compare(symbolic, [floats(10, 7), zeros(70)], [10, 7])


def random_index(rng: np.random.Generator, depth: int):
    """An index expression over the lane variable i, the outer variable j and the dim n."""
    if depth == 0:
        return [i, i, j, n, int(rng.integers(-20, 20))][rng.integers(5)]
    a, b = random_index(rng, depth - 1), random_index(rng, depth - 1)
    c = int(rng.choice([1, 2, 3, 5, 6, 8, 16, 17, 40]))
    choices = [lambda: a + b, lambda: a * int(rng.integers(-3, 4)) + b, lambda: floordiv(a, c), lambda: mod(a, c), lambda: minimum(a, b)]
    choices += [lambda: maximum(a, b), lambda: floordiv(a, n), lambda: a * n, lambda: mod(a + b, c)]
    return choices[rng.integers(len(choices))]()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("width", [1, 8, 16])
def test_random_index_expressions_on_lanes(seed, width):
    rng = np.random.default_rng(seed)
    exprs = [random_index(rng, int(rng.integers(1, 4))) for _ in range(12)]
    body = [Store("y", (j, i, k), Index(expr)) for k, expr in enumerate(exprs)]
    names = ("eq", "ne", "lt", "le", "gt", "ge")
    compared = [Op(names[k % 6], (Index(a), Index(b)), BOOL) for k, (a, b) in enumerate(pairwise(exprs))]
    body += [Store("z", (j, i, k), cond) for k, cond in enumerate(compared)]
    loops = (For("j", 3, (For("i", 45, tuple(body), VECTOR, width),)),)
    shape = (3, 45, 12)
    kernel = Kernel("k", (out(shape, I64), out(shape, BOOL, "z")), ("n",), loops)
    compare(kernel, [zeros(*shape, dtype=np.int64), np.zeros(shape, bool)], [7])


@pytest.mark.parametrize("divisor", [3, 8, 16, 32, 48])
def test_places_that_divide_the_lane(divisor):
    """Accesses through divisions that wrap within a vector, and through ones that never do."""
    load_at = Load("x", (mod(i, divisor), floordiv(i, divisor)), F32)
    store_at = (floordiv(i, divisor), mod(i, divisor))
    kernel = Kernel(
        "k", (Param("x", F32, (divisor, 9)), out((9, divisor))), (), (For("i", 9 * divisor, (Store("y", store_at, load_at),), VECTOR, 16),)
    )
    compare(kernel, [floats(divisor, 9), zeros(9, divisor)], [])


def test_division_of_negative_indices_rounds_down():
    body = (
        Let("a", Load("x", (i,), I64)),
        Store("y", (i, 0), Index(floordiv(symbol("a"), 7))),
        Store("y", (i, 1), Index(mod(symbol("a"), 7))),
        Store("y", (i, 2), Index(floordiv(symbol("a"), 8))),
        Store("y", (i, 3), Index(mod(symbol("a"), 8))),
        Store("y", (i, 4), Index(floordiv(symbol("a"), n))),
        Store("y", (i, 5), Index(mod(symbol("a"), n))),
    )
    for kind, width in ((SERIAL, 1), (VECTOR, 16)):
        kernel = Kernel("k", (Param("x", I64, (40,)), out((40, 6), I64)), ("n",), (For("i", 40, body, kind, width),))
        for divisor in (5, 0):
            compare(kernel, [np.arange(-20, 20), zeros(40, 6, dtype=np.int64)], [divisor])


def test_data_dependent_gather_and_masks():
    place = symbol("a")
    inside = Op("and", (Op("ge", (Var("a", I64), Const(0, I64)), BOOL), Op("lt", (Var("a", I64), Const(10, I64)), BOOL)), BOOL)
    body = (Let("a", Load("x", (i,), I64)), Store("y", (i,), Load("t", (place,), F32, inside)))
    for kind, width in ((SERIAL, 1), (VECTOR, 16), (VECTOR, 8)):
        kernel = Kernel("k", (Param("x", I64, (n,)), Param("t", F32, (10,)), out((n,))), ("n",), (For("i", n, body, kind, width),))
        compare(kernel, [RNG.integers(-5, 15, 45), floats(10), zeros(45)], [45])


@pytest.mark.parametrize("dtype", [F32, U8, F64])
@pytest.mark.parametrize("width", [1, 16])
def test_masked_contiguous_load_and_store(dtype, width):
    odd = Op("ne", (Index(mod(i, 3)), Const(0, I64)), BOOL)
    shifted = Op("ge", (Index(i), Const(4, I64)), BOOL)
    body = (Store("y", (i,), Load("x", (i - 4,), dtype, shifted), odd),)
    kernel = Kernel("k", (Param("x", dtype, (n,)), out((n,), dtype)), ("n",), (For("i", n, body, VECTOR, width),))
    compare(kernel, [RNG.integers(0, 99, 45).astype(dtype.numpy), zeros(45, dtype=dtype.numpy)], [45])


def test_all_lanes_storing_one_element_leave_the_last():
    kernel = Kernel("k", (Param("x", F32, (n,)), out((1,))), ("n",), (For("i", n, (Store("y", (0,), x_at(i)),), VECTOR, 16),))
    compare(kernel, [floats(37), zeros(1)], [37])


@pytest.mark.parametrize("bad", [None, 3, 40, 44])
@pytest.mark.parametrize("width", [1, 16])
def test_check_leaves_with_a_status(bad, width):
    body = (Check(Op("lt", (x_at(i, dtype=I64), Const(10, I64)), BOOL), Status.BROADCAST), Store("y", (i,), x_at(i, dtype=I64)))
    kernel = Kernel("k", (Param("x", I64, (n,)), out((n,), I64)), ("n",), (For("i", n, body, VECTOR, width),))
    x = RNG.integers(0, 10, 45)
    if bad is not None:
        x[bad] = 10
    assert compare(kernel, [x, zeros(45, dtype=np.int64)], [45]) == (0 if bad is None else 3)


def gemm(rows: int, cols: int, depth, lanes: int = 16, mr: int = 4, nv: int = 2) -> Kernel:
    """y[rows, cols] = a[rows, depth] x b[depth, cols] by register tiles."""
    lane = symbol("l")
    acc = (u, v * lanes + lane)
    tile_col = j * (nv * lanes) + v * lanes + lane

    def tile(*body):
        return For("u", mr, (For("v", nv, (For("l", lanes, body, VECTOR, lanes),), UNROLLED),), UNROLLED)

    fma = Op("fma", (Load("a", (i * mr + u, k), F32), Load("b", (k, tile_col), F32), Load("acc", acc, F32)), F32)
    inner = (
        Alloc("acc", F32, (mr, nv * lanes), Space.REGISTER),
        tile(Store("acc", acc, Const(0.0, F32))),
        For("k", depth, (tile(Store("acc", acc, fma)),)),
        tile(Store("y", (i * mr + u, tile_col), Load("acc", acc, F32))),
    )
    params = (Param("a", F32, (rows, depth)), Param("b", F32, (depth, cols)), out((rows, cols)))
    dims = () if isinstance(depth, int) else ("k0",)
    return Kernel("gemm", params, dims, (For("i", rows // mr, (For("j", cols // (nv * lanes), inner),), PARALLEL),))


@pytest.mark.parametrize("symbolic", [False, True])
def test_register_tile_matrix_product(symbolic):
    for depth in (0, 1, 19):
        kernel = gemm(8, 64, symbol("k0") if symbolic else depth)
        compare(kernel, [floats(8, depth), floats(depth, 64), zeros(8, 64)], [depth] if symbolic else [], 0, 2)


def test_register_lanes_reduce_to_a_scalar():
    lane = symbol("l")
    partial = For("l", 16, (Store("s", (lane,), op("add", Load("s", (lane,), F32), x_at(i * 16 + lane))),), VECTOR, 16)
    body = (
        Alloc("s", F32, (16,), Space.REGISTER),
        Alloc("t", F32, (1,), Space.REGISTER),
        For("l", 16, (Store("s", (lane,), Const(0.0, F32)),), VECTOR, 16),
        Store("t", (0,), Const(0.0, F32)),
        For("i", n, (partial,)),
        For("u", 16, (Store("t", (0,), op("add", Load("t", (0,), F32), Load("s", (u,), F32))),), UNROLLED),
        Store("y", (0,), Load("t", (0,), F32)),
    )
    compare(Kernel("k", (Param("x", F32, (n * 16,)), out((1,))), ("n",), body), [floats(80), zeros(1)], [5])


def test_registers_across_branches_and_while():
    total = Load("t", (0,), I64)
    body = (
        Alloc("t", I64, (2,), Space.REGISTER),
        Store("t", (0,), Const(0, I64)),
        Store("t", (1,), Const(0, I64)),
        While(
            Op("lt", (Load("t", (1,), I64), Index(n)), BOOL),
            (
                Let("c", Load("t", (1,), I64)),
                If(
                    Op("gt", (Load("x", (symbol("c"),), I64), Const(0, I64)), BOOL),
                    (Store("t", (0,), Op("add", (total, Load("x", (symbol("c"),), I64)), I64)),),
                    (Store("t", (0,), Op("sub", (total, Const(1, I64)), I64)),),
                ),
                Store("t", (1,), Op("add", (Load("t", (1,), I64), Const(1, I64)), I64)),
            ),
        ),
        Store("y", (0,), total),
    )
    kernel = Kernel("k", (Param("x", I64, (n,)), out((1,), I64)), ("n",), body)
    for size in (0, 1, 30):
        compare(kernel, [RNG.integers(-5, 5, size), zeros(1, dtype=np.int64)], [size])


def test_prefix_sum_reads_what_it_stored():
    body = (Store("y", (0,), x_at(0)), For("i", n - 1, (Store("y", (i + 1,), op("add", Load("y", (i,), F32), x_at(i + 1))),)))
    compare(Kernel("k", (Param("x", F32, (n,)), Param("y", F32, (n,), Access.INOUT)), ("n",), body), [floats(50), zeros(50)], [50])


def test_a_load_is_not_kept_over_a_store_in_a_loop():
    first = Load("y", (0,), F32)
    body = (
        Store("y", (0,), Const(1.0, F32)),
        Let("before", first),
        For("i", n, (Store("y", (0,), op("add", first, Const(1.0, F32))), Store("z", (i,), first))),
        Store("y", (1,), op("add", first, Var("before", F32))),
    )
    kernel = Kernel("k", (Param("y", F32, (2,), Access.INOUT), out((n,), F32, "z")), ("n",), body)
    for size in (0, 5):
        compare(kernel, [zeros(2), zeros(size)], [size])


def test_aliased_parameters_update_in_place():
    body = (For("i", n, (Store("y", (i,), op("mul", x_at(i), Const(2.0, F32))), Store("z", (i,), x_at(i))), VECTOR, 16),)
    kernel = Kernel("k", (Param("x", F32, (n,)), out((n,)), out((n,), F32, "z")), ("n",), body, aliases=((0, 1),))
    compare(kernel, [floats(37), zeros(37), zeros(37)], [37])


@pytest.mark.parametrize("size", [5, 40, 3000])
@pytest.mark.parametrize("symbolic", [False, True])
def test_scratch_buffers(size, symbolic):
    extent = n if symbolic else size
    body = (
        Alloc("a", F32, (extent,)),
        Alloc("b", I32, (extent,)),
        For("i", extent, (Store("a", (i,), op("sqrt", x_at(i))), Store("b", (i,), Cast(Index(i), I32))), VECTOR, 16),
        For("i", extent, (Store("y", (i,), op("add", Load("a", (extent - 1 - i,), F32), Cast(Load("b", (i,), I32), F32))),), VECTOR, 16),
    )
    kernel = Kernel("k", (Param("x", F32, (extent,)), out((extent,))), ("n",) if symbolic else (), body)
    compare(kernel, [np.abs(floats(size)), zeros(size)], [size] if symbolic else [])


def test_scratch_of_sibling_blocks_is_shared():
    block = (Alloc("a", F32, (n,)), For("i", n, (Store("a", (i,), x_at(i)),)), For("i", n, (Store("y", (i,), Load("a", (i,), F32)),)))
    one = Kernel("k", (Param("x", F32, (n,)), out((n,))), ("n",), (For("j", 1, block),))
    two = Kernel("k", one.params, ("n",), (For("j", 2, block), For("j", 2, block)))
    assert cpu_llvm.scratch_bytes(one) == cpu_llvm.scratch_bytes(two)
    compare(two, [floats(700), zeros(700)], [700])


def test_bools_are_bytes_in_memory():
    flag = Load("x", (i,), BOOL)
    body = (Store("y", (i,), Op("not", (flag,), BOOL)), Store("z", (i,), Select(flag, Const(1.5, F32), Const(-2.0, F32))))
    for width in (1, 16):
        kernel = Kernel("k", (Param("x", BOOL, (n,)), out((n,), BOOL), out((n,), F32, "z")), ("n",), (For("i", n, body, VECTOR, width),))
        compare(kernel, [RNG.integers(0, 2, 45).astype(bool), zeros(45, dtype=bool), zeros(45)], [45])


def test_vector_loop_inside_unrolled_and_unrolled_inside_vector():
    inner = For("u", 3, (Store("y", (u, v * 16 + i), op("add", x_at(v * 16 + i), Cast(Index(u), F32))),), UNROLLED)
    kernel = Kernel("k", (Param("x", F32, (64,)), out((3, 64))), (), (For("v", 4, (For("i", 16, (inner,), VECTOR, 16),), UNROLLED),))
    compare(kernel, [floats(64), zeros(3, 64)], [])


def test_if_on_a_uniform_condition_inside_lanes():
    even = Op("eq", (Index(mod(j, 2)), Const(0, I64)), BOOL)
    body = (If(even, (Store("y", (j, i), x_at(j, i)),), (Store("y", (j, i), Const(0.0, F32)),)),)
    kernel = Kernel("k", (Param("x", F32, (4, n)), out((4, n))), ("n",), (For("j", 4, (For("i", n, body, VECTOR, 16),)),))
    compare(kernel, [floats(4, 37), zeros(4, 37)], [37])


def test_narrow_integer_lanes():
    body = (Store("y", (i,), Cast(op("max", x_at(i, dtype=I8), Const(3, I8), dtype=I8), I32)),)
    kernel = Kernel("k", (Param("x", I8, (n,)), out((n,), I32)), ("n",), (For("i", n, body, VECTOR, 16),))
    compare(kernel, [RNG.integers(-128, 128, 45).astype(np.int8), zeros(45, dtype=np.int32)], [45])


def test_errors_name_what_is_wrong():
    unbound = Kernel("k", (out((1,)),), (), (Store("y", (symbol("nowhere"),), Const(0.0, F32)),))
    with pytest.raises(InvalidModelError, match="nowhere"):
        compare_emit(unbound)
    dynamic = (Alloc("r", F32, (4,), Space.REGISTER), For("i", 4, (Store("r", (i,), Const(0.0, F32)),)))
    with pytest.raises(InvalidModelError, match="register buffer r"):
        compare_emit(Kernel("k", (out((1,)),), (), dynamic))
    inner = Kernel("k", (out((n,)),), ("n",), (For("j", 2, (For("i", n, (Store("y", (i,), Const(0.0, F32)),), PARALLEL),)),))
    with pytest.raises(InvalidModelError, match="parallel loop i"):
        compare_emit(inner)


def compare_emit(kernel: Kernel) -> str:
    from tcompile.ir.target import native_target

    return cpu_llvm.emit_kernel(kernel, native_target())


def test_llvm_refusal_is_a_named_error():
    from tcompile.ir.target import native_target

    with pytest.raises(cpu_llvm.CodegenError, match="LLVM refuses"):
        cpu_llvm.compile_module("define i32 @f() { ret i64 0 }", native_target())


@pytest.mark.parametrize("size", [1, 2, 5, 7, 16, 40, 3_000_000_000])
def test_symbolic_divisors_on_lanes(size):
    places = (
        floordiv(i + 3 * j, n),
        mod(i + 3 * j, n),
        floordiv(2 * i + j, n) * 5 + mod(i, n),
        floordiv(floordiv(i, n), n + 1),
        mod(floordiv(i, n), m),
    )
    stores = tuple(Store("y", (j, i, k), Index(place)) for k, place in enumerate(places))
    body = (For("j", 3, (For("i", 60, stores, VECTOR, 16),)),)
    compare(Kernel("k", (out((3, 60, 5), I64),), ("n", "m"), body), [zeros(3, 60, 5, dtype=np.int64)], [size, 3])
