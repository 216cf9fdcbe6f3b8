"""Caches with room: [batch, heads, room, width] arrays that grow along the third axis without moving."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest

from tcompile import runtime
from tcompile.errors import InputError
from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.runtime.pitch import lies_in, placed, rows_of
from tests.runtime.test_donation import ROOT, address, built

B, H, D = 2, 3, 8
T = dims.symbol("t")


@functools.cache
def step(name="F32", count=2):
    """present_k = concat(past_k, new_k); y = sum over all rows of the first. ``count`` caches."""
    b = Builder("step")
    b.symbols["t"] = Range(0, None)
    dtype = getattr(dtypes, name)
    presents = []
    for k in range(count):
        past, new = b.input(f"past{k}", dtype, (B, H, T, D)), b.input(f"new{k}", dtype, (B, H, 1, D))
        presents.append(b.concat([past, new], 2))
    total = b.emit("reduce", presents[0], fn="add", axes=(2,))
    return built(b.graph([*presents, total], [*(f"present{k}" for k in range(count)), "y"]))


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def grow(caches, donate=True, count=2):
    """Twenty steps; the caches are views or arrays for each step, as ``caches(k, t)`` gives (past, present)."""
    exe, expected = step(count=count), [np.zeros((B, H, 0, D), np.float32) for _ in range(count)]
    for t in range(20):
        new = [rand(B, H, 1, D, seed=100 * t + k) for k in range(count)]
        expected = [np.concatenate(pair, 2) for pair in zip(expected, new, strict=True)]
        pairs = [caches(k, t) for k in range(count)]
        inputs = {f"past{k}": past for k, (past, _) in enumerate(pairs)} | {f"new{k}": array for k, array in enumerate(new)}
        out = {f"present{k}": present for k, (_, present) in enumerate(pairs) if present is not None}
        got = exe.run(inputs, out=out, donate=[f"past{k}" for k in range(count)] if donate else ())
        for k, (_, present) in enumerate(pairs):
            np.testing.assert_array_equal(got[f"present{k}"], expected[k])
            assert present is None or got[f"present{k}"] is present
        np.testing.assert_allclose(got["y"], expected[0].sum(2), rtol=1e-5, atol=1e-5)


def test_the_model_tells_which_axis_may_be_longer():
    exe = step()
    assert [spec.pitch is not None and spec.pitch[0] for spec in exe.inputs] == [2, False, 2, False]
    assert exe.shares["present0"][0] == "past0" and exe.shares["present1"][0] == "past1"


@pytest.mark.parametrize("donate", [True, False])
@pytest.mark.parametrize("room", [20, 64])
def test_caches_grow_where_they_are(room, donate):
    arrays = [np.zeros((B, H, room, D), np.float32) for _ in range(2)]
    grow(lambda k, t: (arrays[k][:, :, :t], arrays[k][:, :, : t + 1]), donate)


def test_keys_and_values_may_share_an_array():
    both = np.zeros((2, B, H, 32, D), np.float32)
    grow(lambda k, t: (both[k][:, :, :t], both[k][:, :, : t + 1]))


def test_arrays_that_are_no_such_views_are_copied():
    """Every other row, heads that are apart, another order of axes."""
    odd = np.zeros((B, H, 64, D), np.float32)
    apart = np.zeros((B, 2 * H, 32, D), np.float32)
    turned = np.zeros((B, 32, H, D), np.float32).transpose(0, 2, 1, 3)
    for array in (odd[:, :, ::2], apart[:, ::2], turned, apart[:, :H]):
        grow(lambda k, t, array=array: (array[:, :, :t], array[:, :, : t + 1]), count=1)


def test_caches_of_unlike_room():
    arrays = [np.zeros((B, H, room, D), np.float32) for room in (24, 40)]
    grow(lambda k, t: (arrays[k][:, :, :t], arrays[k][:, :, : t + 1]))


def test_one_cache_of_two_has_room():
    room = np.zeros((B, H, 64, D), np.float32)
    tight = [np.zeros((B, H, 0, D), np.float32)]

    def caches(k, t):
        if k == 0:
            return room[:, :, :t], room[:, :, : t + 1]
        past = tight[-1]
        tight.append(np.zeros((B, H, t + 1, D), np.float32))
        return past, tight[-1]

    grow(caches)


def test_present_in_another_array():
    arrays = [np.zeros((B, H, 32, D), np.float32) for _ in range(2)]

    def caches(k, t):
        return arrays[t % 2][:, :, :t], arrays[(t + 1) % 2][:, :, : t + 1]

    grow(caches, count=1)


def test_present_over_other_rows_of_the_same_array():
    """It begins at another address: there is a copy."""
    exe, array = step(count=1), rand(B, H, 32, D)
    past, new = array[:, :, :4].copy(), rand(B, H, 1, D, seed=1)
    got = exe.run([array[:, :, :4], new], out={"present0": array[:, :, 2:7]}, donate=["past0"])["present0"]
    np.testing.assert_array_equal(got, np.concatenate([past, new], 2))


def test_new_rows_may_lie_in_the_cache():
    """Then they overlap the output: there is a copy."""
    exe, array = step(count=1), rand(B, H, 32, D)
    expected = array[:, :, :5].copy()
    got = exe.run([array[:, :, :4], array[:, :, 4:5]], out={"present0": array[:, :, :5]}, donate=["past0"])["present0"]
    np.testing.assert_array_equal(got, expected)


def test_views_without_gaps_and_runs_in_turn():
    """Shapes, pitches and no pitches one after the other in one session."""
    exe, array = step(count=1), rand(B, H, 32, D)
    new = rand(B, H, 1, D, seed=1)
    for t in (3, 3, 5, 3):
        for past in (array[:, :, :t], np.ascontiguousarray(array[:, :, :t])):
            expected = np.concatenate([past, new], 2)
            for _ in range(2):
                np.testing.assert_array_equal(exe.run([past, new])["present0"], expected)
                np.testing.assert_array_equal(exe.run([past, new], ["present0"])["present0"], expected)
                assert exe.run([past, new], ["y"]).keys() == {"y"}


def test_outputs_nobody_asked_for_have_room():
    """Their memory is as long as the others', or the run would write past it."""
    exe, array = step(count=2), rand(B, H, 512, D)
    new = rand(B, H, 1, D, seed=1)
    inputs = {"past0": array[:, :, :4], "new0": new, "past1": array[:, :, :4], "new1": new}
    out = np.zeros((B, H, 512, D), np.float32)
    for _ in range(3):
        got = exe.run(inputs, ["present1"], out={"present1": out[:, :, :5]})["present1"]
        np.testing.assert_array_equal(got, np.concatenate([array[:, :, :4], new], 2))
        assert not out[:, :, 5:].any()


def test_half_precision_caches():
    exe = step("F16", 1)
    array = np.zeros((B, H, 16, D), np.float16)
    new = rand(B, H, 1, D).astype(np.float16)
    got = exe.run([array[:, :, :3], new], ["present0"], out={"present0": array[:, :, :4]}, donate=["past0"])["present0"]
    assert address(got) == address(array) and (got[:, :, 3:] == new).all()


def test_a_wrong_shape_is_named():
    exe, array = step(count=1), rand(B, H, 16, D)
    with pytest.raises(InputError, match=r"out\['present0'\] is float32 of shape \(2, 3, 6, 8\)"):
        exe.run([array[:, :, :4], rand(B, H, 1, D)], out={"present0": array[:, :, :6]})
    with pytest.raises(InputError, match="input 'past0' has extent 3 on axis 0, expected 2"):
        exe.run([rand(3, H, 16, D)[:, :, :4], rand(B, H, 1, D)])


def test_a_cache_of_one_head_grows_too():
    """Its model has many; the run has one."""
    b = Builder("step")
    b.symbols.update({"t": Range(0, None), "h": Range(1, None)})
    heads = dims.symbol("h")
    past, new = b.input("past", dtypes.F32, (heads, T, D)), b.input("new", dtypes.F32, (heads, 1, D))
    exe = built(b.graph([b.concat([past, new], 1)], ["present"]))
    for h in (1, 4):
        array = rand(h, 16, D)
        expected = np.concatenate([array[:, :5], rand(h, 1, D, seed=1)], 1)
        got = exe.run([array[:, :5], rand(h, 1, D, seed=1)], out={"present": array[:, :6]}, donate=["past"])["present"]
        np.testing.assert_array_equal(got, expected)
        assert address(got) == address(array)


def test_profile_and_shapes_work_on_views():
    exe, array = step(count=1), rand(B, H, 16, D)
    assert exe.profile([array[:, :, :4], rand(B, H, 1, D)], runs=1).calls
    assert exe.output_shapes({"past0": (B, H, 4, D), "new0": (B, H, 1, D)})["present0"] == (B, H, 5, D)


_PROTECTED = """
import ctypes, mmap, sys
import numpy as np
from tcompile.runtime import load

PAGE = mmap.PAGESIZE
rows = 2 * PAGE // 32  # each head has two pages of past, then one with room
memory = mmap.mmap(-1, 6 * 3 * PAGE)
cache = np.frombuffer(memory, np.float32).reshape(2, 3, -1, 8)
cache[:, :, :rows] = 7
libc = ctypes.CDLL(None, use_errno=True)
for head in range(6):
    start = cache.ctypes.data + head * 3 * PAGE
    assert libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(2 * PAGE), mmap.PROT_READ) == 0
inputs = {"past0": cache[:, :, :rows], "new0": np.ones((2, 3, 1, 8), np.float32)}
got = load(sys.argv[1]).run(inputs, ["present0"], out={"present0": cache[:, :, : rows + 1]}, donate=["past0"])["present0"]
assert (got[:, :, :rows] == 7).all() and (got[:, :, rows] == 1).all()
print("written in place")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="protects pages with mprotect")
def test_the_past_is_not_copied(tmp_path):
    """Its pages cannot be written to."""
    step(count=1).save(tmp_path / "step.tcm")
    done = subprocess.run([sys.executable, "-c", _PROTECTED, tmp_path / "step.tcm"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "written in place\n"), done.stderr


def test_a_cache_that_is_reshaped_has_no_pitch():
    b = Builder("step")
    b.symbols["t"] = Range(0, None)
    past, new = b.input("past", dtypes.F32, (B, H, T, D)), b.input("new", dtypes.F32, (B, H, 1, D))
    present = b.concat([past, new], 2)
    flat = b.reshape(present, (B * H, T + 1, D))
    exe = built(b.graph([present, flat], ["present", "flat"]))
    array, row = rand(B, H, 16, D), rand(B, H, 1, D, seed=1)
    expected = np.concatenate([array[:, :, :4], row], 2)
    got = exe.run([array[:, :, :4], row], out={"present": array[:, :, :5]}, donate=["past"])
    np.testing.assert_array_equal(got["present"], expected)
    np.testing.assert_array_equal(got["flat"], expected.reshape(B * H, 5, D))


@pytest.mark.parametrize(
    ("view", "rows"),
    [
        (lambda a: a, 16),
        (lambda a: a[:, :, :5], 16),
        (lambda a: a[:, :, 3:5], 16),
        (lambda a: a[:, :, :0], 16),
        (lambda a: a[:1, :1, :5], 5),
        (lambda a: a[:1, :, :5], 16),
        (lambda a: a[:, :1, :5], 48),
        (lambda a: a[:, :2, :5], None),
        (lambda a: a[:, :, ::2], None),
        (lambda a: a[:, :, ::-1], None),
        (lambda a: a[:, ::-1], None),
        (lambda a: a[..., :4], None),
        (lambda a: a.transpose(0, 1, 3, 2), None),
        (lambda a: np.broadcast_to(a[:, :1], a.shape), None),
    ],
)
def test_rows_of_views(view, rows):
    array = view(np.arange(B * H * 16 * D, dtype=np.float32).reshape(B, H, 16, D))
    assert rows_of(array, 2) == rows
    for wanted in ({}, {7: 64}):
        spec = runtime.TensorSpec("x", None, (), {}, pitch=(2, 7))
        copy = placed(array, spec, wanted)
        np.testing.assert_array_equal(copy, array)
        assert lies_in(copy, spec, wanted)
