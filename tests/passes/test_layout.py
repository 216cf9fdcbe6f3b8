"""Layouts: what becomes blocked, that packs cancel, that pad lanes cannot spoil a result."""

import numpy as np
import pytest

from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import F32
from tcompile.ir.graph import Graph, Value
from tcompile.ir.interpret import interpret
from tcompile.ir.target import named_target
from tcompile.ir.terms import Term
from tcompile.ir.verify import verify
from tcompile.passes.layout import AssignLayouts

RNG = np.random.default_rng(2)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def laid_out(graph: Graph, **arrays: np.ndarray) -> list[str]:
    """The ops after the pass (constants left out), after checking types and answers."""
    done = AssignLayouts(named_target("x86-64-v3")).apply(graph)
    verify(done)
    want, got = interpret(graph, arrays), interpret(done, arrays)
    for name, array in want.items():
        # terms as large as the largest result may cancel out in others
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=max(1e-4, 1e-6 * np.abs(array).max(initial=0)))
    return [node.op for node in done.nodes if node.op != "constant"]


def conv(b: Builder, x: Value, outputs: int, kernel: int = 3, strides: int = 1, pad: int = 0, groups: int = 1, dilation: int = 1) -> Value:
    rank = x.rank - 2
    w = b.constant(normal(outputs, x.shape[1] // groups, *(kernel,) * rank))
    return b.emit(
        "conv", x, w, strides=(strides,) * rank, lhs_dilation=(1,) * rank, dilation=(dilation,) * rank,
        low=(pad,) * rank, high=(pad,) * rank, groups=groups, dtype=F32,
    )  # fmt: skip


def relu(b: Builder, x: Value) -> Value:
    return b.map("max", x, b.scalar_like(0.0, x))


def test_packs_stand_only_at_the_border():
    b = Builder()
    x = b.input("x", F32, (2, 16, 6, 6))
    y = relu(b, conv(b, x, 20, pad=1))
    y = conv(b, y, 16, kernel=1)
    y = b.map("add", y, x)
    ops = laid_out(b.graph([y], ["y"]), x=normal(2, 16, 6, 6))
    assert [op for op in ops if op not in ("map", "broadcast")] == ["pack", "conv_winograd", "conv_blocked", "unpack"]


def test_a_target_without_channel_blocks_keeps_the_graph():
    b = Builder()
    y = conv(b, b.input("x", F32, (2, 16, 6, 6)), 20, pad=1)
    graph = b.graph([y], ["y"])
    assert AssignLayouts(named_target("cuda-sm90")).apply(graph) is graph


def test_stem_reads_plain_images():
    b = Builder()
    x = b.input("x", F32, (1, 3, 9, 9))
    y = relu(b, conv(b, x, 24, kernel=7, strides=2, pad=3))
    assert laid_out(b.graph([y], ["y"]), x=normal(1, 3, 9, 9)) == ["pad", "conv_stem", "broadcast", "map", "unpack"]


@pytest.mark.parametrize(
    ("channels", "groups", "outputs", "op"),
    [
        (24, 24, 24, "depthwise_blocked"),
        (32, 2, 32, "conv_blocked"),
        (32, 8, 32, "depthwise_blocked"),
        (20, 10, 20, "depthwise_blocked"),
        (12, 12, 24, "depthwise_blocked"),
        (5, 5, 15, "depthwise_blocked"),
        (1, 1, 3, "conv_stem"),
        (32, 8, 64, "conv_blocked"),
        (6, 2, 6, "conv"),
        (12, 1, 5, "conv_blocked"),
    ],
)
def test_groups(channels, groups, outputs, op):
    b = Builder()
    x = b.input("x", F32, (2, channels, 5, 4))
    y = conv(b, x, outputs, pad=1, groups=groups, dilation=1)
    assert op in laid_out(b.graph([y], ["y"]), x=normal(2, channels, 5, 4))


def test_joined_groups_say_which_blocks_their_outputs_read():
    b = Builder()
    x = b.input("x", F32, (1, 24, 5, 5))
    graph = b.graph([conv(b, x, 24, kernel=1, strides=2, groups=2)], ["y"])
    laid_out(graph, x=normal(1, 24, 5, 5))
    done = AssignLayouts(named_target("x86-64-v3")).apply(graph)
    (reads,) = (node.attrs["reads"] for node in done.nodes if node.op == "conv_blocked")
    assert reads == (0, 2, 0, 3, 1, 2)  # 12 channels are a block and a half


@pytest.mark.parametrize("rank", [1, 3])
def test_other_spatial_ranks(rank):
    b = Builder()
    x = b.input("x", F32, (2, 18, *(5,) * rank))
    y = conv(b, x, 17, strides=2, pad=1)
    assert "conv_blocked" in laid_out(b.graph([y], ["y"]), x=normal(2, 18, *(5,) * rank))


def test_squeeze_and_excite_stays_blocked():
    b = Builder()
    x = b.input("x", F32, (2, 3, 7, 7))
    y = Term(b, conv(b, x, 32))
    s = y.mean(2, 3, keepdims=True)
    s = Term(b, conv(b, relu(b, conv(b, s.value, 8, kernel=1)), 32, kernel=1)).map("sigmoid")
    ops = laid_out(b.graph([(y * s).value], ["y"]), x=normal(2, 3, 7, 7))
    assert ops.count("unpack") == 1 and "pack" not in ops


def test_pooling_bias_and_classifier():
    b = Builder()
    x = b.input("x", F32, (2, 3, 8, 8))
    y = Term(b, conv(b, x, 32, pad=1)) + normal(32, 1, 1)
    pooled = b.emit(
        "reduce_window",
        y.value,
        fn="max",
        window=(1, 1, 3, 3),
        strides=(1, 1, 2, 2),
        dilation=(1,) * 4,
        low=(0, 0, 1, 1),
        high=(0, 0, 1, 1),
    )
    pooled = Term(b, conv(b, pooled, 48))
    flat = pooled.mean(2, 3)
    logits = flat.dot(Term(b, b.constant(normal(48, 10))), contract=((1,), (0,)))
    ops = laid_out(b.graph([logits.value], ["y"]), x=normal(2, 3, 8, 8))
    assert "unpack" not in ops and ops[-1] == "dot_packed"


@pytest.mark.parametrize(("channels", "size", "order"), [(24, (5, 3), "blocks"), (16, (1, 7), "blocks"), (20, (3, 5), "plain")])
def test_flattened_images_of_whole_blocks_are_multiplied_as_they_lie(channels, size, order):
    b = Builder()
    x = b.input("x", F32, (3, 8, *size))
    y = relu(b, conv(b, x, channels, pad=1))
    flat = b.reshape(y, (3, channels * size[0] * size[1]))
    z = Term(b, flat).dot(Term(b, b.constant(normal(7, flat.shape[1]))), contract=((1,), (1,)))
    ops = laid_out(b.graph([z.value], ["z"]), x=normal(*x.shape))
    assert ("unpack" in ops) == (order == "plain") and ops[-1] == "dot_packed"


def test_flattened_images_that_are_read_twice_are_unpacked_for_the_other_reader():
    b = Builder()
    x = b.input("x", F32, (2, 8, 3, 3))
    flat = b.reshape(conv(b, x, 8, pad=1), (2, 72))
    z = Term(b, flat).dot(Term(b, b.constant(normal(72, 7))), contract=((1,), (0,)))
    ops = laid_out(b.graph([z.value, flat], ["z", "flat"]), x=normal(*x.shape))
    assert ops.count("unpack") == 1 and "dot_packed" in ops


@pytest.mark.parametrize("parts", [(16, 32), (16, 20), (20, 16)])
def test_concat_of_channels(parts):
    b = Builder()
    x = b.input("x", F32, (1, 16, 4, 4))
    y = conv(b, b.concat([conv(b, x, n) for n in parts], 1), 16, kernel=1)
    ops = laid_out(b.graph([y], ["y"]), x=normal(1, 16, 4, 4))
    assert "unpack" not in ops[:-1]


def test_channel_split_on_blocks_stays_blocked():
    b = Builder()
    x = b.input("x", F32, (1, 16, 4, 4))
    y = conv(b, x, 40)
    parts = [conv(b, b.slice_axis(y, 1, start, size), 16, kernel=1) for start, size in ((0, 32), (32, 8))]
    ops = laid_out(b.graph(parts, ["a", "b"]), x=normal(1, 16, 4, 4))
    assert ops.count("unpack") == 2


def test_pad_lanes_that_are_not_finite_are_cleared():
    """log(0) is -inf in the pad lanes of a conv result; the next conv would make NaN of it."""
    b = Builder()
    x = b.input("x", F32, (1, 16, 4, 4))
    y = b.map("log", b.map("abs", conv(b, x, 5)))
    ops = laid_out(b.graph([conv(b, y, 16, kernel=1)], ["y"]), x=normal(1, 16, 4, 4))
    assert "map" in ops[ops.index("conv_blocked") + 3 :]


def test_symbolic_batch_and_size():
    b = Builder()
    b.symbols.update(n=Range(0, None), h=Range(3, None))
    n, h = dims.symbol("n"), dims.symbol("h")
    x = b.input("x", F32, (n, 20, h, h))
    y = relu(b, conv(b, x, 16, pad=1, strides=2))
    laid_out(b.graph([y], ["y"]), x=normal(2, 20, 5, 5))


@pytest.mark.parametrize("contract", [((2,), (0,)), ((2,), (1,)), ((1,), (0,)), ((1, 2), (1, 0))])
def test_constant_matrix_is_packed(contract):
    b = Builder()
    x = b.input("x", F32, (2, 4, 4))
    w = b.constant(normal(*((4, 4, 7) if len(contract[0]) == 2 else (4, 4))))
    y = b.emit("dot_general", x, w, batch=((), ()), contract=contract, dtype=F32)
    assert "dot_packed" in laid_out(b.graph([y], ["y"]), x=normal(2, 4, 4))


@pytest.mark.parametrize("outputs", [16, 5])
@pytest.mark.parametrize(
    ("kernel", "dilate", "dilation", "low", "high"),
    [
        ((2, 2), (2, 2), (1, 1), (1, 1), (1, 1)),
        ((3, 3), (2, 2), (1, 1), (1, 1), (2, 2)),
        ((4, 4), (2, 2), (1, 1), (2, 2), (2, 2)),
        ((3, 2), (3, 1), (1, 1), (2, 0), (0, 1)),
        ((2, 3), (2, 2), (2, 1), (0, 3), (1, 4)),
        ((5,), (4,), (1,), (0,), (0,)),
    ],
)
def test_transposed_convolution_is_one_convolution(kernel, dilate, dilation, low, high, outputs):
    b = Builder()
    spatial = (4, 5)[: len(kernel)]
    x = b.input("x", F32, (2, 18, *spatial))
    w = b.constant(normal(outputs, 18, *kernel))
    attrs = {"strides": (1,) * len(kernel), "lhs_dilation": dilate, "dilation": dilation, "low": low, "high": high}
    y = relu(b, b.emit("conv", x, w, groups=1, dtype=F32, **attrs))
    ops = laid_out(b.graph([y], ["y"]), x=normal(2, 18, *spatial))
    assert ops.count("conv_blocked") == 1


@pytest.mark.parametrize(
    ("space", "kernel", "expected"), [((200,), (5,), 1), ((1, 200), (1, 3), 1), ((200, 1), (3, 1), 1), ((2, 200), (1, 3), 0)]
)
def test_a_kernel_of_one_axis_goes_through_winograd_where_the_others_have_one_position(space, kernel, expected):
    b = Builder()
    x = b.input("x", F32, (1, 128, *space))
    low = tuple(taps // 2 for taps in kernel)
    ones = (1,) * len(space)
    attrs = {"strides": ones, "lhs_dilation": ones, "dilation": ones, "low": low, "high": low, "groups": 1}
    y = b.emit("conv", x, b.constant(normal(128, 128, *kernel)), **attrs, dtype=F32)
    graph, array = b.graph([y], ["y"]), {"x": normal(1, 128, *space)}
    done = AssignLayouts(named_target("x86-64-v3")).apply(graph)
    verify(done)
    got, want = interpret(done, array)["y"], interpret(graph, array)["y"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5 * np.abs(want).max())
    assert [node.op for node in done.nodes].count("conv_winograd") == expected


@pytest.mark.parametrize("winograd", [True, False])
def test_large_3x3_goes_through_winograd_where_allowed(winograd):
    b = Builder()
    x = b.input("x", F32, (1, 64, 27, 30))
    y = relu(b, conv(b, relu(b, conv(b, x, 40, pad=1)), 24, pad=1))
    graph = b.graph([y], ["y"])
    done = AssignLayouts(named_target("x86-64-v3"), winograd=winograd).apply(graph)
    verify(done)
    array = {"x": normal(1, 64, 27, 30)}
    got, want = interpret(done, array)["y"], interpret(graph, array)["y"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    assert [node.op for node in done.nodes].count("conv_winograd") == (2 if winograd else 0)


@pytest.mark.parametrize(
    ("strides", "dilation", "expected"), [((2, 2), (1, 1), 1), ((1, 2), (1, 1), 0), ((2, 2), (2, 2), 0), ((3, 3), (1, 1), 0)]
)
def test_3x3_at_stride_2_goes_through_winograd(strides, dilation, expected):
    b = Builder()
    x = b.input("x", F32, (1, 128, 31, 34))
    attrs = {"strides": strides, "lhs_dilation": (1, 1), "dilation": dilation, "low": (1, 1), "high": (1, 1), "groups": 1}
    y = b.emit("conv", x, b.constant(normal(128, 128, 3, 3)), **attrs, dtype=F32)
    graph, array = b.graph([y], ["y"]), {"x": normal(1, 128, 31, 34)}
    done = AssignLayouts(named_target("x86-64-v3")).apply(graph)
    verify(done)
    got, want = interpret(done, array)["y"], interpret(graph, array)["y"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    assert [node.op for node in done.nodes].count("conv_winograd") == expected


@pytest.mark.parametrize(
    ("channels", "outputs", "pad", "winograd", "expected"),
    [(512, 512, 0, True, 1), (512, 512, 0, False, 0), (512, 32, 0, True, 0), (504, 512, 0, True, 0), (512, 512, 1, True, 0)],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_of_many_channels_goes_through_strassen(channels, outputs, pad, winograd, expected, stride):
    b = Builder()
    x = b.input("x", F32, (1, channels, 15, 13))
    attrs = {"strides": (stride,) * 2, "lhs_dilation": (1, 1), "dilation": (1, 1), "low": (pad, pad), "high": (pad, pad), "groups": 1}
    y = b.emit("conv", x, b.constant(normal(outputs, channels, 1, 1)), **attrs, dtype=F32)
    graph, array = b.graph([y], ["y"]), {"x": normal(1, channels, 15, 13)}
    done = AssignLayouts(named_target("x86-64-v3"), winograd=winograd).apply(graph)
    verify(done)
    got, want = interpret(done, array)["y"], interpret(graph, array)["y"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    assert [node.op for node in done.nodes].count("conv_strassen") == expected


@pytest.mark.parametrize("size", [5, 24])
@pytest.mark.parametrize("kernel", [1, 3])
def test_joined_channels_stay_in_their_lanes(kernel, size):
    b = Builder()
    x, image = b.input("x", F32, (1, 16, size, size)), b.input("image", F32, (1, 3, size, size))
    first, second = conv(b, x, 12, pad=1), b.map("cos", conv(b, x, 21, pad=1))  # whose pad lanes are 1
    joined = b.emit("concat", b.emit("concat", first, image, axis=1), second, axis=1)
    y = conv(b, joined, 16, kernel=kernel, pad=kernel // 2)
    again = conv(b, joined, 8, kernel=1)
    ops = laid_out(b.graph([y, again], ["y", "z"]), x=normal(1, 16, size, size), image=normal(1, 3, size, size))
    assert ops.count("concat") == 1 and ops.count("unpack") == 2  # those of the results


def test_joined_channels_are_also_there_as_they_were():
    b = Builder()
    x = b.input("x", F32, (1, 16, 5, 5))
    joined = b.emit("concat", conv(b, x, 12), conv(b, x, 3), axis=1)
    laid_out(b.graph([conv(b, joined, 9), joined], ["y", "joined"]), x=normal(1, 16, 5, 5))


@pytest.mark.parametrize(
    ("channels", "outputs", "size", "groups", "op"),
    [
        (24, 40, (17, 19), 1, "conv_pointwise"),
        (24, 36, (17, 19), 3, "conv_pointwise"),
        (24, 24, (300,), 1, "conv_pointwise"),
        (24, 40, (1, 1), 1, "conv_blocked"),  # one position fills no lanes
    ],
)
def test_a_pointwise_convolution_between_plain_values_stays_plain(channels, outputs, size, groups, op):
    b = Builder()
    x = b.input("x", F32, (2, channels, *size))
    y = relu(b, conv(b, x, outputs, kernel=1, groups=groups))
    ops = laid_out(b.graph([y], ["y"]), x=normal(2, channels, *size))
    assert op in ops and ("pack" in ops) == (op == "conv_blocked")


def test_a_pointwise_convolution_before_another_reads_what_costs_less_to_pack():
    for channels, outputs in ((16, 96), (96, 16)):
        b = Builder()
        x = b.input("x", F32, (1, channels, 12, 12))
        y = conv(b, relu(b, conv(b, x, outputs, kernel=1)), 16, pad=1)
        ops = laid_out(b.graph([y], ["y"]), x=normal(1, channels, 12, 12))
        assert ("conv_pointwise" in ops) == (channels > outputs)


def test_a_pointwise_convolution_of_blocks_stays_blocked():
    b = Builder()
    x = b.input("x", F32, (1, 16, 12, 12))
    y = conv(b, conv(b, x, 16, pad=1), 32, kernel=1)
    assert "conv_pointwise" not in laid_out(b.graph([y], ["y"]), x=normal(1, 16, 12, 12))


def test_unknown_extents_of_a_plain_pointwise_convolution():
    b = Builder()
    b.symbols.update(h=Range(1, None), w=Range(1, None))
    x = b.input("x", F32, (1, 20, dims.symbol("h"), dims.symbol("w")))
    y = relu(b, conv(b, x, 30, kernel=1))
    assert "conv_pointwise" in laid_out(b.graph([y], ["y"]), x=normal(1, 20, 5, 7))
