"""Indices that are known to be in range carry no check; those that may leave it keep theirs."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.errors import ExecutionError
from tcompile.ir import dtypes
from tcompile.ir.build import Builder
from tcompile.ir.interpret import interpret
from tcompile.ir.verify import verify
from tcompile.passes.fold import FoldConstants
from tcompile.passes.index_bounds import RULES
from tests.problems.compiled import executable

TABLE = np.array([3, 0, 4, 1, 4], np.int32)


def proved(b: Builder, indices, extent: int = 5) -> bool:
    """Whether a gather from ``extent`` elements at ``indices`` needs no check."""
    y = b.emit("gather", b.input("x", dtypes.F32, (extent, 2)), indices, axis=0)
    got = FoldConstants(extra=RULES).apply(b.graph([y], ["y"]))
    verify(got)
    return [node for node in got.nodes if node.op == "gather"][-1].attrs.get("proved", False)


def positions(b: Builder, dtype=dtypes.I32):
    return b.input("i", dtype, (4,))


@pytest.mark.parametrize(("extent", "known"), [(5, True), (4, False)])
def test_constants_are_as_large_as_they_are(extent: int, known: bool) -> None:
    b = Builder("g")
    assert proved(b, b.constant(TABLE), extent) is known


def test_what_is_gathered_from_a_constant_is_one_of_its_elements() -> None:
    b = Builder("g")
    assert proved(b, b.emit("gather", b.constant(TABLE), positions(b), axis=0))


@pytest.mark.parametrize(("extent", "known"), [(6, True), (5, False)])
def test_a_step_in_a_tree_is_a_child_or_the_next(extent: int, known: bool) -> None:
    b = Builder("g")
    child = b.emit("gather", b.constant(TABLE), positions(b), axis=0)
    right = b.emit("convert", b.map("lt", child, b.input("c", dtypes.I32, (4,))), dtype=dtypes.I32, saturate=True)
    assert proved(b, b.map("add", child, right), extent) is known


@pytest.mark.parametrize(("low", "high", "known"), [(0, 4, True), (-1, 4, False), (0, 5, False)])
def test_clamps_bound(low: int, high: int, known: bool) -> None:
    b = Builder("g")
    i = positions(b)
    assert proved(b, b.map("min", b.map("max", i, b.scalar_like(low, i)), b.scalar_like(high, i))) is known


def test_arithmetic_that_may_wrap_bounds_nothing() -> None:
    b = Builder("g")
    i = b.emit("gather", b.constant(np.array([127, 1], np.int8)), positions(b), axis=0)
    assert not proved(b, b.map("add", i, i), 1000)  # 254 wraps to -2


@pytest.mark.parametrize(("dtype", "extent", "known"), [(dtypes.U8, 256, True), (dtypes.U8, 255, False), (dtypes.I8, 1 << 20, False)])
def test_a_type_bounds(dtype, extent: int, known: bool) -> None:
    b = Builder("g")
    assert proved(b, positions(b, dtype), extent) is known


def test_inputs_keep_their_checks() -> None:
    b = Builder("g")
    i = b.input("i", dtypes.I64, (2,))
    picked = b.emit("gather", b.constant(TABLE), i, axis=0)
    y = b.emit("gather", b.input("x", dtypes.F32, (5,)), picked, axis=0)
    graph = b.graph([y], ["y"])
    run, x = executable(graph, optimised=True), np.arange(5, dtype=np.float32)
    inputs = {"i": np.array([4, 1]), "x": x}
    np.testing.assert_array_equal(run.run(inputs)["y"], interpret(graph, inputs)["y"])
    with pytest.raises(ExecutionError):
        run.run({"i": np.array([5, 0]), "x": x})
