"""Problems of the blocked layouts that passes make."""

from __future__ import annotations

import numpy as np

from tcompile.ir import dims, dtypes
from tcompile.ir.dtypes import ALL, DType
from tcompile.ir.ops_interleaved import word_products
from tcompile.ir.winograd import forms_of
from tcompile.passes.byte_entries import byte_entries
from tests.problems.problem import Case, problem
from tests.problems.values import bits, codes, codes_from

FLOATS = [dtypes.F32, dtypes.F64, dtypes.F16, dtypes.BF16]
FACTORS = [dtype for dtype in ALL if dtype.kind != "b" and dtype.bits >= 8]


@problem("pack")
def pack(case: Case, dtype: DType) -> None:
    """An axis into blocks; the last one filled with zeros."""
    shape = case.shape(case.integer(1, 4))
    case.emit("pack", case.operand(dtype, shape, bits), axis=case.integer(0, len(shape) - 1), block=case.choice((1, 3, 8, 16)))


@problem("unpack")
def unpack(case: Case, dtype: DType) -> None:
    """Blocks into an axis; pad lanes dropped."""
    shape = list(case.shape(case.integer(1, 3)))
    axis, block, extent = case.integer(0, len(shape) - 1), case.choice((1, 4, 16)), case.extent()
    shape[axis] = dims.ceildiv(extent, block)
    case.emit("unpack", case.operand(dtype, (*shape, block), bits), axis=axis, extent=extent, block=block)


@problem("dot_packed", FACTORS)
def dot_packed(case: Case, dtype: DType) -> None:
    """Rows times panels."""
    terms, columns, width = case.choice((0, 1, 5, 33)), case.choice((1, 16, 17, 50)), case.choice((8, 16, 32))
    a = case.operand(dtype, (*case.shape(case.integer(0, 2)), terms))
    b = case.operand(dtype, (-(-columns // width), terms, width), constant=0.5)
    case.emit("dot_packed", a, b, columns=columns, dtype=dtype if dtype.bits >= 32 else dtypes.F32 if dtype.is_float else dtypes.I32)


def _geometry(case: Case, rank: int):
    pick = lambda high: tuple(case.integer(1, high) for _ in range(rank))  # noqa: E731
    kernel, strides, dilation = pick(3), pick(2), pick(2)
    least = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    return kernel, tuple(case.extent(n, among=(1, 2, 3, 5, 7, 9, n)) for n in least), {"strides": strides, "dilation": dilation}


@problem("conv_blocked", FLOATS, rank=[1, 2, 3])
def conv_blocked(case: Case, dtype: DType, rank: int) -> None:
    """Blocked in, blocked out."""
    kernel, space, attrs = _geometry(case, rank)
    block, groups, inputs = case.choice((8, 16)), case.choice((1, 2)), case.choice((1, 2))
    x = case.operand(dtype, (case.extent(among=(0, 1, 2)), groups * inputs, *space, block))
    w = case.operand(dtype, (groups * case.choice((1, 2)), inputs, *kernel, block, block), constant=0.5)
    case.emit("conv_blocked", x, w, **attrs, groups=groups, dtype=dtype)


@problem("conv_stem", FLOATS, rank=[1, 2, 3])
def conv_stem(case: Case, dtype: DType, rank: int) -> None:
    """Few plain channels in, blocked out."""
    kernel, space, attrs = _geometry(case, rank)
    channels, block = case.choice((1, 3)), case.choice((8, 16))
    x = case.operand(dtype, (case.extent(among=(0, 1, 2)), channels, *space))
    w = case.operand(dtype, (case.choice((1, 2)), channels, *kernel, block), constant=0.5)
    case.emit("conv_stem", x, w, **attrs, dtype=dtype)


@problem("conv_pointwise", FLOATS, rank=[1, 2, 3])
def conv_pointwise(case: Case, dtype: DType, rank: int) -> None:
    """Plain in, plain out: groups, and tiles with rows of no channel."""
    groups, inputs, outputs, height = case.choice((1, 2)), case.choice((1, 3)), case.choice((1, 5, 8)), case.choice((2, 4, 6))
    space = tuple(case.extent() for _ in range(rank))
    x = case.operand(dtype, (case.extent(among=(0, 1, 2)), groups * inputs, *space))
    w = case.operand(dtype, (groups, -(-outputs // height), inputs, height), constant=0.5)
    case.emit("conv_pointwise", x, w, channels=groups * outputs, dtype=dtype)


@problem("depthwise_blocked", FLOATS, rank=[1, 2, 3])
def depthwise_blocked(case: Case, dtype: DType, rank: int) -> None:
    """A kernel for each channel."""
    kernel, space, attrs = _geometry(case, rank)
    blocks, block = case.choice((1, 3)), case.choice((8, 16))
    x = case.operand(dtype, (case.extent(among=(0, 1, 2)), blocks, *space, block))
    w = case.operand(dtype, (blocks, *kernel, block), constant=0.5)
    case.emit("depthwise_blocked", x, w, **attrs, dtype=dtype)


@problem("conv_winograd", [dtypes.F32, dtypes.F64], kernel=[3, 5, 7], axes=[1, 2])
def conv_winograd(case: Case, dtype: DType, kernel: int, axes: int) -> None:
    """Any size in and out, zeros around, dilations."""
    low, dilation = (tuple(draw() for _ in range(axes)) for draw in (lambda: case.integer(0, kernel), lambda: case.choice((1, 1, 2, 3))))
    space, block = tuple(case.integer(1, 12) for _ in range(axes)), case.choice((8, 16))
    size = tuple(max(extent + case.integer(-3, 5), 1) for extent in space)
    blocks, outputs = case.choice((1, 2)), case.choice((1, 2, 4))
    x = case.operand(dtype, (case.extent(among=(0, 1, 2)), blocks, *space, block))
    form = case.choice(forms_of(kernel, axes))
    u = case.operand(dtype, (form.values, outputs, len(form.offsets), blocks, block, block), constant=0.5)
    case.emit("conv_winograd", x, u, kernel=kernel, tile=form.outputs, size=size, low=low, dilation=dilation, dtype=dtype)


@problem("conv_winograd", [dtypes.F32, dtypes.F64], kernel=["3 at stride 2"], axes=[1, 2])
def strided_conv_winograd(case: Case, dtype: DType, kernel: str, axes: int) -> None:
    """Any size in and out, zeros around, at stride 2."""
    low, space, block = (
        tuple(case.integer(0, 3) for _ in range(axes)),
        tuple(case.integer(1, 20) for _ in range(axes)),
        case.choice((8, 16)),
    )
    size = tuple(max(extent // 2 + case.integer(-2, 3), 1) for extent in space)
    blocks, outputs, form = case.choice((1, 2)), case.choice((1, 2, 4)), case.choice(forms_of(3, axes, 2))
    x = case.operand(dtype, (case.extent(among=(0, 1, 2)), blocks, *space, block))
    u = case.operand(dtype, (form.values, outputs, 1, blocks, block, block), constant=0.5)
    attrs = {"kernel": 3, "tile": form.outputs, "size": size, "low": low, "dilation": (1,) * axes, "stride": 2}
    case.emit("conv_winograd", x, u, **attrs, dtype=dtype)


@problem("conv_strassen", [dtypes.F32, dtypes.F64], rank=[1, 2, 3])
def conv_strassen(case: Case, dtype: DType, rank: int) -> None:
    """Even and odd numbers of positions, strides."""
    space, strides = (tuple(draw() for _ in range(rank)) for draw in (lambda: case.integer(1, 9), lambda: case.choice((1, 1, 2, 3))))
    inputs, outputs, block = case.choice((1, 3)), case.choice((1, 2)), case.choice((8, 16))
    x = case.operand(dtype, (case.extent(among=(0, 1, 2)), 2 * inputs, *space, block))
    u = case.operand(dtype, (7, outputs, 1, inputs, block, block), constant=0.5)
    case.emit("conv_strassen", x, u, strides=strides, dtype=dtype)


WORDS = {2: (dtypes.I16, dtypes.I16), 4: (dtypes.U8, dtypes.I8)}


@problem("dot_interleaved", [dtypes.I32], parts=[2, 4])
def dot_interleaved(case: Case, dtype: DType, parts: int) -> None:
    """Rows of words times panels of words."""
    terms, columns, width = case.choice((0, 1, 5, 33)), case.choice((1, 16, 17, 50)), case.choice((8, 16, 32))
    left, right = WORDS[parts]
    a = case.operand(left, (*case.shape(case.integer(0, 2)), terms * parts))
    b = case.operand(right, (-(-columns // width), terms, width, parts), constant=0.5)
    case.emit("dot_interleaved", a, b, columns=columns)


@problem("conv_interleaved", [dtypes.I32], parts=[2, 4], rank=[1, 2, 3])
def conv_interleaved(case: Case, dtype: DType, parts: int, rank: int) -> None:
    """Blocked in and out, words of channels."""
    kernel, space, attrs = _geometry(case, rank)
    words, block, groups, inputs = case.choice((1, 4)), case.choice((8, 16)), case.choice((1, 2)), case.choice((1, 2))
    left, right = WORDS[parts]
    x = case.operand(left, (case.extent(among=(0, 1, 2)), groups * inputs, *space, words * parts))
    w = case.operand(right, (groups * case.choice((1, 2)), inputs, *kernel, words, block, parts), constant=0.5)
    case.emit("conv_interleaved", x, w, **attrs, groups=groups)


@problem("conv_interleaved", [dtypes.I32], parts=["multiplied sums"], rank=[1, 2])
def conv_interleaved_by_sums(case: Case, dtype: DType, parts: str, rank: int) -> None:
    """Codes whose sums with weights fit i16, and the products of the weights among themselves."""
    kernel, space, attrs = _geometry(case, rank)
    words, inputs, outputs = case.choice((2, 8)), case.choice((1, 3)), case.choice((1, 2))
    x = case.operand(dtypes.I16, (case.extent(among=(0, 1, 2)), inputs, *space, words * 2), codes)
    w = case.rng.integers(-255, 256, (outputs, inputs, *kernel, words, 16, 2)).astype(np.int16)
    products = word_products(w).sum(axis=tuple(range(1, w.ndim - 3)), dtype=np.int32)
    case.emit("conv_interleaved", x, case.builder.constant(w), case.builder.constant(products), **attrs, groups=1)


@problem("conv_bytes", [dtypes.I32], rank=[1, 2], weights=["few large", "any", "largest"])
def conv_bytes(case: Case, dtype: DType, rank: int, weights: str) -> None:
    """Codes of 256 numbers, weights of any size, passes over the terms."""
    kernel, space, attrs = _geometry(case, rank)
    wide, inputs, block = case.choice((4, 16, 20)), case.choice((1, 3)), case.choice((8, 16))
    low, outputs, depth = case.choice((0, -128, -255)), block * case.choice((1, 2)), wide // 4 * case.choice((1, 2, 12))
    x = case.operand(dtypes.I16, (case.extent(among=(0, 1, 2)), inputs, *space, wide), codes_from(low))
    shape = (inputs * int(np.prod(kernel)) * wide, outputs)
    matrix = case.rng.normal(0, 30, shape) if weights == "few large" else case.rng.integers(-128, 128, shape)
    matrix = np.full(shape, -128) if weights == "largest" else np.clip(np.rint(matrix), -128, 127)
    made = byte_entries(matrix.astype(np.int8), depth, case.choice((1, 2, 3, 4)))
    offsets = case.rng.integers(-1000, 1000, (outputs // block, block)).astype(np.int32)
    operands = (case.builder.constant(array) for array in (made.entries, made.places, made.starts, offsets))
    case.emit("conv_bytes", x, *operands, kernel=tuple(kernel), **attrs, low=low, depth=depth, size=made.size)


@problem("conv_winograd_whole", [dtypes.F32])
def conv_winograd_whole(case: Case, dtype: DType) -> None:
    """Codes in words, any size in and out, zeros around."""
    low, space, block = (case.integer(0, 2), case.integer(0, 2)), (case.integer(1, 12), case.integer(1, 12)), case.choice((8, 16))
    size = tuple(max(extent + case.integer(-3, 3), 1) for extent in space)
    blocks, outputs = case.choice((1, 2)), case.choice((1, 2, 4))
    x = case.operand(dtypes.I16, (case.extent(among=(0, 1, 2)), blocks, *space, block), codes)
    u = case.operand(dtypes.I16, (case.choice((16, 36)), outputs, blocks, block // 2, block, 2), codes, constant=0.5)
    case.emit("conv_winograd_whole", x, u, size=size, low=low)


@problem("conv_gathered", [dtypes.I64, dtypes.I32, dtypes.U8], pool=["none", "extremes"])
def conv_gathered(case: Case, dtype: DType, pool: str) -> None:
    """Any table, positions, taps and rows of a position; a bias for all positions or for each."""
    entries, depth, parts, taps, lanes = case.choice((1, 7, 19)), case.choice((1, 3, 8)), case.integer(1, 4), case.integer(1, 5), 16
    positions, images = taps - 1 + case.choice((1, 2, 11)), case.extent(among=(0, 1, 2))
    blocks, count = case.choice((1, 2)), case.choice((1, positions - taps + 1))
    table = case.operand(dtypes.F32, (entries, depth), constant=1.0)
    rows = case.operand(dtype, (images, positions, parts), lambda rng, kind, shape: rng.integers(0, entries, shape).astype(kind.numpy))
    scale, shift = (case.operand(dtypes.F32, (images, parts * depth)) for _ in range(2))
    gain = case.operand(dtypes.F32, (positions,), constant=0.5)
    bias = case.operand(dtypes.F32, (blocks, count, lanes), constant=0.5)
    w = case.operand(dtypes.F32, (blocks, parts, depth, taps, lanes), constant=0.5)
    case.emit("conv_gathered", table, rows, scale, shift, gain, bias, w, pool=pool)
