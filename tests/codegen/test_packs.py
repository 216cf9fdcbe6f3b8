"""Kernels that change layouts: packs and unpacks of whole and ragged blocks, borders around packed images, tiles that overlap."""

import math

import numpy as np
import pytest

from tcompile.codegen.lower import lower
from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import F16, F32, F64
from tcompile.ir.interpret import interpret
from tcompile.ir.loops import Alloc, Load, Space
from tcompile.ir.loops_evaluate import postorder
from tcompile.ir.loops_interpret import expressions, run_kernel, walk
from tcompile.ir.program_text import program_kernels
from tcompile.ir.target import named_target, native_target
from tcompile.passes.fuse import Fuse
from tests.codegen.lowering import check_in_place
from tests.codegen.native import run_native

RNG = np.random.default_rng(0)


def check(graph, **arrays):
    """One kernel's worth of graph, compiled, against its meaning: bit for bit."""
    fused = Fuse(native_target()).apply(graph)
    want = interpret(graph, arrays)
    got = run_native(fused, *(arrays[value.name] for value in fused.inputs))
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


def pad(b, x, low, high, fill=0.0):
    return b.emit("pad", x, b.constant(fill, x.dtype), low=(0, 0, *low, 0), high=(0, 0, *high, 0), mode="constant")


SIZES = [(1, 8, 7, 7), (2, 16, 8, 9), (1, 5, 3, 4), (1, 21, 11, 13), (1, 40, 1, 1), (2, 12, 1, 17), (1, 8, 16, 8), (0, 9, 4, 4), (1, 3, 29)]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("dtype", [F32, F64, F16])
@pytest.mark.parametrize("block", [8, 16])
def test_there_and_back(shape, dtype, block):
    b = Builder()
    x = b.input("x", dtype, shape)
    packed = b.emit("pack", x, axis=1, block=block)
    y = b.input("p", dtype, packed.shape)
    graph = b.graph([packed, b.emit("unpack", y, axis=1, extent=shape[1], block=block)], ["y", "z"])
    random = lambda extents: RNG.standard_normal(extents).astype(dtype.numpy)  # noqa: E731
    check(graph, x=random(shape), p=random(packed.shape))


@pytest.mark.parametrize("shape", [shape for shape in SIZES if len(shape) == 4])
@pytest.mark.parametrize(("low", "high"), [((1, 1), (1, 1)), ((0, 2), (0, 0)), ((3, 0), (1, 0)), ((0, 0), (0, 1)), ((2, 3), (0, 1))])
def test_borders(shape, low, high):
    b = Builder()
    packed = b.emit("pack", b.input("x", F32, shape), axis=1, block=8)
    graph = b.graph([pad(b, b.map("neg", packed), low, high, 3.5)], ["y"])
    check(graph, x=RNG.standard_normal(shape).astype(np.float32))


def test_borders_of_a_line_and_of_a_cube():
    for shape, low, high in [((2, 11, 19), (1,), (2,)), ((1, 9, 3, 4, 9), (1, 0, 2), (0, 1, 1))]:
        b = Builder()
        graph = b.graph([pad(b, b.emit("pack", b.input("x", F32, shape), axis=1, block=8), low, high)], ["y"])
        check(graph, x=RNG.standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize(("h", "w"), [(1, 1), (2, 7), (5, 8), (9, 19)])
def test_unknown_extents(h, w):
    b = Builder()
    b.symbols.update(n=Range(0, None), h=Range(1, None), w=Range(1, None))
    shape = (dims.symbol("n"), 12, dims.symbol("h"), dims.symbol("w"))
    packed = b.emit("pack", b.input("x", F32, shape), axis=1, block=8)
    p = b.input("p", F32, packed.shape)
    back = b.emit("unpack", p, axis=1, extent=12, block=8)
    graph = b.graph([packed, back, pad(b, packed, (1, 2), (0, 1))], ["y", "z", "q"])
    x, q = RNG.standard_normal((2, 12, h, w)).astype(np.float32), RNG.standard_normal((2, 2, h, w, 8)).astype(np.float32)
    check(graph, x=x, p=q)


@pytest.mark.parametrize("width", [11, 16])
def test_an_operand_that_the_result_takes_the_place_of_is_read_once(width):
    b, target = Builder(), named_target("x86-64-v3")
    x, r = b.input("x", F32, (1, 12, 5, width)), b.input("r", F32, (1, 2, 5, width, 8))
    graph = b.graph([b.map("add", b.emit("pack", x, axis=1, block=8), r)], ["y"])
    (kernel,) = program_kernels(lower(Fuse(target).apply(graph), target))
    sources = {math.prod(value.shape): RNG.standard_normal(value.shape).astype(np.float32) for value in (x, r)}
    arrays = [sources[math.prod(param.shape)].copy() for param in kernel.params]
    assert run_kernel(kernel, arrays, ()) is None
    np.testing.assert_array_equal(arrays[-1], interpret(graph, {"x": sources[x.type.size], "r": sources[r.type.size]})["y"])
    assert kernel.aliases
    check_in_place(kernel, [*(sources[math.prod(param.shape)] for param in kernel.params[:-1]), arrays[-1]], ())


def _kernel(channels, block, width, border=0):
    b, target = Builder(), named_target("x86-64-v3")
    y = b.emit("pack", b.input("x", F32, (1, channels, 12, width)), axis=1, block=block)
    if border:
        y = pad(b, y, (border, border), (border, border))
    (kernel,) = program_kernels(lower(Fuse(target).apply(b.graph([y], ["y"])), target))
    return kernel


@pytest.mark.parametrize(("channels", "border", "masked"), [(16, 0, 0), (16, 1, 0), (16, 2, 0), (12, 0, 1), (12, 1, 1)])
def test_whole_blocks_go_through_registers_unmasked(channels, border, masked):
    kernel = _kernel(channels, 8, 13, border)
    squares = [stmt for stmt in walk(kernel.body) if isinstance(stmt, Alloc) and stmt.space is Space.REGISTER and stmt.shape == (8, 8)]
    loads = [
        expr for stmt in walk(kernel.body) for expr in postorder(*expressions(stmt)) if isinstance(expr, Load) and expr.mask is not None
    ]
    assert squares and len(loads) == masked
