"""GPU kernels as Loop IR: text, invariants, what the interpreter does and refuses, and the tile operations' layouts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcompile.codegen.fingerprint import fingerprint
from tcompile.codegen.loop_rewrite import Rewriter
from tcompile.errors import ExecutionError, InvalidModelError
from tcompile.ir.loops_interpret import run_kernel
from tcompile.ir.loops_parse import parse_kernel
from tcompile.ir.loops_text import print_kernel
from tcompile.ir.loops_verify import verify_kernel
from tcompile.ir.loops_verify_gpu import launch_loops, threads_of
from tcompile.ir.tileops import LANES, TILE_OPS, assemble, distribute, tf32

GOOD = """\
kernel sums(p0: in f32[d0, 64], p1: out f32[d0], p2: inout i32[4], p3: in f16[16, 16]) dims (d0) flops 64*d0 {
  grid i0 in 0..d0 {
    let x0 = index(i0 + 1)
    alloc s0: f32[64] shared
    alloc s1: f16[16, 16] shared
    block i1 in 0..2 {
      block i2 in 0..32 {
        alloc r0: f32[4] register
        alloc r1: f16[8] register
        copy_async s0[32*i1 + i2] = p0[i0, 32*i1 + i2] elements 1
        copy_async s1[floordiv(i2, 2), 8*mod(i2, 2)] = p3[floordiv(i2, 2), 8*mod(i2, 2)] elements 8 if lt(index(i1), 1:i64)
        commit_async
        wait_async 0
        barrier block
        let x1 = load s0[32*i1 + i2]
        let x2 = add(x1, shuffle(x1, 16))
        tile ldmatrix_x4(r1[0], s1[mod(i2, 16), 8*floordiv(i2, 16)])
        if eq(index(i1), 0:i64) {
          barrier warp
        }
        atomic add p2[0] if lt(x2, 0.0:f32) = 1:i32
        store p1[i0] = x2
      }
    }
  }
}
"""


def test_every_form_prints_and_parses_back():
    kernel = parse_kernel(GOOD)
    verify_kernel(kernel)
    assert print_kernel(kernel) == GOOD
    assert fingerprint(parse_kernel(GOOD)) == fingerprint(rewritten(kernel))
    assert [loop.var for loop in launch_loops(kernel)[1]] == ["i1", "i2"]
    assert threads_of(kernel) == 64


def rewritten(kernel):
    return replace(kernel, body=Rewriter().block(kernel.body))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("block i1 in 0..2", "block i1 in 0..d0", "are not constants"),
        ("block i1 in 0..2", "block i1 in 0..64", "2048 threads in a block"),
        ("let x0 = index(i0 + 1)", "store p1[i0] = 0.0:f32", "Store stands beside the loop i1"),
        ("let x0 = index(i0 + 1)", "alloc b9: f32[4] register", "b9: only shared memory"),
        ("alloc r0: f32[4] register", "alloc s9: f32[4] shared", "s9: shared memory belongs to the block"),
        ("alloc s0: f32[64] shared", "alloc s0: f32[d0 + 64] shared", "s0: only shared memory of constant shape"),
        ("barrier block", "if lt(index(i2), 3:i64) { barrier block }", "a barrier stands under a condition that may differ"),
        ("barrier block", "if lt(load s0[i2], 0.0:f32) { barrier block }", "a barrier stands under a condition that may differ"),
        ("barrier block", "for i9 in 0..i1 { barrier block }", "a barrier stands under a condition that may differ"),
        ("eq(index(i1), 0:i64)", "eq(index(i2), 0:i64)", "a warp barrier stands under a condition that may differ"),
        ("block i2 in 0..32", "block i2 in 0..20", "a shuffle in a block of 40 threads"),
        ("let x2 =", "if lt(index(i2), 5:i64) { let x3 = shuffle(x1, 1) } let x2 =", "a shuffle stands under a condition"),
        ("shuffle(x1, 16)", "shuffle(x1, 32)", "a shuffle by 32"),
        ("commit_async", "", "asynchronous copies that nothing commits"),
        ("wait_async 0", "", "asynchronous copies that nothing awaits"),
        ("elements 1", "elements 3", "an asynchronous copy of 12 bytes"),
        ("copy_async s0[32*i1 + i2] = p0[i0, 32*i1 + i2]", "copy_async s0[i2] = s0[i2]", "s0 is no global memory"),
        ("atomic add p2[0] if lt(x2, 0.0:f32) = 1:i32", "atomic add p1[0] = 1.0:f32", "no atomic add of f32"),
        ("ldmatrix_x4(r1[0]", "ldmatrix_x4(r1[1]", "result reaches beyond r1"),
        ("ldmatrix_x4(r1[0]", "ldmatrix_x4(r0[0]", "ldmatrix_x4 of f16 and f32: expected one dtype"),
        ("ldmatrix_x4(r1[0]", "mma_m16n8k8_tf32(r1[0], r1[0]", "c is f32, r1 f16"),
        ("ldmatrix_x4(r1[0], s1", "ldmatrix_x4(r1[0], p3", "rows lies in shared memory"),
        ("tile ldmatrix_x4", "tile ldmatrix_x3", "no tile operation 'ldmatrix_x3'"),
        ("alloc r1: f16[8] register", "alloc r1: f16[8] register parallel i9 in 0..2 { }", "parallel"),
    ],
)
def test_a_broken_invariant_is_named(old, new, message):
    assert old in GOOD
    with pytest.raises(InvalidModelError, match=message):
        verify_kernel(parse_kernel(GOOD.replace(old, new)))


def test_what_tells_warps_apart_is_uniform_in_each():
    text = """
    kernel k(p0: out f32[64]) dims () {
      block i0 in 0..64 { let x0 = 1.0:f32 if lt(index(floordiv(i0, 32)), 1:i64) { store p0[i0] = shuffle(x0, 1) } }
    }
    """
    verify_kernel(parse_kernel(text))
    with pytest.raises(InvalidModelError, match="may differ between lanes"):
        verify_kernel(parse_kernel(text.replace("floordiv(i0, 32)", "floordiv(i0, 16)")))


def test_the_interpreter_runs_threads_that_do_not_meet():
    text = """
    kernel k(p0: in i32[n], p1: inout i32[4]) dims (n) {
      grid i0 in 0..floordiv(n + 7, 8) { block i1 in 0..8 {
        if lt(index(8*i0 + i1), index(n)) { atomic max p1[mod(i1, 4)] = load p0[8*i0 + i1] }
      } }
    }
    """
    kernel = parse_kernel(text)
    verify_kernel(kernel)
    x, result = np.random.default_rng(0).integers(-50, 50, 21, np.int32), np.full(4, -100, np.int32)
    run_kernel(kernel, [x, result], [21])
    columns = [x[[i for i in range(21) if i % 8 % 4 == k]].max() for k in range(4)]
    np.testing.assert_array_equal(result, columns)


def test_the_interpreter_refuses_threads_that_meet():
    kernel = parse_kernel("kernel k(p0: out f32[32]) dims () { block i0 in 0..32 { barrier block } }")
    with pytest.raises(ExecutionError, match="no Barrier"):
        run_kernel(kernel, [np.zeros(32, np.float32)], [])


@pytest.mark.parametrize(("x", "y"), [(-0.0, 0.0), (0.0, -0.0), (np.nan, 1.0), (1.0, np.nan)])
@pytest.mark.parametrize("fn", ["min", "max"])
def test_float_atomics_do_not_depend_on_the_order(fn, x, y):
    kernel = parse_kernel(f"kernel k(p0: in f32[2], p1: inout f32[1]) dims () {{ for i in 0..2 {{ atomic {fn} p1[0] = load p0[i] }} }}")
    results = []
    for values in ((x, y), (y, x)):
        result = np.array([-np.inf if fn == "max" else np.inf], np.float32)
        run_kernel(kernel, [np.array(values, np.float32), result], [])
        results.append(result)
    assert results[0].tobytes() == results[1].tobytes()


@pytest.mark.parametrize("name", [name for name in TILE_OPS if name.startswith("mma")])
def test_fragments_cover_their_matrix_once_and_mma_multiplies(name):
    spec, rng = TILE_OPS[name], np.random.default_rng(3)
    matrices, fragments = [], []
    for fragment in spec.fragments:
        dtype = fragment.dtypes[0]
        elements = fragment.elements(dtype)
        places = {fragment.place(lane, element) for lane in range(LANES) for element in range(elements)}
        rows, columns = (1 + max(place[axis] for place in places) for axis in range(2))
        assert len(places) == LANES * elements == rows * columns
        matrix = rng.integers(0 if dtype.kind == "u" else -8, 8, (rows, columns)).astype(dtype.numpy)
        matrices.append(matrix)
        fragments.append(distribute(matrix, elements, fragment.place))
    c, a, b = matrices
    expected = c.astype(np.float64) + a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_array_equal(assemble(spec.meaning(fragments), spec.fragments[0].place).astype(np.float64), expected)


def test_ldmatrix_hands_out_what_mma_reads():
    a = np.arange(256).reshape(16, 16).astype(np.float16)
    rows = np.stack([a[lane % 16, 8 * (lane // 16) : 8 * (lane // 16) + 8] for lane in range(LANES)])
    fragment = TILE_OPS["mma_m16n8k16_f16"].fragments[1]
    np.testing.assert_array_equal(TILE_OPS["ldmatrix_x4"].meaning([rows]), distribute(a, 8, fragment.place))
    b = np.arange(128).reshape(16, 8).astype(np.float16)
    fragment = TILE_OPS["mma_m16n8k16_f16"].fragments[2]
    rows = np.stack([b[lane % 16] for lane in range(LANES)])
    np.testing.assert_array_equal(TILE_OPS["ldmatrix_x2_trans"].meaning([rows]), distribute(b, 4, fragment.place))


def test_round_tf32_rounds_to_nearest():
    x = np.array([[1.0 + 2.0**-11], [1.0 + 2.0**-12], [-np.inf], [np.nan], [3.0]] + [[0.0]] * 27, np.float32)
    result = TILE_OPS["round_tf32"].meaning([x])
    np.testing.assert_array_equal(result[:5, 0], np.array([1.0 + 2.0**-10, 1.0, -np.inf, np.nan, 3.0], np.float32))
    assert tf32(x)[0, 0] == 1.0
