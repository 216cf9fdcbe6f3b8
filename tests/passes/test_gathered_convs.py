"""Convolutions of embedded positions: what is recognised, what is left alone, and that the answers stay."""

import numpy as np
import pytest

from tcompile.ir.build import Builder
from tcompile.ir.choices import forcing
from tcompile.ir.dtypes import F32, I32
from tcompile.ir.interpret import interpret
from tcompile.ir.target import named_target
from tcompile.ir.terms import Term
from tcompile.ir.verify import verify
from tcompile.passes.fold import FoldConstants
from tcompile.passes.gathered_convs import GatheredConvs

RNG = np.random.default_rng(3)
TABLE = {"convolution of a table's rows": "table"}


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def optimised(graph, target="x86-64-v3", **arrays):
    """The ops after the pass, where multiplying the table is always chosen; checks types and answers."""
    with forcing(TABLE):
        done = GatheredConvs(named_target(target)).apply(FoldConstants().apply(graph))
    verify(done)
    want, got = interpret(graph, arrays), interpret(done, arrays)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=2e-4, atol=2e-4 * max(np.abs(array).max(initial=0), 1))
    return [node.op for node in done.nodes]


class Text:
    """A model of ``images`` texts: rows of a table side by side, and what a case makes of them."""

    def __init__(self, images, positions=23, parts=3, entries=7, depth=5):
        self.b = Builder()
        n = self.b.fresh_symbol("n", 0, 9) if images is None else images
        self.count = 3 if images is None else images
        rows = self.b.input("rows", I32, (n, positions * parts))
        self.arrays = {"rows": RNG.integers(0, entries, (self.count, positions * parts)).astype(np.int32)}
        found = self.b.emit("gather", self.b.constant(normal(entries, depth)), rows, axis=0)
        self.x = Term(self.b, self.b.reshape(found, (n, positions, parts * depth)))
        self.positions, self.channels, self.n = positions, parts * depth, n

    def normalised(self):
        """Over positions, with a gain and an offset of each."""
        mean = self.x.mean(1, keepdims=True)
        scale = ((self.x - mean) * (self.x - mean)).mean(1, keepdims=True) + 0.1
        scale = Term(self.b, self.b.map("recip", self.b.map("sqrt", scale.value))) * normal(self.positions, 1)
        return self.x * scale + (Term(self.b, self.b.constant(normal(self.positions, 1))) - mean * scale)

    def convolved(self, x, outputs=11, taps=5, flat=True, **attrs):
        """A convolution along the positions: [N, O, Q], or [N, O, 1, Q]."""
        b, unit = self.b, () if flat else (1,)
        moved = b.transpose(x.value, (0, 2, 1)) if flat else b.transpose(
            b.reshape(x.value, (self.n, 1, self.positions, self.channels)), (0, 3, 1, 2)
        )  # fmt: skip
        ones, zeros = (1,) * (len(unit) + 1), (0,) * (len(unit) + 1)
        plain = {"strides": ones, "lhs_dilation": ones, "dilation": ones, "low": zeros, "high": zeros, "groups": 1, "dtype": F32}
        w = b.constant(normal(outputs, self.channels, *unit, taps))
        return Term(b, b.emit("conv", moved, w, **{**plain, **attrs}))

    def ops(self, y, **options):
        return optimised(self.b.graph([y.value], ["y"]), **self.arrays, **options)


def gelu(y):
    return y * 0.5 * ((y * 0.5**0.5).map("erf") + 1.0)


@pytest.mark.parametrize("images", [1, 2, None])
@pytest.mark.parametrize("flat", [True, False])
def test_a_normalised_embedding_is_convolved_by_its_table(images, flat):
    text = Text(images)
    y = text.convolved(text.normalised(), flat=flat) + normal(11, *(1,) * (1 if flat else 2))
    ops = text.ops(y)
    assert "conv_gathered" in ops and "conv" not in ops


@pytest.mark.parametrize(
    "function", [lambda y: y, gelu, lambda y: y * y.map("sigmoid"), lambda y: y.map("silu"), lambda y: y.map("max", 0.25)]
)
def test_the_maximum_over_positions_needs_the_extremes_alone(function):
    text = Text(2)
    y = function(text.convolved(text.normalised()) + normal(11, 1))
    ops = text.ops(y.max(2))
    assert "conv_gathered" in ops and ops[ops.index("conv_gathered") + 1 :].count("reduce") == 0


def test_a_function_that_rises_and_falls_keeps_its_positions():
    text = Text(2)
    y = text.convolved(text.normalised())
    ops = text.ops((y * y * y - y).max(2))
    assert "conv_gathered" in ops and "reduce" in ops[ops.index("conv_gathered") :]


def test_a_result_that_another_reads_keeps_its_positions():
    text = Text(1)
    y = text.convolved(text.x)
    both = y.max(2) + y.mean(2)
    ops = text.ops(both)
    assert ops.count("conv_gathered") == 1 and ops.count("reduce") == 2


@pytest.mark.parametrize(
    "attrs", [{"strides": (2,)}, {"dilation": (2,)}, {"low": (1,)}, {"high": (2,)}], ids=["strided", "dilated", "bordered", "behind"]
)
def test_other_convolutions_are_left_alone(attrs):
    text = Text(2)
    assert "conv_gathered" not in text.ops(text.convolved(text.x, **attrs))


def test_a_factor_of_positions_and_channels_is_left_alone():
    text = Text(2)
    assert "conv_gathered" not in text.ops(text.convolved(text.x * normal(23, 15)))


def test_a_target_without_channel_blocks_keeps_the_graph():
    text = Text(2)
    assert "conv" in text.ops(text.convolved(text.x), target="cuda-sm90")


def test_few_positions_are_multiplied_themselves():
    text = Text(1, positions=64, parts=1, entries=250, depth=16)
    y = text.convolved(text.x)
    done = GatheredConvs(named_target("x86-64-v3")).apply(text.b.graph([y.value], ["y"]))
    assert [node.op for node in done.nodes].count("conv") == 1


@pytest.mark.parametrize("images", [1, 2, None])
def test_sums_over_many_positions_go_over_the_table(images):
    text = Text(images, positions=64, parts=2, entries=11)
    mean = text.x.mean(1, keepdims=True)
    spread = ((text.x - mean) * (text.x - mean)).mean(1)
    ops = text.ops(spread)
    assert "scatter_elements" in ops and "gather" not in ops


def test_rows_that_no_position_has_may_be_infinite():
    text = Text(1, positions=64, parts=1, entries=3, depth=2)
    text.arrays["rows"] = np.ones((1, 64), np.int32)
    table = next(node for node in text.b.nodes if node.op == "constant").attrs["value"]
    table[0], table[2] = np.inf, np.nan
    assert "scatter_elements" in text.ops(text.x.sum(1))


def test_sums_over_few_positions_stay():
    text = Text(2, positions=13, parts=2, entries=7)
    assert "scatter_elements" not in text.ops(text.x.sum(1))


def test_sums_beside_unknown_extents_are_left_alone():
    b = Builder()
    n = b.fresh_symbol("n", 0, 9)
    x = b.input("x", F32, (2, n, 3))
    y = Term(b, x) + Term(b, b.emit("broadcast", b.constant(normal(1, 1, 3)), shape=x.shape, axes=(0, 1, 2)))
    assert optimised(b.graph([y.value], ["y"]), x=normal(2, 4, 3)).count("map") == 1
