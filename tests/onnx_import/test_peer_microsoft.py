"""Operators of com.microsoft against ONNX Runtime: static and symbolic shapes."""

from __future__ import annotations

import itertools

import numpy as np
import onnxruntime
import pytest

import tcompile
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model
from tests.onnx_import.peer import Single, check

RNG = np.random.default_rng(3)
BOTH = pytest.mark.parametrize("symbolic", (False, True), ids=("static", "symbolic"))


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def one(op: str, *inputs, free=None, **more) -> None:
    """Checks one node. ``free``: axes that become symbols by input, where asked for."""
    constants, outputs = more.pop("constants", ()), more.pop("outputs", 1)
    check(Single(op, inputs, more, constants=constants, outputs=outputs, domain="com.microsoft", free=free or {}))


def interpreted(op: str, *inputs, constants=(), **attrs) -> np.ndarray:
    """Output 0 by the interpreter."""
    model, feeds = Single(op, inputs, attrs, constants, domain="com.microsoft").model()
    return next(iter(interpret(import_model(model), feeds).values()))


def angles(count: int, half: int) -> tuple[np.ndarray, np.ndarray]:
    turns = np.outer(np.arange(count), 10.0 ** -np.linspace(0, 3, half))
    return np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32)


# Rotation ---------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("interleaved", (0, 1))
@pytest.mark.parametrize("start", (np.array([2]), np.array([[0, 3, 1, 2, 4], [4, 4, 0, 1, 2]])), ids=("start", "positions"))
def test_rotary_embedding(start, interleaved, symbolic):
    free = {0: (0, 1), 1: (0, 1) if start.ndim == 2 else ()} if symbolic else {}
    one("RotaryEmbedding", normal(2, 5, 24), start, *angles(9, 4), interleaved=interleaved, free={} if start.ndim == 2 else free)
    one("RotaryEmbedding", normal(2, 3, 5, 8), start, *angles(9, 4), interleaved=interleaved)


def test_rotary_embedding_of_a_part_of_the_heads():
    one("RotaryEmbedding", normal(2, 5, 24), np.array([1]), *angles(9, 3), num_heads=3, rotary_embedding_dim=6)


# Full attention ---------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("length", (5, 7))
@pytest.mark.parametrize("with_bias", (False, True))
def test_multi_head_attention(with_bias, length, symbolic):
    bias = normal(3 * 12) if with_bias else None
    free = {0: (1,), 1: (1,), 2: (1,)} if symbolic else {}
    one("MultiHeadAttention", normal(2, 5, 12), normal(2, length, 12), normal(2, length, 12), bias, num_heads=3, free=free)


@pytest.mark.parametrize("unidirectional", (0, 1))
def test_multi_head_attention_with_masks_and_a_cache(unidirectional):
    q, k, v = (normal(2, 4, 12) for _ in range(3))
    mask = np.array([[1, 1, 0, 1], [0, 1, 1, 1]], np.int32)
    one("MultiHeadAttention", q, k, v, None, mask, normal(2, 3, 4, 4), num_heads=3, unidirectional=unidirectional)
    past = normal(2, 3, 2, 4), normal(2, 3, 2, 4)
    one("MultiHeadAttention", q, k, v, None, None, normal(1, 3, 4, 6), *past, num_heads=3, outputs=3, unidirectional=unidirectional)


def test_multi_head_attention_of_packed_operands():
    one("MultiHeadAttention", normal(2, 5, 12), normal(2, 3, 7, 4), normal(2, 3, 7, 4), num_heads=3)
    q, k, v = normal(2, 5, 3, 4), normal(2, 5, 3, 4), normal(2, 5, 3, 4)  # ONNX Runtime has no kernel for the others on a CPU
    flat = [x.reshape(2, 5, 12) for x in (q, k, v)]
    expected = interpreted("MultiHeadAttention", *flat, num_heads=3)
    np.testing.assert_array_equal(interpreted("MultiHeadAttention", np.stack((q, k, v), 3), num_heads=3), expected)
    np.testing.assert_array_equal(interpreted("MultiHeadAttention", flat[0], np.stack((k, v), 3), num_heads=3), expected)


@BOTH
@pytest.mark.parametrize("mask", (None, "flags", "lengths", "pairs"))
@pytest.mark.parametrize("unidirectional", (0, 1))
def test_attention(unidirectional, mask, symbolic):
    masks = {
        None: None,
        "flags": np.array([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0]], np.int32),
        "lengths": np.array([5, 3], np.int32),
        "pairs": np.tril(np.ones((2, 5, 5), np.int32)),
    }
    free = {0: (0, 1)} if symbolic and mask is None else {}
    one("Attention", normal(2, 5, 8), normal(8, 36), normal(36), masks[mask], num_heads=3, unidirectional=unidirectional, free=free)


def test_attention_with_a_cache_and_other_widths():
    one("Attention", normal(2, 4, 8), normal(8, 36), normal(36), None, normal(2, 2, 3, 5, 4), num_heads=3, unidirectional=1, outputs=2)
    one("Attention", normal(2, 4, 8), normal(8, 30), normal(30), num_heads=3, qkv_hidden_sizes=[12, 12, 6])


# Grouped queries with a cache -------------------------------------------------------------------------


SIZE = 16  # of a head: what ONNX Runtime turns is a multiple of it


def grouped(batch: int, new: int, past: int, seqlens, *, held: int | None = None, total: int | None = None, extra=(), free=None, **attrs):
    """6 query heads, 2 key heads; ``held`` rows of room in the cache (default: those of the past)."""
    held = past if held is None else held
    total = past + new if total is None else total
    q, k, v = normal(batch, new, 6 * SIZE), normal(batch, new, 2 * SIZE), normal(batch, new, 2 * SIZE)
    cache = (normal(batch, 2, held, SIZE), normal(batch, 2, held, SIZE)) if held else (None, None)
    inputs = [q, k, v, *cache, np.array(seqlens, np.int32), np.array(total, np.int32), *extra]
    one("GroupQueryAttention", *inputs, num_heads=6, kv_num_heads=2, outputs=3, free=free, **attrs)


@BOTH
@pytest.mark.parametrize("attrs", ({}, {"softcap": 5.0}, {"scale": 0.2}, {"local_window_size": 2}, {"smooth_softmax": 1}), ids=str)
@pytest.mark.parametrize(("new", "past"), ((5, 0), (1, 4)))
def test_group_query_attention(new, past, attrs, symbolic):
    free = {0: (1,), 1: (1,), 2: (1,), **({3: (2,), 4: (2,)} if past else {})} if symbolic else {}
    grouped(2, new, past, [past + new - 1] * 2, free=free, **attrs)


@pytest.mark.parametrize("interleaved", (0, 1))
@pytest.mark.parametrize(("new", "past"), ((5, 0), (1, 4)))
def test_group_query_attention_with_rotation(new, past, interleaved):
    grouped(2, new, past, [past + new - 1] * 2, extra=angles(16, 8), do_rotary=1, rotary_interleaved=interleaved)


def test_group_query_attention_of_entries_of_unlike_lengths():
    grouped(2, 1, 6, [6, 3], extra=angles(16, 8), do_rotary=1)


def test_group_query_attention_with_room_in_the_cache():
    grouped(1, 1, 4, [4], held=9)
    grouped(1, 3, 4, [6], held=9, total=7)


def test_group_query_attention_with_a_bias_and_sinks():
    grouped(2, 3, 0, [2, 2], extra=(None, None, None, normal(2, 6, 3, 3)))
    grouped(2, 3, 0, [2, 2], extra=(None, None, None, None, normal(6)))


def test_group_query_attention_of_packed_operands():
    inputs = [normal(2, 3, 80), None, None, normal(2, 2, 4, 8)[:, :, :0], normal(2, 2, 4, 8)[:, :, :0]]
    one("GroupQueryAttention", *inputs, np.array([2, 2], np.int32), np.array(3, np.int32), num_heads=6, kv_num_heads=2, outputs=3)


# Products, convolutions, embeddings -------------------------------------------------------------------


@pytest.mark.parametrize("flags", list(itertools.product((0, 1), repeat=4)), ids=str)
def test_fused_matmul(flags):
    names = ("transA", "transB", "transBatchA", "transBatchB")
    swap_a, swap_b, last_a, last_b = flags
    one(
        "FusedMatMul",
        _laid((2, 3, 4, 5), swap_a, last_a),
        _laid((2, 3, 5, 6), swap_b, last_b),
        alpha=0.5,
        **dict(zip(names, flags, strict=True)),
    )


def _laid(shape: tuple[int, ...], swap: int, batch_last: int) -> np.ndarray:
    """An operand whose meaning has a shape, as it is stored."""
    x = normal(*shape)
    x = np.swapaxes(x, -1, -2) if swap else x
    return np.ascontiguousarray(np.moveaxis(x, -2, 0) if batch_last else x)


@pytest.mark.parametrize("zeros", (False, True))
@pytest.mark.parametrize("ordered", (False, True))
def test_matmul_n_bits(ordered, zeros):
    rows, depth, block = 5, 64, 16
    codes = RNG.integers(0, 256, (rows, depth // block, block // 2), np.uint8)
    scales, points = normal(rows * 4), RNG.integers(0, 256, rows * 2, np.uint8) if zeros else None
    group = RNG.permutation(np.arange(depth) // block).astype(np.int32) if ordered else None
    inputs, attrs = [normal(4, depth), codes, scales, points, group], {"K": depth, "N": rows, "bits": 4, "block_size": block}
    if not (ordered and zeros):
        one("MatMulNBits", *inputs, constants=[k for k in range(1, 5) if inputs[k] is not None], **attrs)
        return
    # given both, ONNX Runtime does not look at the zero points
    elements, middles = (np.stack((x & 15, x >> 4), -1).reshape(rows, -1).astype(np.float32) for x in (codes, points))
    weights = (elements - middles[:, group]) * scales.reshape(rows, -1)[:, group]
    got = interpreted("MatMulNBits", *inputs, constants=range(1, 5), **attrs)
    np.testing.assert_allclose(got, inputs[0] @ weights.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Clip"))
def test_fused_conv(activation):
    params = {"LeakyRelu": [0.2], "HardSigmoid": [0.3, 0.4], "Clip": [-0.5, 1.5]}.get(activation)
    more = {"activation_params": params} if params else {}
    x, w, bias = normal(2, 4, 7, 6), normal(8, 2, 3, 3), normal(8)
    one("FusedConv", x, w, bias, activation=activation, group=2, pads=[1, 1, 1, 1], **more)


def test_fused_conv_with_a_sum():
    one("FusedConv", normal(1, 3, 7, 6), normal(4, 3, 3, 3), normal(4), normal(1, 4, 5, 4), activation="Relu")


def test_fused_gemm():
    one("FusedGemm", normal(4, 5), normal(6, 5), normal(6), transB=1, activation="Relu")
    one("FusedGemm", normal(4, 5), normal(5, 6), alpha=0.5, activation="LeakyRelu", activation_alpha=0.3)


@pytest.mark.parametrize("columns", (False, True))
@pytest.mark.parametrize("quantised", (False, True))
def test_quantised_gemm(quantised, columns):
    # few bits: without VNNI, ONNX Runtime saturates sums of two products in 16 bits
    a, b = RNG.integers(0, 128, (4, 5), np.uint8), RNG.integers(-64, 64, (5, 6), np.int8)
    scale = RNG.uniform(0.01, 0.02, 6 if columns else ()).astype(np.float32)
    zero = np.zeros(6 if columns else (), np.int8)
    result = [np.float32(0.05), np.uint8(120)] if quantised else []
    c = RNG.integers(-99, 99, 6).astype(np.int32)
    inputs = [a, np.float32(0.02), np.uint8(7), b, scale, zero, c, *result]
    one("QGemm", *inputs, constants=(3, 4, 5, 6))


@pytest.mark.parametrize("dtype", (np.uint8, np.int8))
@pytest.mark.parametrize(("axes", "keepdims"), ((None, 1), ((1,), 0), ((-1, 2), 1)))
def test_quantised_mean(dtype, axes, keepdims):
    """ONNX Runtime declares QLinearReduceMean and has no kernel of it on the CPU."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    data = RNG.integers(low, high + 1, (2, 5, 3, 7)).astype(dtype)
    zero, to = dtype(high // 3), dtype(high // 2)
    more = {"axes": axes} if axes else {}
    got = interpreted("QLinearReduceMean", data, np.float32(0.05), zero, np.float32(0.03), to, keepdims=keepdims, **more)
    mean = ((data.astype(np.float64) - float(zero)) * np.float32(0.05)).mean(axis=axes, keepdims=bool(keepdims))
    want = np.clip(np.rint(mean / np.float32(0.03)) + float(to), low, high)
    assert got.dtype == dtype and got.shape == want.shape
    assert np.abs(got.astype(np.float64) - want).max() <= 1  # f32 sums may round the other way


@pytest.mark.parametrize("op", ("QLinearAdd", "QLinearMul"))
def test_quantised_elementwise(op):
    a, b = RNG.integers(0, 256, (3, 1, 5)).astype(np.uint8), RNG.integers(0, 256, (4, 5)).astype(np.uint8)
    scales = [np.float32(0.05), np.uint8(100)], [np.float32(0.02), np.uint8(7)], [np.float32(0.06), np.uint8(30)]
    check(Single(op, [a, *scales[0], b, *scales[1], *scales[2]], {}, (1, 2, 4, 5, 6, 7), domain="com.microsoft", atol=1.01))


def test_quantised_functions():
    x = RNG.integers(0, 256, (2, 6, 5, 7)).astype(np.uint8)
    given, to = [np.float32(0.03), np.uint8(120)], [np.float32(1 / 256), np.uint8(0)]
    same = [np.float32(0.02), np.uint8(100)]

    def code(op, inputs, constants, **attrs):
        check(Single(op, inputs, attrs, constants, domain="com.microsoft", atol=1.01))

    code("QLinearSigmoid", [x, *given, *to], range(1, 5))
    code("QLinearSoftmax", [x[:, :, 0, 0], *given, *to], range(1, 5), axis=-1, opset=13)
    code("QLinearGlobalAveragePool", [x, *given, *same], range(1, 5), channels_last=0)
    code("QLinearAveragePool", [x, *given, *same], range(1, 5), kernel_shape=(3, 2), strides=(2, 1), pads=(1, 0, 1, 1))
    code("QLinearConcat", [*same, x, *given, x[:, :2], *to], (0, 1, 3, 4, 6, 7), axis=1)


def test_products_of_codes_as_floats():
    """Weights of 7 bits: ONNX Runtime's sums of larger ones saturate on machines without VNNI."""
    a, b = RNG.integers(0, 256, (3, 20)).astype(np.uint8), RNG.integers(-64, 64, (20, 6)).astype(np.int8)
    scale, zero, bias = (np.abs(normal(6)) / 50).astype(np.float32), RNG.integers(-9, 9, 6).astype(np.int8), normal(6)
    one("MatMulIntegerToFloat", a, b, np.float32(0.02), scale, np.uint8(9), zero, bias, constants=(1, 2, 3, 4, 5, 6))
    one("DynamicQuantizeMatMul", normal(3, 20), b, scale, zero, bias, constants=(1, 2, 3, 4))


@pytest.mark.parametrize("masked", (False, True))
def test_embed_layer_normalization(masked):
    tokens, segments = RNG.integers(0, 9, (2, 5)).astype(np.int32), RNG.integers(0, 2, (2, 5)).astype(np.int32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32) if masked else None
    inputs = [tokens, segments, normal(9, 8), normal(6, 8), normal(2, 8), normal(8), normal(8), mask]
    one("EmbedLayerNormalization", *inputs[: 8 if masked else 7], outputs=3, epsilon=1e-5)


# Compiled ---------------------------------------------------------------------------------------------


def test_compiled_generation_with_a_growing_cache():
    """A prompt, then tokens one by one: one artifact, whose cache is as long as what came before."""
    inputs = [normal(1, 3, 6 * SIZE), normal(1, 3, 2 * SIZE), normal(1, 3, 2 * SIZE), normal(1, 2, 1, SIZE), normal(1, 2, 1, SIZE)]
    single = Single(
        "GroupQueryAttention",
        [*inputs, np.array([3], np.int32), np.array(4, np.int32), *angles(32, 8)],
        {"num_heads": 6, "kv_num_heads": 2, "do_rotary": 1},
        constants=(7, 8),
        outputs=3,
        domain="com.microsoft",
        free={0: (1,), 1: (1,), 2: (1,), 3: (2,), 4: (2,)},
    )
    model, feeds = single.model()
    compiled = tcompile.compile(model, threads=1)
    peer = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    cache = [np.zeros((1, 2, 0, SIZE), np.float32)] * 2
    for new in (5, 1, 1, 1):
        total = cache[0].shape[2] + new
        fresh = [normal(1, new, heads * SIZE) for heads in (6, 2, 2)]
        values = [*fresh, *cache, np.array([total - 1], np.int32), np.array(total, np.int32)]
        feeds = dict(zip([spec.name for spec in peer.get_inputs()], values, strict=True))
        got, expected = list(compiled.run(feeds).values()), peer.run(None, feeds)
        for ours, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        cache = expected[1:]
