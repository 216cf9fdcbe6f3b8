"""Products with one-hot vectors become gathers, and what follows them is done to the table."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.interpret import interpret
from tcompile.ir.verify import verify
from tcompile.passes.recognise import Recognise

RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def one_hot(b: Builder, i, depth: int, on: float = 1.0, first: int = 0):
    shape = (*i.shape, depth)
    counted = b.emit("broadcast", b.constant(np.arange(first, first + depth)), shape=shape, axes=(len(shape) - 1,))
    equal = b.map("eq", b.emit("broadcast", i, shape=shape, axes=tuple(range(i.rank))), counted)
    zero = b.broadcast_to(b.constant(np.float32(0)), shape)
    return b.map("where", equal, b.broadcast_to(b.constant(np.float32(on)), shape), zero)


def dot(b: Builder, a, w, axis: int = 0):
    return b.emit("dot_general", a, w, batch=((), ()), contract=((a.rank - 1,), (axis,)), dtype=dtypes.F32)


def check(b: Builder, output, *arrays: np.ndarray) -> list[str]:
    """The ops left after recognition, elementwise functions by name, the answers having stayed."""
    graph = b.graph([output], ["y"])
    got = Recognise().apply(graph)
    verify(got)
    np.testing.assert_allclose(interpret(got, arrays)["y"], interpret(graph, arrays)["y"], rtol=1e-6, atol=1e-7)
    return [node.attrs.get("fn", node.op) for node in got.nodes if node.op not in ("constant", "broadcast")]


CLAMPED = ["ge", "lt", "and", "where", "gather"]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_product_with_one_hot_vectors_is_a_gather_that_knows_positions_outside(axis: int) -> None:
    b = Builder("g")
    i = b.input("i", dtypes.I64, (3, 5))
    w = normal(7, 4) if axis == 0 else normal(4, 7)
    y = dot(b, one_hot(b, i, 7), b.constant(w), axis)
    assert check(b, y, RNG.integers(-3, 11, (3, 5))) == CLAMPED


def test_one_hot_vectors_are_seen_through_a_reshape_and_a_conversion() -> None:
    b = Builder("g")
    b.symbols["n"] = Range(0, None)
    n = dims.symbol("n")
    i = b.input("i", dtypes.I64, (n, 5))
    shape = (n, 5, 6)
    counted = b.emit("broadcast", b.constant(np.arange(6)), shape=shape, axes=(2,))
    hot = b.emit("convert", b.map("eq", counted, b.emit("broadcast", i, shape=shape, axes=(0, 1))), dtype=dtypes.F32, saturate=True)
    y = dot(b, b.reshape(hot, (5 * n, 6)), b.constant(normal(6, 4)))
    assert sorted(check(b, y, RNG.integers(0, 6, (2, 5)))) == sorted(["reshape", *CLAMPED])


@pytest.mark.parametrize(("on", "first"), [(2.0, 0), (1.0, 1)])
def test_other_vectors_stay(on: float, first: int) -> None:
    b = Builder("g")
    i = b.input("i", dtypes.I64, (3,))
    y = dot(b, one_hot(b, i, 7, on, first), b.constant(normal(7, 4)))
    assert "dot_general" in check(b, y, RNG.integers(0, 7, (3,)))


def test_a_matrix_with_an_infinity_stays() -> None:
    b = Builder("g")
    w = normal(7, 4)
    w[2, 1] = np.inf  # times 0 it is a NaN
    y = dot(b, one_hot(b, b.input("i", dtypes.I64, (3,)), 7), b.constant(w))
    got = Recognise().apply(b.graph([y], ["y"]))
    assert any(node.op == "dot_general" for node in got.nodes)


def test_bias_and_gelu_of_a_table_are_done_to_the_table() -> None:
    b = Builder("g")
    i = b.input("i", dtypes.I64, (2, 5))
    y = dot(b, one_hot(b, b.reshape(i, (10,)), 7), b.constant(normal(7, 4)))
    y = b.reshape(y, (2, 5, 4))
    y = b.map("add", y, b.emit("broadcast", b.constant(normal(4)), shape=y.shape, axes=(2,)))
    inner = b.map("erf", b.map("div", y, b.scalar_like(2**0.5, y)))
    y = b.map("mul", b.map("mul", y, b.scalar_like(0.5, y)), b.map("add", inner, b.scalar_like(1, y)))
    assert check(b, y, RNG.integers(-2, 9, (2, 5))).count("gather") == 1
    assert not {"add", "erf", "mul"} & set(check(b, y, RNG.integers(0, 7, (2, 5))))


def test_a_function_of_the_position_stays_behind_the_gather() -> None:
    b = Builder("g")
    i = b.input("i", dtypes.I64, (5,))
    y = b.emit("gather", b.constant(normal(7, 4)), i, axis=0)
    y = b.map("add", y, b.emit("broadcast", b.constant(normal(5)), shape=y.shape, axes=(0,)))
    assert check(b, y, RNG.integers(0, 7, (5,))) == ["gather", "add"]


def test_a_large_table_stays_as_it_is() -> None:
    b = Builder("g")
    i = b.input("i", dtypes.I64, (5,))
    y = b.map("tanh", b.emit("gather", b.constant(normal(1 << 14, 8)), i, axis=0))
    assert check(b, y, RNG.integers(0, 7, (5,))) == ["gather", "tanh"]
