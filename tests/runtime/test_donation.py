"""Donated inputs: outputs in their memory where the program allows it, right answers everywhere."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tcompile import runtime
from tcompile.codegen.artifact import write_artifact
from tcompile.codegen.build import build_image
from tcompile.codegen.lower import lower
from tcompile.errors import InputError
from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.target import native_target
from tcompile.runtime.placement import Placement, spans

N = dims.symbol("n")
ROOT = Path(__file__).parents[2]


def built(graph):
    target = native_target()
    program = lower(graph, target)
    return runtime.load(write_artifact(program, build_image(program, target, 0), target))


@functools.cache
def cache_step():
    """present = concat(past, step); last = sum of present's rows: a cache that grows by a row each step."""
    b = Builder("step")
    b.symbols["n"] = Range(0, None)
    past, step = b.input("past", dtypes.F32, (1, N, 8)), b.input("step", dtypes.F32, (1, 1, 8))
    present = b.concat([past, step], 1)
    return built(b.graph([present, b.emit("reduce", present, fn="add", axes=(1,))], ["present", "total"]))


@functools.cache
def cache_update():
    """present = past with a row replaced."""
    b = Builder("update")
    past, at, row = b.input("past", dtypes.F32, (6, 8)), b.input("at", dtypes.I64, (1, 1)), b.input("row", dtypes.F32, (1, 8))
    return built(b.graph([b.emit("scatter_nd", past, at, row, combiner="set")], ["present"]))


@functools.cache
def two_sums():
    """p = x + y; q = p * y: x is dead when p is written, y is not."""
    b = Builder("sums")
    b.symbols["n"] = Range(0, None)
    x, y = b.input("x", dtypes.F32, (N,)), b.input("y", dtypes.F32, (N,))
    p = b.map("add", x, y)
    return built(b.graph([p, b.map("mul", p, y)], ["p", "q"]))


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def address(array):
    return array.ctypes.data


def test_a_cache_grows_in_its_own_memory():
    exe = cache_step()
    assert exe.shares["present"] == ("past",)
    cache, expected = np.zeros((1, 64, 8), np.float32), np.zeros((1, 0, 8), np.float32)
    for n in range(63):
        step = rand(1, 1, 8, seed=n)
        expected = np.concatenate([expected, step], 1)
        got = exe.run({"past": cache[:, :n], "step": step}, out={"present": cache[:, : n + 1]}, donate=["past"])
        assert address(got["present"]) == address(cache)
        np.testing.assert_array_equal(got["present"], expected)
        np.testing.assert_allclose(got["total"], expected.sum(1), rtol=1e-5, atol=1e-5)


_PROTECTED = """
import ctypes, mmap, sys
import numpy as np
from tcompile.runtime import load

PAGE = mmap.PAGESIZE
rows = 4 * PAGE // 32
memory = mmap.mmap(-1, 5 * PAGE)
cache = np.frombuffer(memory, np.float32).reshape(1, -1, 8)
cache[:, :rows] = 7
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mprotect(ctypes.c_void_p(cache.ctypes.data), ctypes.c_size_t(4 * PAGE), mmap.PROT_READ) == 0
inputs = {"past": cache[:, :rows], "step": np.ones((1, 1, 8), np.float32)}
present = load(sys.argv[1]).run(inputs, ["present"], out={"present": cache[:, : rows + 1]}, donate=["past"])["present"]
assert (present[:, :rows] == 7).all() and (present[:, rows] == 1).all()
print("written in place")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="protects pages with mprotect")
def test_what_a_donated_cache_holds_is_not_copied(tmp_path):
    """The pages of the past rows cannot be written to."""
    cache_step().save(tmp_path / "step.tcm")
    done = subprocess.run([sys.executable, "-c", _PROTECTED, tmp_path / "step.tcm"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "written in place\n"), done.stderr


def test_a_row_is_replaced_in_place():
    exe, past, row = cache_update(), rand(6, 8), rand(1, 8, seed=1)
    expected = past.copy()
    expected[4] = row
    got = exe.run({"past": past, "at": np.array([[4]]), "row": row}, donate=["past"])["present"]
    assert got is past
    np.testing.assert_array_equal(got, expected)


def test_without_donation_inputs_stay_as_they_are():
    exe, past = cache_update(), rand(6, 8)
    before = past.copy()
    got = exe.run({"past": past, "at": np.array([[4]]), "row": rand(1, 8)})["present"]
    np.testing.assert_array_equal(past, before)
    assert not np.shares_memory(got, past)


def test_out_over_an_input_that_is_not_donated_is_right():
    exe, past, row = cache_update(), rand(6, 8), rand(1, 8, seed=1)
    expected = past.copy()
    expected[4] = row
    assert exe.run({"past": past, "at": np.array([[4]]), "row": row}, out={"present": past})["present"] is past
    np.testing.assert_array_equal(past, expected)


def test_an_input_that_is_still_read_is_not_overwritten():
    exe, x, y = two_sums(), rand(100), rand(100, seed=1)
    assert exe.shares == {"p": ("x",), "q": ("y", "x")}
    p, q = x + y, (x + y) * y
    got = exe.run([x, y], donate=["x", "y"])
    assert got["p"] is x and got["q"] is y
    np.testing.assert_array_equal(got["p"], p)
    np.testing.assert_allclose(got["q"], q, rtol=1e-6)


@pytest.mark.parametrize("donate", [(), ("x",), ("y",), ("x", "y")])
@pytest.mark.parametrize("order", range(24))
def test_every_placement_gives_the_right_answer(order, donate):
    """Inputs and outputs in one block of memory, overlapping in every way: where they may not share, there is a copy."""
    places = list(itertools.permutations((0, 50, 100, 100)))[order]
    exe, block = two_sums(), np.zeros(200, np.float32)
    x, y, p, q = (block[start : start + 100] for start in places)
    x[:], y[:] = rand(100), rand(100, seed=1)
    a, b = x.copy(), y.copy()
    got = exe.run({"x": x, "y": y}, ["q"], out={"q": q}, donate=donate)
    np.testing.assert_allclose(got["q"], (a + b) * b, rtol=1e-6)
    x[:], y[:] = rand(100), rand(100, seed=1)
    a, b = x.copy(), y.copy()
    np.testing.assert_allclose(exe.run([x, y], ["p"], out={"p": p}, donate=donate)["p"], a + b, rtol=1e-6)


def test_an_array_given_twice_is_overwritten_only_where_both_are_dead():
    exe, x = two_sums(), rand(100)
    a = x.copy()
    got = exe.run([x, x], donate=["x"])
    np.testing.assert_array_equal(got["p"], a + a)
    np.testing.assert_allclose(got["q"], (a + a) * a, rtol=1e-6)
    assert not np.shares_memory(got["p"], x) and not np.shares_memory(got["q"], x)


def test_an_output_leaves_out_arrays_alone():
    """y is donated, but p is to be written there: q may not have it."""
    exe, x, y = two_sums(), rand(100), rand(100, seed=1)
    p, q = x + y, (x + y) * y
    got = exe.run([x, y], out={"p": y}, donate=["y"])
    assert got["p"] is y and not np.shares_memory(got["q"], y)
    np.testing.assert_array_equal(got["p"], p)
    np.testing.assert_allclose(got["q"], q, rtol=1e-6)


def test_read_only_and_scattered_inputs_can_be_donated():
    exe, y = two_sums(), rand(100, seed=1)
    frozen = rand(100)
    frozen.flags.writeable = False
    scattered = rand(200)[::2]
    for x in (frozen, scattered):
        before = x.copy()
        got = exe.run([x, y], donate=["x"])
        np.testing.assert_array_equal(got["p"], before + y)
        np.testing.assert_array_equal(x, before)


def test_a_smaller_output_takes_part_of_the_memory():
    b = Builder("rows")
    x = b.input("x", dtypes.F32, (6, 8))
    total = b.emit("reduce", b.map("exp", b.map("neg", x)), fn="add", axes=(0,))
    exe, array = built(b.graph([total], ["total"])), rand(6, 8)
    before = array.copy()
    got = exe.run([array], donate=["x"])["total"]
    assert address(got) == address(array) and got.shape == (8,)
    np.testing.assert_allclose(got, np.exp(-before).sum(0), rtol=1e-5)


def test_names_are_checked():
    with pytest.raises(InputError, match="no input 'z'"):
        two_sums().run([rand(3), rand(3)], donate=["z"])


def test_an_output_larger_than_the_memory_has_its_own():
    exe, past, step = cache_step(), rand(1, 3, 8), rand(1, 1, 8)
    expected = np.concatenate([past, step], 1)
    np.testing.assert_array_equal(exe.run([past, step], donate=["past"])["present"], expected)


def test_a_donated_array_goes_to_one_output():
    place = Placement([rand(8)], {}, {0}, {0: [0], 1: [0]})
    spec = two_sums().outputs[0]
    first, second = (place.choose(k, spec, ((8,), np.dtype(np.float32))) for k in range(2))
    assert not np.shares_memory(first, second)


def test_spans_of_arrays_with_gaps_hold_them_all():
    block = np.zeros((4, 6), np.float32)
    assert spans(block[1:3, 2:4]) == (address(block) + 32, address(block) + 64)
    assert spans(block[:0])[0] == spans(block[:0])[1]


def test_the_report_tells():
    assert cache_step().report()["shares"]["present"] == ["past"]
