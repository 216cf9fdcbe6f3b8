"""Device code from CUDA C: what comes back, what is kept, what is said where there is no compiler."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tcompile.codegen import cuda_compile, cuda_nvcc, cuda_nvrtc
from tcompile.codegen.cpu_object import CodegenError
from tcompile.codegen.cuda_c import emit_module
from tcompile.codegen.cuda_compile import compile_text, find_compiler, read_resources
from tcompile.errors import UnsupportedError
from tcompile.ir.dtypes import ALL, F32, F64, DType
from tcompile.ir.loops import ATOMICS
from tcompile.ir.loops_parse import parse_kernel
from tcompile.ir.tileops import LANES, TILE_OPS
from tests.cuda.test_shim import ASYNC, MATRICES, fragment_kernel

KERNELS = """\
kernel first(p0: in f32[n], p1: out f32[n]) dims (n) {
  grid g in 0..floordiv(n + 127, 128) { block t in 0..128 {
    if lt(index(128*g + t), index(n)) { store p1[128*g + t] = tanh(load p0[128*g + t]) }
  } }
}
kernel second(p0: in f16[n], p1: inout i32[4]) dims (n) {
  grid g in 0..n {
    alloc s: f32[32] shared
    block t in 0..32 {
      let x = cast(load p0[g], f32)
      store s[t] = add(x, shuffle(x, 8))
      barrier block
      atomic max p1[mod(t, 4)] = cast(load s[31 - t], i32)
    }
  }
}
"""


def text() -> str:
    return emit_module([parse_kernel("kernel" + part) for part in KERNELS.split("kernel")[1:]])


def has_compiler() -> bool:
    return cuda_nvcc.find() is not None or cuda_nvrtc.find() is not None


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no CUDA compiler is here")


@needs_compiler
@pytest.mark.parametrize("sm", [80, 90])
def test_a_module_becomes_a_cubin_and_ptx_with_its_resources(sm):
    made = compile_text(text(), sm, cache=False)
    assert made.cubin.startswith(b"\x7fELF")
    assert f".target sm_{sm}".encode() in made.ptx
    assert made.ptx.endswith(b"\0")
    assert made.resources.keys() == {"first", "second"}
    assert made.resources["second"]["shared"] >= 128
    assert all(facts["registers"] > 0 and facts["spill"] == 0 for facts in made.resources.values())


@pytest.mark.skipif(cuda_nvrtc.find() is None, reason="no NVRTC is here")
def test_nvrtc_gives_the_same_as_the_toolkit():
    compiler = cuda_nvrtc.find()
    assert 90 in compiler.architectures()
    cubin, ptx, log = compiler.compile(text(), 90)
    assert cubin.startswith(b"\x7fELF")
    assert b".target sm_90" in ptx
    assert {name: facts["spill"] for name, facts in read_resources(log).items()} == {"first": 0, "second": 0}
    with pytest.raises(CodegenError, match=r"NVRTC .* refuses the kernels' text"):
        compiler.compile("nonsense", 90)


@needs_compiler
def test_what_was_compiled_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TCOMPILE_CACHE_DIR", str(tmp_path))
    first = compile_text(text(), 90)
    monkeypatch.setattr(type(find_compiler(90)), "compile", None)
    assert compile_text(text(), 90) == first


@needs_compiler
def test_an_unknown_architecture_and_refused_text_are_named():
    with pytest.raises(UnsupportedError, match="knows sm_999"):
        find_compiler(999)
    with pytest.raises(CodegenError, match="refuses the kernels' text"):
        compile_text("nonsense", 90, cache=False)


@needs_compiler
@pytest.mark.parametrize("sm", [80, 100])
def test_what_is_ptx_in_the_prelude_assembles(sm):
    tiles = [name for name, spec in TILE_OPS.items() if spec.lanes == LANES and not name.startswith("ldmatrix")]
    kernels = [parse_kernel(fragment_kernel(name, [f"r{k}" for k in range(len(TILE_OPS[name].fragments))])) for name in tiles]
    kernels += [parse_kernel(matrix_kernel(name, dtype)) for name, dtype in MATRICES]
    kernels += [
        parse_kernel(atomic_kernel(fn, dtype)) for fn, kinds in ATOMICS.items() for dtype in ALL if dtype.kind in kinds and takes(dtype)
    ]
    kernels += [parse_kernel(ASYNC.replace("kernel k", "kernel async"))]
    kernels += [parse_kernel(conversion_kernel(dtype)) for dtype in ALL]
    named = [replace(kernel, name=f"{kernel.name}_{number}") for number, kernel in enumerate(kernels)]
    made = compile_text(emit_module(named), sm, cache=False)
    assert made.resources.keys() == {kernel.name for kernel in named}
    assert not any(facts["spill"] for facts in made.resources.values())


def takes(dtype: DType) -> bool:
    """Whether there are atomics of a dtype."""
    return dtype.bits >= 8 and (dtype.is_integer or dtype in (F32, F64))


def matrix_kernel(name: str, dtype: DType) -> str:
    count = TILE_OPS[name].fragments[0].elements(dtype)
    return f"""
    kernel {name}_{dtype}(p0: out {dtype}[32, {count}]) dims () {{
      alloc s: {dtype}[32, {16 // dtype.bytes}] shared
      block t in 0..32 {{
        alloc r: {dtype}[{count}] register
        tile {name}(r[0], s[t, 0])
        unrolled o in 0..{count} {{ store p0[t, o] = load r[o]
        }}
      }}
    }}
    """


def atomic_kernel(fn: str, dtype: DType) -> str:
    return f"kernel a(p0: in {dtype}[32], p1: inout {dtype}[32]) dims () {{ block t in 0..32 {{ atomic {fn} p1[t] = load p0[t]\n }} }}"


def conversion_kernel(dtype: DType) -> str:
    """From a dtype to the others and back."""
    casts = "\n".join(f"store p1[t] = cast(cast(load p0[t], {other}), {dtype})" for other in ALL if other != dtype)
    return f"kernel c(p0: in {dtype}[32], p1: out {dtype}[32]) dims () {{ block t in 0..32 {{\n{casts}\n}} }}"


def test_without_a_compiler_the_error_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(cuda_nvcc, "find", lambda: None)
    monkeypatch.setattr(cuda_nvrtc, "find", lambda: None)
    cuda_compile.find_compiler.cache_clear()
    with pytest.raises(UnsupportedError, match="no CUDA compiler is here") as caught:
        find_compiler(90)
    assert "pip install nvidia-cuda-nvrtc" in str(caught.value.hint)
    cuda_compile.find_compiler.cache_clear()


def test_the_assemblers_log_is_read():
    log = """ptxas info    : Compiling entry function 'k' for 'sm_90'
ptxas info    : Function properties for k
    64 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 64 bytes cumulative stack size, 2048 bytes smem
"""
    assert read_resources(log) == {"k": {"registers": 255, "shared": 2048, "stack": 64, "spill": 20}}
