"""Core ops: evaluation against plain loops, agreement of evaluation with the type rule, and messages of the type rule."""

from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcompile.errors import ExecutionError, InvalidModelError
from tcompile.ir import dims, dtypes
from tcompile.ir.dtypes import BF16, F32, I8, I32, I64, U8
from tcompile.ir.graph import TensorType
from tcompile.ir.ops import REGISTRY, evaluate, infer
from tcompile.ir.ops_contraction import window_count

RNG = np.random.default_rng(0)


def run(op: str, *arrays: np.ndarray, **attrs) -> np.ndarray:
    """Evaluates an op with one output, and checks its type against the type rule."""
    types = [TensorType(dtypes.from_numpy(array.dtype), array.shape) for array in arrays]
    (expected,) = infer(op, types, attrs)
    (result,) = evaluate(op, arrays, attrs)
    assert (dtypes.from_numpy(result.dtype), result.shape) == (expected.dtype, expected.shape)
    return result


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


# Contractions -----------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_dot_general_is_einsum(data: st.DataObject) -> None:
    letters = "abcdef"
    extents = {letter: data.draw(st.integers(0, 3)) for letter in letters}
    roles = {letter: data.draw(st.sampled_from(["batch", "contract", "a", "b"])) for letter in letters}
    of_a = data.draw(st.permutations([x for x in letters if roles[x] != "b"]))
    of_b = data.draw(st.permutations([x for x in letters if roles[x] != "a"]))
    named = {role: [x for x in of_a if roles[x] == role] for role in ("batch", "contract")}
    out = "".join(named["batch"] + [x for x in of_a if roles[x] == "a"] + [x for x in of_b if roles[x] == "b"])
    a, b = (normal(*(extents[x] for x in order)) for order in (of_a, of_b))
    axes = {role: (tuple(map(of_a.index, names)), tuple(map(of_b.index, names))) for role, names in named.items()}
    got = run("dot_general", a, b, **axes, dtype=F32)
    np.testing.assert_allclose(got, np.einsum(f"{''.join(of_a)},{''.join(of_b)}->{out}", a, b), rtol=1e-5, atol=1e-5)


def test_dot_of_bytes_sums_in_i32_and_wraps() -> None:
    a, b = np.full((1, 3), -128, np.int8), np.full((3, 1), 255, np.uint8)
    assert run("dot_general", a, b, batch=((), ()), contract=((1,), (0,)), dtype=I32).item() == -128 * 255 * 3
    wide = np.full((1, 2), 2**62, np.int64)
    assert run("dot_general", wide, wide, batch=((), ()), contract=((0, 1), (0, 1)), dtype=I64).item() == 0


def plain_conv(x, w, strides, lhs, dilation, low, high, groups):
    """A convolution as nested sums."""
    n, c, *space = x.shape
    spread = [(k - 1) * d + 1 if k else 0 for k, d in zip(space, lhs, strict=True)]
    padded = np.zeros((n, c, *(a + k + b for a, k, b in zip(low, spread, high, strict=True))))
    padded[(..., *(slice(a, a + k, d) for a, k, d in zip(low, spread, lhs, strict=True)))] = x
    out = [window_count(k, m, s, d, 0, 0) for k, m, s, d in zip(padded.shape[2:], w.shape[2:], strides, dilation, strict=True)]
    result = np.zeros((n, w.shape[0], *out))
    for o, at in itertools.product(range(w.shape[0]), itertools.product(*map(range, out))):
        first = o // (w.shape[0] // groups) * w.shape[1]
        for tap in itertools.product(*map(range, w.shape[2:])):
            place = tuple(i * s + t * d for i, s, t, d in zip(at, strides, tap, dilation, strict=True))
            result[(slice(None), o, *at)] += padded[(slice(None), slice(first, first + w.shape[1]), *place)] @ w[(o, slice(None), *tap)]
    return result


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_conv_is_its_sum(data: st.DataObject) -> None:
    rank, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    inputs, outputs = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    per_axis = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    kernel, strides, dilation, lhs = per_axis(1, 3), per_axis(1, 2), per_axis(1, 2), per_axis(1, 2)
    low, high = per_axis(0, 2), per_axis(0, 2)
    fewest = [max(1, (k - 1) * d + 1 - a - b) for k, d, a, b in zip(kernel, dilation, low, high, strict=True)]
    space = tuple(data.draw(st.integers(extent, 6)) for extent in fewest)
    x, w = normal(2, groups * inputs, *space), normal(groups * outputs, inputs, *kernel)
    got = run("conv", x, w, strides=strides, lhs_dilation=lhs, dilation=dilation, low=low, high=high, groups=groups, dtype=F32)
    np.testing.assert_allclose(got, plain_conv(x, w, strides, lhs, dilation, low, high, groups), rtol=1e-4, atol=1e-5)


# Reductions -------------------------------------------------------------------------------------------------


def test_reduce_of_nothing_is_the_identity() -> None:
    for fn, identity in (("add", 0.0), ("mul", 1.0), ("max", -np.inf), ("min", np.inf)):
        assert run("reduce", np.zeros((2, 0), np.float32), fn=fn, axes=(1,)).tolist() == [identity] * 2
    assert run("reduce", np.zeros((0,), np.int8), fn="max", axes=(0,)) == -128
    assert run("reduce", np.zeros((0,), bool), fn="and", axes=(0,))


def test_reduce_keeps_integers_in_their_type_and_narrow_floats_from_drifting() -> None:
    assert run("reduce", np.full(3, 100, np.int8), fn="add", axes=(0,)) == np.int8(300 - 256 * 1)
    ones = np.ones(5000, ml_dtypes.bfloat16)
    assert float(run("reduce", ones, fn="add", axes=(0,))) == pytest.approx(5000, rel=0.01)


def test_arg_reduce_takes_the_first_or_last_and_a_nan_wins() -> None:
    x = np.array([1, 3, 3, 0], np.float32)
    assert [int(run("arg_reduce", x, fn="max", axis=0, last=last)) for last in (False, True)] == [1, 2]
    assert int(run("arg_reduce", np.array([1, np.nan, 3], np.float32), fn="min", axis=0, last=False)) == 1


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_reduce_window_folds_each_window(data: st.DataObject) -> None:
    fn = data.draw(st.sampled_from(["add", "max", "min", "mul"]))
    one = lambda low, high: (data.draw(st.integers(low, high)), data.draw(st.integers(low, high)))  # noqa: E731
    window, strides, dilation, low, high = one(1, 3), one(1, 3), one(1, 2), one(0, 2), one(0, 2)
    fewest = [max(1, (k - 1) * d + 1 - a - b) for k, d, a, b in zip(window, dilation, low, high, strict=True)]
    shape = tuple(extent + data.draw(st.integers(0, 3)) for extent in fewest)
    x = normal(*shape)
    got = run("reduce_window", x, fn=fn, window=window, strides=strides, dilation=dilation, low=low, high=high)
    fold = {"add": np.sum, "mul": np.prod, "max": np.max, "min": np.min}[fn]
    fill = {"add": 0, "mul": 1, "max": -np.inf, "min": np.inf}[fn]
    padded = np.pad(x, list(zip(low, high, strict=True)), constant_values=fill)
    for at in np.ndindex(got.shape):
        part = tuple(slice(i * s, i * s + (k - 1) * d + 1, d) for i, s, k, d in zip(at, strides, window, dilation, strict=True))
        np.testing.assert_allclose(got[at], fold(padded[part]), rtol=1e-5, atol=1e-6)


def test_cumulative_exclusive_and_reverse() -> None:
    x = np.array([1, 2, 3], np.float32)
    results = {
        (exclusive, reverse): run("cumulative", x, fn="add", axis=0, exclusive=exclusive, reverse=reverse).tolist()
        for exclusive in (False, True)
        for reverse in (False, True)
    }
    assert results == {(False, False): [1, 3, 6], (False, True): [6, 5, 3], (True, False): [0, 1, 3], (True, True): [5, 3, 0]}


# Movement ---------------------------------------------------------------------------------------------------


@given(st.integers(-12, 12), st.integers(0, 6), st.sampled_from([-3, -2, -1, 1, 2, 3]))
def test_slice_reads_start_plus_multiples_of_step(start: int, size: int, step: int) -> None:
    x = np.arange(10, dtype=np.int64)
    places = [start + k * step for k in range(size)]
    if all(0 <= at < 10 for at in places):
        assert run("slice", x, start=(start,), size=(size,), step=(step,)).tolist() == places
    else:
        with pytest.raises(InvalidModelError):
            infer("slice", [TensorType(I64, (10,))], {"start": (start,), "size": (size,), "step": (step,)})
        with pytest.raises(ExecutionError):
            evaluate("slice", [x], {"start": (start,), "size": (size,), "step": (step,)})


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
@given(low=st.integers(0, 9), extent=st.integers(1, 4), high=st.integers(0, 9))
def test_pad_modes_are_numpys(mode: str, low: int, extent: int, high: int) -> None:
    x = np.arange(extent, dtype=np.float32)
    assert run("pad", x, low=(low,), high=(high,), mode=mode).tolist() == np.pad(x, (low, high), mode).tolist()


def test_broadcast_places_axes() -> None:
    x = normal(3)
    np.testing.assert_array_equal(run("broadcast", x, shape=(2, 3, 4), axes=(1,)), np.broadcast_to(x[:, None], (2, 3, 4)))
    with pytest.raises(ExecutionError, match="does not broadcast"):
        evaluate("broadcast", [x], {"shape": (2,), "axes": (0,)})


# Indexing, order --------------------------------------------------------------------------------------------


def test_indices_outside_stop() -> None:
    x = normal(3, 2)
    for bad in (-1, 3):
        with pytest.raises(ExecutionError, match=f"index {bad}"):
            evaluate("gather", [x, np.array([bad])], {"axis": 0})


def test_gather_nd_with_batch_axes() -> None:
    x, indices = normal(2, 3, 4), np.array([[[1], [0]], [[2], [2]]])
    got = run("gather_nd", x, indices, batch=1)
    np.testing.assert_array_equal(got, np.stack([x[b][indices[b, :, 0]] for b in range(2)]))


def test_scatter_combines_in_order() -> None:
    x, indices, updates = np.zeros(3, np.float32), np.array([[1], [1], [2]]), np.array([5, 7, 9], np.float32)
    results = {fn: run("scatter_nd", x, indices, updates, combiner=fn).tolist() for fn in ("set", "add", "max")}
    assert results == {"set": [0, 7, 9], "add": [0, 12, 9], "max": [0, 7, 9]}
    got = run("scatter_elements", np.zeros((2, 3), np.int64), np.array([[2, 0]]), np.array([[4, 5]]), axis=1, combiner="set")
    assert got.tolist() == [[5, 0, 4], [0, 0, 0]]


def test_sort_is_stable_with_nan_the_largest() -> None:
    key, place = np.array([2, np.nan, 1, 2, np.nan], np.float32), np.arange(5)
    for descending, order in ((False, [2, 0, 3, 1, 4]), (True, [1, 4, 0, 3, 2])):
        got = evaluate("sort", [key, place], {"axis": 0, "descending": descending})
        assert got[1].tolist() == order


def test_compact_puts_true_indices_in_front() -> None:
    indices, count = evaluate("compact", [np.array([False, True, True])])
    assert indices.tolist() == [1, 2, 0] and count == 2


def test_random_bits_are_philox() -> None:
    # known answer of the authors' Random123: zero counter, zero key
    got = run("rng_bits", shape=(5,), seed=0)
    assert [hex(v) for v in got[:4]] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]


# Type rules -------------------------------------------------------------------------------------------------

N = dims.symbol("n")
CASES = {
    "nonsense": ((), {}, "expected a core op"),
    "transpose": ((TensorType(F32, (2, 3)),), {"perm": (0, 0)}, "permutation of 2 axes, got"),
    "reshape": ((TensorType(F32, (N, 3)),), {"shape": (3 * N + 1,)}, "3\\*n elements"),
    "concat": ((TensorType(F32, (2,)), TensorType(I8, (2,))), {"axis": 0}, "agree but for axis 0"),
    "convert": ((TensorType(F32, ()),), {}, "the attribute dtype"),
    "gather": ((TensorType(F32, (2,)), TensorType(F32, (2,))), {"axis": 0}, "indices of an integer type"),
    "slice": ((TensorType(F32, (4,)),), {"start": (np.int64(0),), "size": (1,), "step": (1,)}, "start to be dims"),
    "dot_general": (
        (TensorType(F32, (2, 3)), TensorType(F32, (4, 5))),
        {"batch": ((), ()), "contract": ((1,), (0,)), "dtype": F32},
        "equal extents",
    ),
    "bitcast": ((TensorType(U8, (1,)),), {"dtype": BF16}, "8 bits"),
    "map": ((TensorType(F32, (2,)), TensorType(F32, (1,))), {"fn": "add"}, "one shape"),
}


@pytest.mark.parametrize("op", CASES)
def test_a_broken_rule_says_what_it_expected(op: str) -> None:
    types, attrs, words = CASES[op]
    with pytest.raises(InvalidModelError, match=words):
        infer(op, types, attrs)


def test_symbolic_shapes_stay_symbolic() -> None:
    x = TensorType(F32, (N, 8, N + 4))
    (y,) = infer("reduce", [x], {"fn": "add", "axes": (1,)})
    assert y.shape == (N, N + 4)
    window = {"strides": (2,), "lhs_dilation": (1,), "dilation": (1,), "low": (1,), "high": (1,), "groups": 1, "dtype": F32}
    (z,) = infer("conv", [x, TensorType(F32, (5, 8, 3))], window)
    assert dims.evaluate(z.shape[2], {"n": 9}) == math.floor((13 + 2 - 3) / 2) + 1


def test_every_op_is_documented() -> None:
    assert all(spec.doc.startswith((f"{name}(", f"{name}:")) for name, spec in REGISTRY.items())
