"""The Loop IR interpreter: loops, masks, checks, vector chunks, bounds."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.ir import dims, dtypes
from tcompile.ir.dtypes import BF16, BOOL, F32, I32, I64, U8
from tcompile.ir.loops import (
    Access,
    Alloc,
    Bitcast,
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
from tcompile.ir.loops_evaluate import OutOfBoundsError
from tcompile.ir.loops_interpret import run_kernel

I0, I1, N = dims.symbol("i0"), dims.symbol("i1"), dims.symbol("d0")


def kernel(params, body, dims_=(), **more):
    return Kernel("test", tuple(params), tuple(dims_), tuple(body), **more)


def out(dtype, *shape, name="y"):
    return Param(name, dtype, shape, Access.OUT)


def add(a, b):
    return Op("add", (a, b), a.dtype)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 100])
def test_a_vector_loop_covers_a_symbolic_extent(n):
    body = [For("i0", N, (Store("y", (I0,), add(Load("x", (I0,), F32), Const(1.0, F32))),), LoopKind.VECTOR, 16)]
    x, y = np.arange(n, dtype=np.float32), np.zeros(n, np.float32)
    assert run_kernel(kernel([Param("x", F32, (N,)), out(F32, N)], body, ["d0"]), [x, y], [n]) is None
    np.testing.assert_array_equal(y, x + 1)


def test_lanes_see_what_an_earlier_chunk_stored():
    # y[i] = y[i - 4] + 1 with 4 lanes: chunk after chunk, not all lanes at once
    body = [For("i0", 12, (Store("y", (I0 + 4,), add(Load("y", (I0,), F32), Const(1.0, F32))),), LoopKind.VECTOR, 4)]
    y = np.zeros(16, np.float32)
    run_kernel(kernel([Param("y", F32, (16,), Access.INOUT)], body), [y], [])
    np.testing.assert_array_equal(y, np.repeat([0, 1, 2, 3], 4))


def test_register_tiles_accumulate_in_lanes():
    acc = Load("r", (I1,), F32)
    body = [
        Alloc("r", F32, (4,), Space.REGISTER),
        For("i1", 4, (Store("r", (I1,), Const(0.0, F32)),), LoopKind.VECTOR, 4),
        For("i0", 3, (For("i1", 4, (Store("r", (I1,), add(acc, Load("x", (I0, I1), F32))),), LoopKind.VECTOR, 4),)),
        For("i1", 4, (Store("y", (I1,), acc),), LoopKind.VECTOR, 4),
    ]
    x, y = np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros(4, np.float32)
    run_kernel(kernel([Param("x", F32, (3, 4)), out(F32, 4)], body), [x, y], [])
    np.testing.assert_array_equal(y, x.sum(0))


def test_masked_lanes_load_zero_and_store_nothing():
    mask = Op("lt", (Index(I0), Const(3, I64)), BOOL)
    body = [For("i0", 8, (Store("y", (I0,), Load("x", (I0,), F32, mask)), Store("z", (I0,), Const(7.0, F32), mask)), LoopKind.VECTOR, 8)]
    y, z = np.full(8, 5, np.float32), np.zeros(3, np.float32)
    run_kernel(kernel([Param("x", F32, (3,)), out(F32, 8), out(F32, 3, name="z")], body), [np.ones(3, np.float32), y, z], [])
    np.testing.assert_array_equal(y, [1, 1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(z, [7, 7, 7])


@pytest.mark.parametrize("kind", [LoopKind.SERIAL, LoopKind.VECTOR])
def test_an_access_out_of_bounds_names_buffer_and_index(kind):
    body = [For("i0", 4, (Store("y", (I0 + 1,), Const(0.0, F32)),), kind, 4)]
    with pytest.raises(OutOfBoundsError, match=r"y\[i0 \+ 1\]: index 4 is outside axis 0 of shape \[4\]"):
        run_kernel(kernel([out(F32, 4)], body), [np.zeros(4, np.float32)], [])


def test_a_failed_check_on_any_lane_stops_with_its_status():
    inside = Op("lt", (Load("x", (I0,), I64), Const(4, I64)), BOOL)
    body = [For("i0", 5, (Check(inside, Status.INDEX),), LoopKind.VECTOR, 8)]
    small = kernel([Param("x", I64, (5,))], body)
    assert run_kernel(small, [np.arange(5) - 1], []) is None
    assert run_kernel(small, [np.arange(5)], []) is Status.INDEX


def test_while_counts_in_a_stack_buffer():
    count = Load("s", (), I64)
    body = [
        Alloc("s", I64, (), Space.STACK),
        Store("s", (), Const(0, I64)),
        While(Op("lt", (count, Const(5, I64)), BOOL), (Store("s", (), add(count, Const(2, I64))),)),
        Store("y", (0,), count),
    ]
    y = np.zeros(1, np.int64)
    run_kernel(kernel([out(I64, 1)], body), [y], [])
    assert y[0] == 6


def test_a_let_is_an_index_and_a_value():
    found = dims.symbol("k")
    body = [
        For(
            "i0",
            3,
            (Let("k", Load("x", (I0,), I64)), Store("y", (found,), add(Var("k", I64), Index(found * 2)))),
        )
    ]
    y = np.zeros(3, np.int64)
    run_kernel(kernel([Param("x", I64, (3,)), out(I64, 3)], body), [np.array([2, 0, 1]), y], [])
    np.testing.assert_array_equal(y, [0, 3, 6])


def test_if_takes_one_branch_and_refuses_lanes_that_differ():
    def branch(cond):
        return If(cond, (Store("y", (I0,), Const(1.0, F32)),), (Store("y", (I0,), Const(2.0, F32)),))

    differs = Op("lt", (Index(I0), Const(2, I64)), BOOL)
    y = np.zeros(4, np.float32)
    run_kernel(kernel([out(F32, 4)], [For("i0", 4, (branch(differs),))]), [y], [])
    np.testing.assert_array_equal(y, [1, 1, 2, 2])
    with pytest.raises(Exception, match="differs between the lanes"):
        run_kernel(kernel([out(F32, 4)], [For("i0", 4, (branch(differs),), LoopKind.VECTOR, 4)]), [y], [])


def test_a_parallel_loop_runs_the_range_it_is_given():
    body = [For("i0", 10, (Store("y", (I0,), Const(1.0, F32)),), LoopKind.PARALLEL)]
    y = np.zeros(10, np.float32)
    run_kernel(kernel([out(F32, 10)], body), [y], [], 3, 6)
    np.testing.assert_array_equal(np.flatnonzero(y), [3, 4, 5])


def test_narrow_floats_round_after_each_operation():
    x = Load("x", (I0,), BF16)
    body = [For("i0", 64, (Store("y", (I0,), Op("mul", (add(x, x), x), BF16)),), LoopKind.VECTOR, 16)]
    x, y = np.random.default_rng(0).standard_normal(64).astype(BF16.numpy), np.zeros(64, BF16.numpy)
    run_kernel(kernel([Param("x", BF16, (64,)), out(BF16, 64)], body), [x, y], [])
    wide = x.astype(np.float32)
    np.testing.assert_array_equal(y, ((wide + wide).astype(BF16.numpy).astype(np.float32) * wide).astype(BF16.numpy))


def test_conversions_saturate_and_bits_reinterpret():
    x = Load("x", (I0,), F32)
    body = [
        For("i0", 5, (Store("y", (I0,), Cast(x, U8)), Store("z", (I0,), Bitcast(x, I32))), LoopKind.VECTOR, 8),
    ]
    x = np.array([-3.7, 3.7, 300, np.nan, np.inf], np.float32)
    y, z = np.zeros(5, np.uint8), np.zeros(5, np.int32)
    run_kernel(kernel([Param("x", F32, (5,)), out(U8, 5), out(I32, 5, name="z")], body), [x, y, z], [])
    np.testing.assert_array_equal(y, [0, 3, 255, 0, 255])
    np.testing.assert_array_equal(z, x.view(np.int32))


def test_select_takes_lanes_from_both_sides():
    cond = Op("eq", (Index(dims.mod(I0, 2)), Const(0, I64)), BOOL)
    body = [For("i0", 6, (Store("y", (I0,), Select(cond, Index(I0), Const(-1, I64))),), LoopKind.VECTOR, 4)]
    y = np.zeros(6, np.int64)
    run_kernel(kernel([out(I64, 6)], body), [y], [])
    np.testing.assert_array_equal(y, [0, -1, 2, -1, 4, -1])


def test_a_fresh_buffer_does_not_read_as_zero():
    body = [Alloc("s", F32, (1,)), Store("y", (0,), Load("s", (0,), F32))]
    y = np.zeros(1, np.float32)
    run_kernel(kernel([out(F32, 1)], body), [y], [])
    assert np.isnan(y[0])


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(Exception, match=r"parameter y of kernel test: expected contiguous f32\[4\], got float64\[4\]"):
        run_kernel(kernel([out(F32, 4)], []), [np.zeros(4)], [])


@pytest.mark.parametrize("dtype", [dtype for dtype in dtypes.ALL if dtype != dtypes.F8E8M0], ids=str)
def test_every_dtype_copies_through_loads_and_stores(dtype):
    body = [For("i0", 4, (Store("y", (I0,), Load("x", (I0,), dtype)),), LoopKind.VECTOR, 16)]
    x, y = np.array([0, 1, 1, 0]).astype(dtype.numpy), np.zeros(4, dtype.numpy)
    run_kernel(kernel([Param("x", dtype, (4,)), out(dtype, 4)], body), [x, y], [])
    np.testing.assert_array_equal(y.view(np.uint8), x.view(np.uint8))
