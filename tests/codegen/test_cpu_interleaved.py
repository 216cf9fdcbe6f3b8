"""Interleaved templates against NumPy, exactly: parts, strides, groups, ranks, remainders, symbolic sizes, requantising epilogues."""

import numpy as np
import pytest

from tcompile.codegen import cpu_llvm, cpu_object
from tcompile.codegen.lower import lower
from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import F32, I16, U8
from tcompile.ir.ops_interleaved import interleave, word_products
from tcompile.ir.program_text import program_kernels
from tcompile.ir.target import named_target
from tcompile.passes.fuse import Fuse
from tests.codegen.template_runs import check_template

RNG = np.random.default_rng(0)
DTYPES = {2: (I16, -255, 256, np.int16), 4: (U8, 0, 256, np.int8)}


def codes(parts, *shape):
    dtype, low, high, _ = DTYPES[parts]
    return RNG.integers(low, high, shape).astype(dtype.numpy)


def weights(parts, *shape):
    """Weights [O/B, I/A, kernel, A, B], interleaved."""
    plain = RNG.integers(-128, 128, shape).astype(DTYPES[parts][3])
    return interleave(plain, plain.ndim - 2, parts)


def conv(b, x, w, strides=None, dilation=None, groups=1, paired=False):
    rank = x.rank - 3
    operands = [x, b.constant(w)]
    if paired:
        operands.append(b.constant(word_products(w).sum(axis=tuple(range(1, w.ndim - 3)), dtype=np.int32)))
    return b.emit("conv_interleaved", *operands, strides=strides or (1,) * rank, dilation=dilation or (1,) * rank, groups=groups)


def requantised(b, y):
    """convert(min(max(round(y * s), -100), 120), i16)"""
    scale = b.emit("broadcast", b.constant(RNG.uniform(1e-5, 1e-4, y.shape[1:2]).astype(np.float32)), shape=y.shape, axes=(1,))
    z = b.map("round", b.map("mul", b.convert(y, F32), scale))
    return b.convert(b.map("min", b.map("max", z, b.scalar_like(-100, z)), b.scalar_like(120, z)), I16)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("target", [None, "x86-64-v3", "x86-64-v4", "aarch64-linux"])
@pytest.mark.parametrize(
    ("spatial", "kernel", "strides", "groups", "block"),
    [((7, 9), (3, 3), (1, 1), 1, 16), ((5, 6), (1, 1), (2, 2), 2, 16), ((5, 5), (1, 1), (1, 1), 1, 4), ((11,), (3,), (2,), 1, 8)],
)
def test_conv(parts, target, spatial, kernel, strides, groups, block):
    b = Builder()
    x = b.input("x", DTYPES[parts][0], (2, 2 * groups, *spatial, block))
    y = conv(b, x, weights(parts, 3 * groups, 2, *kernel, block, 16), strides, groups=groups)
    graph = b.graph([requantised(b, y)], ["y"])
    assert check_template(graph, {"x": codes(parts, *x.shape)}, target, rtol=0) == ["interleaved conv"]


@pytest.mark.parametrize("target", [None, "x86-64-v3", "x86-64-v4", "aarch64-linux"])
@pytest.mark.parametrize(
    ("spatial", "kernel", "strides", "inputs", "outputs", "block"),
    [
        ((7, 9), (3, 3), (1, 1), 2, 3, 16),
        ((15, 15), (3, 3), (2, 2), 9, 2, 16),
        ((7, 7), (1, 1), (1, 1), 4, 5, 16),
        ((7, 13), (1, 1), (1, 1), 40, 9, 16),
        ((9, 11), (1, 1), (2, 2), 3, 2, 16),
        ((5, 5), (1, 1), (1, 1), 1, 4, 4),
        ((130,), (3,), (2,), 2, 1, 8),
    ],
)
def test_multiplied_sums(target, spatial, kernel, strides, inputs, outputs, block):
    """Winograd's inner product: tiles, rests, passes over many inputs, copied inputs, taps."""
    b = Builder()
    x = b.input("x", I16, (2, inputs, *spatial, block))
    y = conv(b, x, weights(2, outputs, inputs, *kernel, block, 16), strides, paired=True)
    graph = b.graph([requantised(b, y)], ["y"])
    assert check_template(graph, {"x": codes(2, *x.shape)}, target, rtol=0) == ["interleaved conv"]


def test_sums_of_the_largest_codes():
    b = Builder()
    x = b.input("x", I16, (1, 3, 2, 3, 16))
    w = interleave(np.full((1, 3, 1, 1, 16, 16), -255, np.int16), 4, 2)
    check_template(b.graph([conv(b, x, w, paired=True)], ["y"]), {"x": np.full(x.shape, -255, np.int16)}, rtol=0)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_symbolic_batch_and_width(parts, n):
    b = Builder()
    b.symbols.update(n=Range(0, None), w=Range(2, None))
    x = b.input("x", DTYPES[parts][0], (dims.symbol("n"), 1, 4, dims.symbol("w"), 16))
    y = conv(b, x, weights(parts, 2, 1, 3, 3, 16, 16), paired=parts == 2)
    check_template(b.graph([y], ["y"]), {"x": codes(parts, n, 1, 4, 2 + 3 * n, 16)}, rtol=0)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("target", [None, "x86-64-v4", "aarch64-linux"])
@pytest.mark.parametrize(("rows", "terms", "columns"), [(1, 8, 17), (7, 12, 1), (33, 36, 50), (1, 2048, 600)])
def test_product(parts, target, rows, terms, columns):
    b = Builder()
    a = b.input("a", DTYPES[parts][0], (rows, terms))
    panels = weights(parts, 1, -(-columns // 16), terms, 16)[0]
    y = b.emit("dot_interleaved", a, b.constant(np.ascontiguousarray(panels)), columns=columns)
    assert check_template(b.graph([y], ["y"]), {"a": codes(parts, rows, terms)}, target, rtol=0) == ["interleaved gemm"]


def test_a_value_read_as_words_and_as_elements():
    b = Builder()
    x = b.input("x", I16, (1, 1, 4, 5, 16))
    y = requantised(b, conv(b, x, weights(2, 1, 1, 1, 1, 16, 16)))
    check_template(b.graph([b.map("add", y, x)], ["y"]), {"x": codes(2, *x.shape)}, rtol=0)


@pytest.mark.parametrize(
    ("target", "features", "parts", "instruction"),
    [
        ("x86-64-v3", (), 2, "vpmaddwd"),
        ("x86-64-v4", (), 2, "vpmaddwd"),
        ("x86-64-v4", ("avx512vnni",), 4, "vpdpbusd"),
        ("x86-64-v3", ("avxvnni",), 4, "vpdpbusd"),
        ("aarch64-linux", ("i8mm",), 4, "usdot"),
    ],
)
def test_inner_loops_are_dot_products(target, features, parts, instruction):
    from dataclasses import replace

    machine = replace(named_target(target), features=(*named_target(target).features, *features))
    b = Builder()
    x = b.input("x", DTYPES[parts][0], (1, 4, 8, 8, 16))
    graph = Fuse(machine).apply(b.graph([conv(b, x, weights(parts, 4, 4, 1, 1, 16, 16))], ["y"]))
    (kernel,) = program_kernels(lower(graph, machine))
    text = cpu_object.assembly(cpu_llvm.emit_module([kernel], machine), machine)
    found = sum(instruction in line for line in text.splitlines())
    rows, vectors, _ = map(int, kernel.tags["tile"].split("x"))
    assert found >= rows * vectors
