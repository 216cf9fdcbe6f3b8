"""How the tests of rewriting passes state a case: IR text before, IR text after, and equal answers on awkward inputs."""

from __future__ import annotations

import re

import numpy as np

from tcompile.ir.casts import convert, integer_limits
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Graph
from tcompile.ir.interpret import interpret
from tcompile.ir.text import parse_graph, print_graph
from tcompile.ir.verify import verify

AWKWARD = (0.0, -0.0, 1.0, -1.5, 2.5, np.inf, -np.inf, np.nan, 1e-40, 3e38, -3e38, 0.1)


def graph(body: str) -> Graph:
    """A verified graph of the lines of its body."""
    parsed = parse_graph(f'graph "g" {{\n{body}\n}}')
    verify(parsed)
    return parsed


def expect(step, before: str, after: str, *, exact: bool = True, sizes: dict[str, int] | None = None) -> None:
    """The pass turns one body into the other (but for names), and every output keeps its bits (or nearly, if not exact)."""
    given = graph(before)
    got = step.apply(given)
    verify(got)
    assert normal_text(got) == normal_text(graph(after)), f"\n{got}"
    inputs = awkward_inputs(given, sizes or {})
    expected, results = interpret(given, inputs), interpret(got, inputs)
    for name, array in expected.items():
        if exact:
            same_bits(results[name], array)
        else:
            np.testing.assert_allclose(results[name], array, rtol=1e-5, atol=1e-5)


def normal_text(value: Graph) -> str:
    """The text with values numbered in order and public names gone, so that only structure counts."""
    numbers: dict[str, str] = {}
    text = re.sub(r' as "[^"]*"', "", print_graph(value))
    text = re.sub(r"  symbols [^\n]*\n", "", text)
    text = re.sub(r"\{([a-z_]+ = .*)\}", lambda found: f"{{{', '.join(sorted(re.split(r', (?=[a-z_]+ = )', found[1])))}}}", text)
    return re.sub(r"%[\w.~]+", lambda found: numbers.setdefault(found.group(), f"%{len(numbers)}"), text)


def awkward_inputs(value: Graph, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Inputs made of zeros of both signs, infinities, NaN, denormals and integer limits, in a shuffled order."""
    rng = np.random.default_rng(0)
    return {
        item.name: _awkward(item.dtype, tuple(n if isinstance(n, int) else sizes.get(str(n), 3) for n in item.shape), rng)
        for item in value.inputs
    }


def _awkward(dtype: DType, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if dtype.is_float:
        return convert(rng.choice(AWKWARD, shape), dtype, saturate=False)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    low, high = integer_limits(dtype)
    limits = [low, high, 0, 1, 7] if shape else [0, 1, 7]  # a scalar may be a number of turns
    return np.array(rng.choice(limits, shape)).astype(dtype.numpy)


def same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal elements, signs of zeros included; one NaN is as good as another."""
    assert got.dtype == expected.dtype and got.shape == expected.shape
    a, b = (array.astype(np.float64) for array in (got, expected))
    equal = (np.isnan(a) & np.isnan(b)) | ((a == b) & (np.signbit(a) == np.signbit(b)))
    assert equal.all(), f"{got[~equal]} != {expected[~equal]}"
