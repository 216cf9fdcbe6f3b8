"""What is in the objects: no undefined symbols, few kinds of relocations, tight inner loops, for every target."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tcompile.codegen import cpu_llvm
from tcompile.codegen.cpu_emit_ops import OPS
from tcompile.codegen.link import link
from tcompile.ir import dtypes, elementwise
from tcompile.ir.casts import bitcast, convert
from tcompile.ir.dims import symbol
from tcompile.ir.dtypes import ALL, F16, F32
from tcompile.ir.loops import Cast, Const, Op
from tcompile.ir.target import named_target
from tests.codegen.kernel_runs import NATIVE, assert_same, load
from tests.codegen.test_cpu_llvm import gemm
from tests.codegen.test_cpu_ops import WIDTHS, kernel

TARGETS = ("x86-64-v3", "x86-64-v4", "aarch64-linux")


@pytest.mark.parametrize("target", TARGETS)
def test_every_function_is_free_of_calls(target):
    kernels = []
    for fn, row in elementwise.TABLE.items():
        for dtype in ALL:
            expanded = fn not in OPS and fn != "where"  # alike for all narrow types: these compute in f32
            if row.takes(dtype) and dtype not in (dtypes.F4E2M1, dtypes.F8E8M0) and (dtype.bits >= 32 or not expanded):
                output = elementwise.result_dtype(fn, ([dtypes.BOOL] if fn == "where" else [dtype]) + [dtype] * (row.arity - 1))
                inputs = [dtypes.BOOL, dtype, dtype] if fn == "where" else [dtype] * row.arity
                for width in (1, 16) if dtype in (F32, dtypes.F64, dtypes.I64, dtypes.U8) and not expanded else (16,):
                    name = f"{fn}_{dtype}_{width}"
                    kernels.append(kernel(name, lambda *args, fn=fn, to=output: Op(fn, args, to), inputs, output, width))
    machine = named_target(target)
    link([cpu_llvm.compile_module(cpu_llvm.emit_module(kernels, machine), machine)])  # refuses undefined symbols and unknown relocations


@pytest.mark.parametrize("target", TARGETS)
def test_every_conversion_is_free_of_calls(target):
    machine = named_target(target)
    kernels = [
        kernel(f"{source}_{to}_{width}", lambda x, to=to: Cast(x, to), [source], to, width)
        for source in ALL
        for to in ALL
        for width in (WIDTHS if F32 in (source, to) or dtypes.F64 in (source, to) else (16,))
        if source != to
    ]
    link([cpu_llvm.compile_module(cpu_llvm.emit_module(kernels, machine), machine)])  # refuses undefined symbols and unknown relocations


def test_f16_without_instructions_for_it():
    machine = replace(NATIVE, half=False)
    patterns = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    with np.errstate(invalid="ignore"):
        wide = np.concatenate([patterns.astype(np.float32) * np.float32(1 + step) for step in (0, 2**-11, 2**-12, -(2**-12), 2**-22)])
    for width in WIDTHS:
        decode = kernel("decode", lambda x: Cast(x, F32), [F16], F32, width)
        encode = kernel("encode", lambda x: Cast(x, F16), [F32], F16, width)
        loaded = load(decode, encode, target=machine)
        numbers, halves = np.zeros(1 << 16, np.float32), np.zeros(wide.size, np.float16)
        loaded.run(decode, [patterns, numbers], [1 << 16])
        loaded.run(encode, [wide, halves], [wide.size])
        assert_same(numbers, patterns.astype(np.float32))
        assert_same(halves, convert(wide, F16))
    assert bitcast(patterns[:1], dtypes.U16) == 0


def inner_loop(text: str) -> list[str]:
    """The instructions of the smallest loop that holds a fused multiply-add."""
    lines = text.splitlines()
    found: list[list[str]] = []
    starts: dict[str, int] = {}
    for number, line in enumerate(lines):
        if line.endswith(":") and line.startswith(".LBB"):
            starts[line[:-1]] = number
        jump = re.match(r"\t(?:j\w+|b\.\w+|b)\t(\.LBB\w+)", line)
        if jump and jump[1] in starts:
            found.append([text for text in lines[starts[jump[1]] : number] if text.startswith("\t")])
    return min((loop for loop in found if any(re.search(r"vfmadd|fmla", text) for text in loop)), key=len)


@pytest.mark.parametrize(
    ("target", "mr", "nv", "lanes", "fmas"),
    [
        ("x86-64-v4", 8, 3, 16, 24),
        ("x86-64-v4", 14, 2, 16, 28),
        ("x86-64-v3", 6, 1, 16, 12),
        ("x86-64-v3", 4, 3, 8, 12),
        ("aarch64-linux", 6, 1, 16, 24),
    ],
)
@pytest.mark.parametrize("symbolic", [False, True])
def test_register_tiles_stay_in_registers(target, mr, nv, lanes, fmas, symbolic):
    depth = symbol("k0") if symbolic else 768
    machine = named_target(target)
    text = cpu_llvm.assembly(cpu_llvm.emit_kernel(gemm(mr * 4, nv * lanes * 2, depth, lanes, mr, nv), machine), machine)
    loop = inner_loop(text)
    assert sum(bool(re.search(r"vfmadd|fmla", line)) for line in loop) == fmas
    assert not [line for line in loop if re.search(r"[(\[](%r|)sp", line)], loop
    assert not [line for line in loop if re.search(r"\tv?mov[ua]ps\t%[xyz]mm.*\(|\tst[rp]\t", line)], loop
    if target == "x86-64-v4":
        assert all("zmm" in line for line in loop if "vfmadd" in line)


def test_rectifier_is_one_instruction():
    made = kernel("relu", lambda x: Op("max", (x, Const(0.0, F32)), F32), [F32], F32, 16)
    for name, count in (("x86-64-v3", 2), ("x86-64-v4", 1)):
        text = cpu_llvm.assembly(cpu_llvm.emit_kernel(made, named_target(name)), named_target(name))
        assert text.count("vmaxps") >= count
        assert "vcmp" not in text
