"""Recognition: scales and biases into weights, transposes into contractions, formulas into functions."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.ir import dtypes
from tcompile.ir.build import Builder
from tcompile.ir.interpret import interpret
from tcompile.ir.verify import verify
from tcompile.passes.recognise import Recognise
from tests.passes.cases import expect

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ops(graph) -> list[str]:
    return [node.attrs.get("fn", node.op) for node in graph.nodes if node.op not in ("constant", "broadcast")]


def check(b: Builder, output, *arrays: np.ndarray) -> list[str]:
    """The ops left after recognition, the answers having stayed."""
    graph = b.graph([output], ["y"])
    got = Recognise().apply(graph)
    verify(got)
    np.testing.assert_allclose(interpret(got, arrays)["y"], interpret(graph, arrays)["y"], rtol=2e-5, atol=2e-5)
    return ops(got)


def channel(b: Builder, array: np.ndarray, like, axis: int):
    return b.emit("broadcast", b.constant(array), shape=like.shape, axes=(axis,))


def conv(b: Builder, x, w):
    return b.emit("conv", x, w, strides=(1, 1), lhs_dilation=(1, 1), dilation=(1, 1), low=(1, 1), high=(1, 1), groups=1, dtype=dtypes.F32)


def test_batch_normalisation_folds_into_the_convolution() -> None:
    b = Builder("g")
    x = b.input("x", dtypes.F32, (2, 3, 6, 6))
    y = conv(b, x, b.constant(normal(4, 3, 3, 3)))
    y = b.map("add", y, channel(b, normal(4), y, 1))
    y = b.map("sub", y, channel(b, normal(4), y, 1))
    y = b.map("mul", y, channel(b, normal(4), y, 1))
    y = b.map("add", y, channel(b, normal(4), y, 1))
    assert check(b, y, normal(2, 3, 6, 6)) == ["conv", "add"]


def test_a_result_that_is_read_twice_keeps_its_scale() -> None:
    b = Builder("g")
    x = b.input("x", dtypes.F32, (2, 3, 6, 6))
    y = conv(b, x, b.constant(normal(4, 3, 3, 3)))
    z = b.map("add", b.map("mul", y, channel(b, normal(4), y, 1)), y)
    assert check(b, z, normal(2, 3, 6, 6)) == ["conv", "mul", "add"]


def test_a_scale_along_another_axis_stays() -> None:
    b = Builder("g")
    x = b.input("x", dtypes.F32, (2, 3, 6, 6))
    y = conv(b, x, b.constant(normal(4, 3, 3, 3)))
    assert check(b, b.map("mul", y, channel(b, normal(6), y, 3)), normal(2, 3, 6, 6)) == ["conv", "mul"]


@pytest.mark.parametrize("weights_first", [False, True])
def test_a_scale_after_a_matrix_product_folds_into_its_weights(weights_first: bool) -> None:
    b = Builder("g")
    x, w = b.input("x", dtypes.F32, (5, 3)), b.constant(normal(3, 4))
    operands, contract = ((w, x), ((0,), (1,))) if weights_first else ((x, w), ((1,), (0,)))
    y = b.emit("dot_general", *operands, batch=((), ()), contract=contract, dtype=dtypes.F32)
    y = b.map("div", y, channel(b, np.abs(normal(4)) + 1, y, 0 if weights_first else 1))
    y = b.map("mul", y, b.scalar_like(0.3, y))
    assert check(b, y, normal(5, 3)) == ["dot_general"]


def test_the_quotient_inside_a_gelu_becomes_a_product() -> None:
    b = Builder("g")
    x = b.input("x", dtypes.F32, (5, 3))
    assert check(b, b.map("erf", b.map("div", x, b.scalar_like(2**0.5, x))), normal(5, 3)) == ["mul", "erf"]


def test_the_quotient_inside_an_erf_stays_where_its_reciprocal_may_overflow() -> None:
    b = Builder("g")
    x = b.input("x", dtypes.F32, (5, 3))
    assert check(b, b.map("erf", b.map("div", x, b.scalar_like(1e-39, x))), normal(5, 3)) == ["div", "erf"]


CASES = {
    "transposed operands are axis lists": (
        """inputs %x: f32[2, 5, 3], %w: f32[4, 3]
        %t: f32[3, 4] = transpose(%w) {perm = (1, 0)}
        %u: f32[5, 2, 3] = transpose(%x) {perm = (1, 0, 2)}
        %y: f32[5, 2, 4] = dot_general(%u, %t) {batch = ((), ()), contract = ((2,), (0,)), dtype = f32}
        return %y""",
        """inputs %x: f32[2, 5, 3], %w: f32[4, 3]
        %u: f32[5, 2, 3] = transpose(%x) {perm = (1, 0, 2)}
        %y: f32[5, 2, 4] = dot_general(%u, %w) {batch = ((), ()), contract = ((2,), (1,)), dtype = f32}
        return %y""",
    ),
    "attention's head transposes are axis lists": (
        """inputs %q: f32[1, 5, 2, 3], %k: f32[1, 6, 2, 3]
        %a: f32[1, 2, 5, 3] = transpose(%q) {perm = (0, 2, 1, 3)}
        %b: f32[1, 2, 3, 6] = transpose(%k) {perm = (0, 2, 3, 1)}
        %y: f32[1, 2, 5, 6] = dot_general(%a, %b) {batch = ((0, 1), (0, 1)), contract = ((3,), (2,)), dtype = f32}
        return %y""",
        """inputs %q: f32[1, 5, 2, 3], %k: f32[1, 6, 2, 3]
        %y: f32[1, 2, 5, 6] = dot_general(%q, %k) {batch = ((0, 2), (0, 2)), contract = ((3,), (3,)), dtype = f32}
        return %y""",
    ),
    "a transposed result swaps the operands": (
        """inputs %x: f32[5, 3], %w: f32[3, 4]
        %d: f32[5, 4] = dot_general(%x, %w) {batch = ((), ()), contract = ((1,), (0,)), dtype = f32}
        %y: f32[4, 5] = transpose(%d) {perm = (1, 0)}
        return %y""",
        """inputs %x: f32[5, 3], %w: f32[3, 4]
        %y: f32[4, 5] = dot_general(%w, %x) {batch = ((), ()), contract = ((0,), (1,)), dtype = f32}
        return %y""",
    ),
    "the logistic formula is sigmoid": (
        """inputs %x: f32[30]
        %c: f32[] = constant {value = (1.0,)}
        %k: f32[30] = broadcast(%c) {shape = (30,), axes = ()}
        %a: f32[30] = map(%x) {fn = "neg"}
        %b: f32[30] = map(%a) {fn = "exp"}
        %d: f32[30] = map(%k, %b) {fn = "add"}
        %y: f32[30] = map(%k, %d) {fn = "div"}
        return %y""",
        'inputs %x: f32[30]\n%y: f32[30] = map(%x) {fn = "sigmoid"}\nreturn %y',
    ),
    "a value times its own logistic function is silu": (
        """inputs %x: f32[30]
        %s: f32[30] = map(%x) {fn = "sigmoid"}
        %y: f32[30] = map(%s, %x) {fn = "mul"}
        return %y""",
        'inputs %x: f32[30]\n%y: f32[30] = map(%x) {fn = "silu"}\nreturn %y',
    ),
    "a gate of another value stays": (
        """inputs %x: f32[30], %z: f32[30]
        %s: f32[30] = map(%z) {fn = "sigmoid"}
        %y: f32[30] = map(%x, %s) {fn = "mul"}
        return %y""",
        """inputs %x: f32[30], %z: f32[30]
        %s: f32[30] = map(%z) {fn = "sigmoid"}
        %y: f32[30] = map(%x, %s) {fn = "mul"}
        return %y""",
    ),
    "a division by a standard deviation is a product with its reciprocal": (
        """inputs %x: f32[4, 30], %v: f32[4]
        %s: f32[4] = map(%v) {fn = "sqrt"}
        %b: f32[4, 30] = broadcast(%s) {shape = (4, 30), axes = (0,)}
        %y: f32[4, 30] = map(%x, %b) {fn = "div"}
        return %y""",
        """inputs %x: f32[4, 30], %v: f32[4]
        %s: f32[4] = map(%v) {fn = "sqrt"}
        %r: f32[4] = map(%s) {fn = "recip"}
        %b: f32[4, 30] = broadcast(%r) {shape = (4, 30), axes = (0,)}
        %y: f32[4, 30] = map(%x, %b) {fn = "mul"}
        return %y""",
    ),
    "a division by an unknown row stays, for its reciprocal may overflow": (
        """inputs %x: f32[4, 30], %v: f32[4]
        %b: f32[4, 30] = broadcast(%v) {shape = (4, 30), axes = (0,)}
        %y: f32[4, 30] = map(%x, %b) {fn = "div"}
        return %y""",
        """inputs %x: f32[4, 30], %v: f32[4]
        %b: f32[4, 30] = broadcast(%v) {shape = (4, 30), axes = (0,)}
        %y: f32[4, 30] = map(%x, %b) {fn = "div"}
        return %y""",
    ),
}


@pytest.mark.parametrize("sentence", CASES)
def test_rule(sentence: str) -> None:
    expect(Recognise(), *CASES[sentence], exact=False)


def flat_conv(b: Builder, x, w):
    return b.emit("conv", x, w, strides=(2, 1), lhs_dilation=(1, 1), dilation=(1, 1), low=(0, 0), high=(0, 0), groups=1, dtype=dtypes.F32)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 2)])
def test_channels_that_are_the_same_at_every_position_become_a_bias(kernel, place) -> None:
    b = Builder("g")
    x, v, z = b.input("x", dtypes.F32, (2, 3, 6, 5)), b.input("v", dtypes.F32, (2, 7)), b.input("z", dtypes.F32, (2, 1, 6, 5))
    parts = [x, z]
    parts.insert(place, b.emit("broadcast", v, shape=(2, 7, 6, 5), axes=(0, 1)))
    y = flat_conv(b, b.emit("concat", *parts, axis=1), b.constant(normal(4, 11, *kernel)))
    found = check(b, y, normal(2, 3, 6, 5), normal(2, 7), normal(2, 1, 6, 5))
    assert sorted(found) == ["add", "concat", "conv", "dot_general"]


def test_channels_that_meet_a_border_stay() -> None:
    b = Builder("g")
    x, v = b.input("x", dtypes.F32, (2, 3, 6, 5)), b.input("v", dtypes.F32, (2, 2))
    joined = b.emit("concat", x, b.emit("broadcast", v, shape=(2, 2, 6, 5), axes=(0, 1)), axis=1)
    y = conv(b, joined, b.constant(normal(4, 5, 3, 3)))
    assert check(b, y, normal(2, 3, 6, 5), normal(2, 2)) == ["concat", "conv"]
