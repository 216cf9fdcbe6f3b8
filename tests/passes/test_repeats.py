"""Gathers that repeat every element become broadcasts, others stay."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.interpret import interpret
from tcompile.ir.verify import verify
from tcompile.passes.fold import FoldConstants
from tcompile.passes.repeats import RULES


def check(indices: list[int], axis: int) -> list[str]:
    """The ops left of a gather from [n, 3, 4], the answers having stayed."""
    b = Builder("g")
    b.symbols["n"] = Range(0, None)
    x = b.input("x", dtypes.F32, (dims.symbol("n"), 3, 4))
    y = b.emit("gather", x, b.constant(np.array(indices)), axis=axis)
    graph = b.graph([y], ["y"])
    got = FoldConstants(extra=RULES).apply(graph)
    verify(got)
    array = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(interpret(got, [array])["y"], interpret(graph, [array])["y"])
    return [node.op for node in got.nodes if node.op != "constant"]


@pytest.mark.parametrize(("indices", "axis"), [([0, 0, 1, 1, 2, 2], 1), ([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], 2)])
def test_every_element_repeated_as_often(indices: list[int], axis: int) -> None:
    assert check(indices, axis) == ["broadcast", "reshape"]


@pytest.mark.parametrize(("indices", "axis"), [([0, 0, 1, 1], 1), ([0, 1, 2, 0, 1, 2], 1), ([0, 0, 1, 1], 0), ([2, 2, 1, 1, 0, 0], 1)])
def test_other_gathers_stay(indices: list[int], axis: int) -> None:
    assert check(indices, axis) == ["gather"]
