"""What threads do together, under the shim: each node against NumPy, and each mistake is reported by its name."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.ir.dims import Range
from tcompile.ir.dtypes import BY_NAME
from tcompile.ir.loops import Status
from tcompile.ir.loops_parse import parse_kernel
from tcompile.ir.tileops import LANES, TILE_OPS, assemble, distribute
from tests.cuda.kernel_runs import Loaded, run_cuda
from tests.cuda.shim_build import ShimError

RNG = np.random.default_rng(11)

REVERSE = """
kernel reverse(p0: in f32[n, 64], p1: out f32[n, 64]) dims (n) {
  grid g in 0..n {
    alloc s: f32[64] shared
    block t in 0..64 {
      store s[t] = load p0[g, t]
      barrier block
      store p1[g, t] = load s[63 - t]
    }
  }
}
"""


def test_shared_memory_and_barriers():
    x, y = RNG.standard_normal((3, 64)).astype(np.float32), np.zeros((3, 64), np.float32)
    run_cuda(parse_kernel(REVERSE), [x, y], [3])
    np.testing.assert_array_equal(y, x[:, ::-1])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("barrier block", "", r"race on s\[\d+\]: .*thread \d+"),
        ("barrier block", "barrier warp", r"race on s\[\d+\]"),
        ("load s[63 - t]", "load s[64 - t]", r"out of bounds: s\[64\] of 64 elements"),
        ("load p0[g, t]", "load p0[g, t + 1]", r"out of bounds: p0\[192\] of 192 elements"),
        ("store p1[g, t]", "store p1[g + 1, t]", r"block \(2, 0, 0\), thread \(0, 0, 0\): out of bounds: p1\[192\]"),
        ("store s[t] = load", "store s[0] = load", r"race on s\[0\]: written, since the last barrier touched by thread 0"),
    ],
)
def test_mistakes_on_memory_are_reported(old, new, message):
    assert old in REVERSE
    x, y = RNG.standard_normal((3, 64)).astype(np.float32), np.zeros((3, 64), np.float32)
    with pytest.raises(ShimError, match=message):
        unchecked(REVERSE.replace(old, new), [x, y], [3])


def unchecked(text: str, arrays: list[np.ndarray], dims: list[int]) -> Status | None:
    """Runs a kernel that the verifier would refuse."""
    from tests.cuda import kernel_runs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_runs, "verify_kernel", lambda kernel, ranges: None)
        return run_cuda(parse_kernel(text), arrays, dims)


def test_a_warp_barrier_orders_a_warp():
    text = """
    kernel k(p0: in f32[64], p1: out f32[64]) dims () {
      alloc s: f32[64] shared
      block t in 0..64 {
        store s[t] = load p0[t]
        barrier warp
        store p1[t] = load s[32*floordiv(t, 32) + 31 - mod(t, 32)]
      }
    }
    """
    x, y = RNG.standard_normal(64).astype(np.float32), np.zeros(64, np.float32)
    run_cuda(parse_kernel(text), [x, y])
    np.testing.assert_array_equal(y, x.reshape(2, 32)[:, ::-1].reshape(-1))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if lt(index(t), 40:i64) {\n barrier block\n }", "divergent: thread 0 waits at a barrier"),
        ("if lt(index(t), 40:i64) {\n let a = shuffle(x, 1)\n store p0[t] = a\n }", "divergent: thread 32 waits at a shuffle"),
        ("if lt(index(t), 7:i64) {\n barrier block\n } else {\n barrier block\n }", "divergent"),
    ],
)
def test_divergence_is_reported(body, message):
    text = f"kernel k(p0: out f32[64]) dims () {{ block t in 0..64 {{ let x = 1.0:f32\n {body} }} }}"
    with pytest.raises(ShimError, match=message):
        unchecked(text, [np.zeros(64, np.float32)], [])


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "bf16", "i64", "u64", "i32", "i8", "u8", "bool"])
@pytest.mark.parametrize("xor", [1, 5, 16, 31])
def test_shuffles_of_every_size(dtype, xor):
    text = f"""
    kernel k(p0: in {dtype}[64], p1: out {dtype}[64]) dims () {{
      block t in 0..64 {{ let x = load p0[t]
        store p1[t] = shuffle(x, {xor}) }}
    }}
    """
    x = RNG.integers(0, 2 if dtype == "bool" else 100, 64).astype(BY_NAME[dtype].numpy)
    y = np.zeros_like(x)
    run_cuda(parse_kernel(text), [x, y])
    np.testing.assert_array_equal(y.view(np.uint8), x.reshape(2, 32)[:, np.arange(32) ^ xor].reshape(-1).view(np.uint8))


ASYNC = """
kernel k(p0: in f32[n, 128], p1: out f32[n, 128]) dims (n) {
  grid g in 0..1 {
    alloc s: f32[2, 128] shared
    block t in 0..32 {
      copy_async s[0, 4*t] = p0[0, 4*t] elements 4
      commit_async
      for k in 0..n {
        copy_async s[mod(k + 1, 2), 4*t] = p0[min(k + 1, n - 1), 4*t] elements 4 if lt(index(k + 1), index(n))
        commit_async
        wait_async 1
        barrier block
        vector v in 0..4 width 4 {
          store p1[k, 4*t + v] = load s[mod(k, 2), 124 - 4*t + v]
        }
        barrier block
      }
      wait_async 0
    }
  }
}
"""


def async_arrays() -> tuple[np.ndarray, np.ndarray]:
    return RNG.standard_normal((5, 128)).astype(np.float32), np.zeros((5, 128), np.float32)


def test_asynchronous_copies_in_two_stages():
    x, y = async_arrays()
    run_cuda(parse_kernel(ASYNC), [x, y], [5])
    np.testing.assert_array_equal(y, x.reshape(5, 32, 4)[:, ::-1].reshape(5, 128))


def test_masked_copies_write_zeros():
    text = ASYNC.replace("if lt(index(k + 1), index(n))", "if lt(index(mod(t, 2)), 1:i64)")
    x, y = async_arrays()
    run_cuda(parse_kernel(text), [x, y], [5])
    expected = x.reshape(5, 32, 4).copy()
    expected[1:, 1::2] = 0
    np.testing.assert_array_equal(y, expected[:, ::-1].reshape(5, 128))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("wait_async 1\n        barrier block", "wait_async 1", "race on s"),
        ("        barrier block\n      }", "      }", "race on s"),
        ("      wait_async 0\n", "", "asynchronous copies that it has not awaited"),
        ("p0[0, 4*t] elements", "p0[0, 4*t + 1] elements", "misaligned: 16 bytes at p0"),
        ("copy_async s[0, 4*t] = p0[0, 4*t]", "copy_async s[0, 4*t] = p0[n, 4*t]", "out of bounds: p0"),
    ],
)
def test_mistakes_with_asynchronous_copies_are_reported(old, new, message):
    assert old in ASYNC
    with pytest.raises(ShimError, match=message):
        unchecked(ASYNC.replace(old, new), [*async_arrays()], [5])


def test_what_is_not_awaited_is_not_there():
    text = ASYNC.replace("wait_async 1", "wait_async 2")
    x, y = async_arrays()
    run_cuda(parse_kernel(text), [x, y], [5])
    assert np.isnan(y[0]).all()


@pytest.mark.parametrize("dtype", ["i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64"])
@pytest.mark.parametrize("fn", ["add", "and", "or", "xor", "min", "max"])
def test_integer_atomics(fn, dtype):
    text = f"""
    kernel k(p0: in {dtype}[96], p1: inout {dtype}[3]) dims () {{
      grid g in 0..3 {{ block t in 0..32 {{
        atomic {fn} p1[mod(t, 3)] if ne(index(t), 5:i64) = load p0[32*g + t]
      }} }}
    }}
    """
    numpy = BY_NAME[dtype].numpy
    x = RNG.integers(0, 127, 96).astype(numpy)
    y = np.array([3, 5, 9], numpy)
    expected = y.copy()
    function = {"add": np.add, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "min": np.minimum, "max": np.maximum}[fn]
    for k in range(96):
        if k % 32 != 5:
            expected[k % 32 % 3] = function(expected[k % 32 % 3], x[k])
    run_cuda(parse_kernel(text), [x, y])
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize(
    ("values", "least", "greatest"), [([-0.0, 0.0], -0.0, 0.0), ([0.0, -0.0, 3], -0.0, 3), ([1, np.nan, 2], np.nan, np.nan)]
)
def test_float_atomics(dtype, values, least, greatest):
    text = f"""
    kernel k(p0: in {dtype}[{len(values)}], p1: inout {dtype}[2]) dims () {{
      block t in 0..{len(values)} {{
        atomic min p1[0] = load p0[t]
        atomic max p1[1] = load p0[t]
      }}
    }}
    """
    numpy = {"f32": np.float32, "f64": np.float64}[dtype]
    y = np.array([np.inf, -np.inf], numpy)
    run_cuda(parse_kernel(text), [np.array(values, numpy), y])
    np.testing.assert_array_equal(y, np.array([least, greatest], numpy))
    np.testing.assert_array_equal(np.signbit(y[~np.isnan(y)]), np.signbit(np.array([least, greatest])[~np.isnan([least, greatest])]))


def test_a_failed_check_reports_and_the_block_still_meets():
    text = """
    kernel k(p0: in i64[n], p1: out i64[n]) dims (n) {
      grid g in 0..floordiv(n, 64) {
        alloc s: i64[64] shared
        block t in 0..64 {
          let x = load p0[64*g + t]
          check lt(x, index(n)) else INDEX
          store s[t] = load p0[x]
          barrier block
          store p1[64*g + t] = load s[63 - t]
        }
      }
    }
    """
    kernel = parse_kernel(text)
    x, y = RNG.integers(0, 128, 128), np.zeros(128, np.int64)
    assert run_cuda(kernel, [x, y], [128], {"n": Range(64, 1000)}) is None
    np.testing.assert_array_equal(y, x[x].reshape(2, 64)[:, ::-1].reshape(-1))
    x[70] = 128
    assert run_cuda(kernel, [x, y], [128]) is Status.INDEX


# Tile operations --------------------------------------------------------------------------------------------


def fragment_kernel(name: str, names: list[str]) -> str:
    """A warp loads its fragments, runs one tile operation and stores the result."""
    spec = TILE_OPS[name]
    dtypes = [fragment.dtypes[0] for fragment in spec.fragments]
    counts = [fragment.elements(dtype) for fragment, dtype in zip(spec.fragments, dtypes, strict=True)]
    operands = list(zip(names, dtypes, counts, strict=True))
    params = ", ".join(f"p{k}: {'inout' if k == 0 else 'in'} {dtype}[32, {count}]" for k, (_, dtype, count) in enumerate(operands))
    allocs = "\n".join(f"alloc {one}: {dtype}[{count}] register" for one, dtype, count in operands)
    loads = "\n".join(
        f"unrolled i{k} in 0..{count} {{ store {one}[i{k}] = load p{k}[t, i{k}]\n }}" for k, (one, _, count) in enumerate(operands)
    )
    calls = ", ".join(f"{one}[0]" for one in names)
    one, _, count = operands[0]
    return (
        f"kernel {name}({params}) dims () {{ block t in 0..32 {{\n{allocs}\n{loads}\ntile {name}({calls})\n"
        f"unrolled o in 0..{count} {{ store p0[t, o] = load {one}[o]\n }} }} }}"
    )


@pytest.mark.parametrize("name", [name for name, spec in TILE_OPS.items() if spec.lanes == LANES and not name.startswith("ldmatrix")])
def test_tile_operations_have_their_meaning(name):
    spec = TILE_OPS[name]
    fragments = []
    for fragment in spec.fragments:
        dtype = fragment.dtypes[0]
        shape = (LANES, fragment.elements(dtype))
        values = RNG.standard_normal(shape) if dtype.is_float else RNG.integers(0 if dtype.kind == "u" else -100, 100, shape)
        fragments.append(values.astype(dtype.numpy))
    arrays = [fragment.copy() for fragment in fragments]
    names = [f"r{k}" for k in range(len(fragments))]
    run_cuda(parse_kernel(fragment_kernel(name, names)), arrays)
    expected = spec.meaning(fragments if spec.accumulates else fragments[1:])
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(arrays[0], expected, rtol=0, atol=2e-6)  # one rounding of sums of at most 16 terms near 1
    else:
        np.testing.assert_array_equal(arrays[0], expected)


MATRICES = [(name, dtype) for name, spec in TILE_OPS.items() if name.startswith("ldmatrix") for dtype in spec.fragments[0].dtypes]


@pytest.mark.parametrize(("name", "dtype"), MATRICES, ids=str)
def test_ldmatrix_has_its_meaning(name, dtype):
    spec, found = TILE_OPS[name], dtype
    row, count = 16 // found.bytes, spec.fragments[0].elements(found)
    text = f"""
    kernel k(p0: in {dtype}[32, {row}], p1: out {dtype}[32, {count}]) dims () {{
      alloc s: {dtype}[32, {row}] shared
      block t in 0..32 {{
        alloc r: {dtype}[{count}] register
        vector v in 0..{row} width {row} {{ store s[t, v] = load p0[t, v]
        }}
        barrier block
        tile {name}(r[0], s[t, 0])
        unrolled o in 0..{count} {{ store p1[t, o] = load r[o]
        }}
      }}
    }}
    """
    rows = RNG.integers(0, 100, (32, row)).astype(found.numpy)
    result = np.zeros((32, count), found.numpy)
    run_cuda(parse_kernel(text), [rows, result])
    np.testing.assert_array_equal(result.view(np.uint8), spec.meaning([rows]).view(np.uint8))


def test_a_product_of_tiles_by_ldmatrix_and_mma():
    text = """
    kernel k(p0: in f16[16, 16], p1: in f16[16, 8], p2: out f32[16, 8]) dims () {
      alloc a: f16[16, 16] shared
      alloc b: f16[16, 8] shared
      block t in 0..32 {
        alloc x: f16[8] register
        alloc y: f16[4] register
        alloc c: f32[2, 4] register
        copy_async a[floordiv(t, 2), 8*mod(t, 2)] = p0[floordiv(t, 2), 8*mod(t, 2)] elements 8
        copy_async b[mod(t, 16), 0] = p1[mod(t, 16), 0] elements 8 if lt(index(t), 16:i64)
        commit_async
        unrolled o in 0..4 { store c[1, o] = 0.0:f32
        }
        wait_async 0
        barrier block
        tile ldmatrix_x4(x[0], a[mod(t, 16), 8*floordiv(t, 16)])
        tile ldmatrix_x2_trans(y[0], b[mod(t, 16), 0])
        tile mma_m16n8k16_f16(c[1, 0], x[0], y[0])
        unrolled o in 0..4 { store p2[floordiv(t, 4) + 8*floordiv(o, 2), 2*mod(t, 4) + mod(o, 2)] = load c[1, o]
        }
      }
    }
    """
    text = text.replace(
        "b[mod(t, 16), 0] = p1[mod(t, 16), 0] elements 8 if lt(index(t), 16:i64)", "b[mod(t, 16), 0] = p1[mod(t, 16), 0] elements 8"
    )
    a, b = (RNG.integers(-8, 8, shape).astype(np.float16) for shape in ((16, 16), (16, 8)))
    c = np.zeros((16, 8), np.float32)
    with pytest.raises(ShimError, match="race on b"):
        run_cuda(parse_kernel(text), [a, b, c])
    once = text.replace("copy_async b[mod(t, 16), 0]", "if lt(index(t), 16:i64) {\n copy_async b[mod(t, 16), 0]").replace(
        "elements 8\n        commit_async", "elements 8\n }\n        commit_async"
    )
    run_cuda(parse_kernel(once), [a, b, c])
    np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32))


def test_fragments_of_mma_are_distributed_and_assembled_back():
    for spec in TILE_OPS.values():
        for fragment in spec.fragments:
            if fragment.place is not None:
                elements = fragment.elements(fragment.dtypes[0])
                held = np.arange(spec.lanes * elements).reshape(spec.lanes, elements)
                np.testing.assert_array_equal(distribute(assemble(held, fragment.place), elements, fragment.place, spec.lanes), held)


def test_large_shared_memory_is_dynamic():
    text = """
    kernel k(p0: in f32[64], p1: out f32[64]) dims () {
      alloc a: f32[9000] shared
      alloc s: f32[9000] shared
      block t in 0..64 {
        store a[8000 + t] = load p0[t]
        store s[t] = load p0[t]
        barrier block
        store p1[t] = add(load a[8063 - t], load s[63 - t])
      }
    }
    """
    loaded = Loaded([parse_kernel(text)])
    assert "extern __shared__" in loaded.text
    x, y = RNG.standard_normal(64).astype(np.float32), np.zeros(64, np.float32)
    loaded.run(parse_kernel(text), [x, y])
    np.testing.assert_array_equal(y, 2 * x[::-1])


def test_grids_and_blocks_of_three_axes():
    text = """
    kernel k(p0: out i64[2, 3, n, 2, 3, 4]) dims (n) {
      grid a in 0..2 { grid b in 0..3 { grid c in 0..n { block d in 0..2 { block e in 0..3 { block f in 0..4 {
        store p0[a, b, c, d, e, f] = index(100000*a + 10000*b + 1000*c + 100*d + 10*e + f)
      } } } } } }
    }
    """
    y = np.zeros((2, 3, 5, 2, 3, 4), np.int64)
    run_cuda(parse_kernel(text), [y], [5])
    place = np.indices(y.shape)
    np.testing.assert_array_equal(y, sum(place[k] * 10 ** (5 - k) for k in range(6)))
