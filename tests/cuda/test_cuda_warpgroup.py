"""Products of four warps (sm_90): the instructions' meaning under the shim, the schedule at sizes that fill no tile, and nvcc's code."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from tcompile.codegen import cuda_tensor, cuda_warpgroup
from tcompile.codegen.cuda_c import emit_module
from tcompile.codegen.cuda_compile import compile_text, own_architecture
from tcompile.codegen.cuda_tensor import WARP_TILES
from tcompile.codegen.cuda_warpgroup import GROUP_TILES, GroupTile
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range, symbol
from tcompile.ir.dtypes import BF16, F16, F32
from tcompile.ir.graph import Graph
from tcompile.ir.loops_parse import parse_kernel
from tcompile.ir.loops_verify import verify_kernel
from tcompile.ir.target import named_target
from tcompile.ir.tileops import TILE_OPS, distribute
from tcompile.ir.tileops_warpgroup import ATOM, DEPTH, ROWS, WARPGROUP_SPECS, WIDTHS, operand, swizzled
from tcompile.pipeline import Options, compile_graph
from tests.cuda.kernel_runs import run_cuda
from tests.cuda.shim_build import ShimError
from tests.cuda.test_cuda_templates import run, values

RNG = np.random.default_rng(5)
PRODUCTS = [spec for spec in WARPGROUP_SPECS if len(spec.fragments) == 3]


def product_kernel(name: str, term: int = 0, around: str = "") -> str:
    """Four warps multiply what stands in memory; ``around`` comes before the sums are awaited."""
    spec = TILE_OPS[name]
    c, a, _ = spec.fragments
    columns, dtype = c.bytes // 2, a.dtypes[0]
    places = [f"{side}[{term}, 0]" if letter == "f" else f"{side}[0, {term}]" for side, letter in zip("ab", name[-2:], strict=True)]
    return f"""
    kernel k(p0: inout f32[128, {columns // 2}], p1: in {dtype}[64, 64], p2: in {dtype}[{columns}, 64]) dims () {{
      alloc a: {dtype}[64, 64] shared
      alloc b: {dtype}[{columns}, 64] shared
      block t in 0..128 {{
        alloc c: f32[{columns // 2}] register
        unrolled i in 0..{columns // 2} {{ store c[i] = load p0[t, i]
        }}
        for i in 0..32 {{ store a[2*i + floordiv(t, 64), mod(t, 64)] = load p1[2*i + floordiv(t, 64), mod(t, 64)]
        }}
        for i in 0..{columns // 2} {{ store b[2*i + floordiv(t, 64), mod(t, 64)] = load p2[2*i + floordiv(t, 64), mod(t, 64)]
        }}
        tile fence_async()
        barrier block
        tile wgmma_fence_n{columns}(c[0])
        tile {name}(c[0], {", ".join(places)})
        tile wgmma_commit()
        {around}
        tile wgmma_wait0_n{columns}(c[0])
        unrolled i in 0..{columns // 2} {{ store p0[t, i] = load c[i]
        }}
      }}
    }}
    """


def memories(spec) -> tuple[np.ndarray, list[np.ndarray]]:
    c, a, _ = spec.fragments
    columns, dtype = c.bytes // 2, a.dtypes[0]
    held = RNG.standard_normal((128, columns // 2)).astype(np.float32)
    return held, [RNG.standard_normal((count, ATOM)).astype(np.float32).astype(dtype.numpy) for count in (ROWS, columns)]


@pytest.mark.parametrize("spec", PRODUCTS, ids=lambda spec: spec.name)
def test_a_product_has_its_meaning(spec):
    held, operands = memories(spec)
    got = held.copy()
    kernel = parse_kernel(product_kernel(spec.name))
    verify_kernel(kernel)
    run_cuda(kernel, [got, *operands])
    np.testing.assert_allclose(got, spec.meaning([held, *operands]), rtol=0, atol=4e-6)  # one rounding of sums of 17 terms


@pytest.mark.parametrize("layouts", ["tt", "tf", "ft", "ff"])
@pytest.mark.parametrize("term", [16, 32, 48])
def test_later_terms_of_a_step_are_found_by_the_address(layouts, term):
    spec = TILE_OPS[f"wgmma_m64n64k16_f16_{layouts}"]
    held, operands = memories(spec)
    matrices = [
        operand(memory, term * (1 if letter == "t" else ATOM), len(memory), by_terms=letter == "t").astype(np.float64)
        for memory, letter in zip(operands, layouts, strict=True)
    ]
    got = np.zeros_like(held)
    run_cuda(parse_kernel(product_kernel(spec.name, term)), [got, *operands])
    expected = distribute(matrices[0] @ matrices[1].T, 32, spec.fragments[0].place, 128)
    np.testing.assert_allclose(got, expected, rtol=0, atol=4e-6)


def test_swizzling_moves_parts_within_rows_and_is_its_own_inverse():
    place = np.arange(64 * ATOM)
    np.testing.assert_array_equal(swizzled(swizzled(place)), place)
    np.testing.assert_array_equal(swizzled(place) // ATOM, place // ATOM)
    matrix = operand(place.astype(np.int64), 0, ROWS, by_terms=True)
    assert sorted(matrix[9]) == [*range(9 * ATOM, 9 * ATOM + 16)]
    assert matrix[9, 0] == 9 * ATOM + 8
    assert matrix.shape == (ROWS, DEPTH)


def test_operands_that_are_written_before_a_product_is_awaited_are_seen():
    spec = TILE_OPS["wgmma_m64n64k16_f16_tt"]
    held, operands = memories(spec)
    kernel = parse_kernel(product_kernel(spec.name, around="store a[0, 0] = load p1[0, 1]"))
    with pytest.raises(ShimError, match="race on a"):
        run_cuda(kernel, [held, *operands])


def test_a_product_that_is_not_awaited_is_seen():
    spec = TILE_OPS["wgmma_m64n64k16_f16_tt"]
    held, operands = memories(spec)
    text = product_kernel(spec.name).replace("tile wgmma_wait0_n64(c[0])", "")
    with pytest.raises(ShimError, match="has not awaited"):
        run_cuda(parse_kernel(text), [held, *operands])


# The schedule -------------------------------------------------------------------------------------------------


def product(rows, terms, columns, dtype, turned, result=F32) -> Graph:
    b = Builder()
    x = b.input("x", dtype, (terms, rows) if turned[0] else (rows, terms))
    y = b.input("y", dtype, (columns, terms) if turned[1] else (terms, columns))
    z = b.emit("dot_general", x, y, batch=((), ()), contract=((0 if turned[0] else 1,), (1 if turned[1] else 0,)), dtype=result)
    return b.graph([b.map("add", z, z)], ["z"])


def scheduled(graph: Graph, target: str = "cuda-sm90") -> str:
    text = compile_graph(graph, named_target(target), Options(device_code=False, cache=False)).build.code["code/kernels.cu"].decode()
    return "four warps" if "wgmma" in text else "one warp" if "mma_m16n8" in text else "no tensor cores"


def preferred(monkeypatch, tile: GroupTile = GROUP_TILES[0]) -> None:
    """Lets a tile be the fastest of all."""
    monkeypatch.setattr(cuda_warpgroup, "GROUP_TILES", (tile,))
    monkeypatch.setattr(cuda_tensor, "WARP_TILES", (replace(WARP_TILES[0], waiting=1.0),))


@pytest.mark.parametrize("tile", range(len(GROUP_TILES)), ids=lambda k: f"{GROUP_TILES[k].rows}x{GROUP_TILES[k].columns}")
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_products_of_every_tile_and_order(tile, turned, monkeypatch):
    preferred(monkeypatch, GROUP_TILES[tile])
    graph = product(200, 264, 328, BF16 if turned[0] else F16, turned)
    assert scheduled(graph) == "four warps"
    run(graph, {value.name: values(value.dtype, value.shape) for value in graph.inputs}, 1e-6)


@pytest.mark.parametrize("terms", [8, 64, 72, 520])
def test_products_of_few_and_many_steps(terms, monkeypatch):
    preferred(monkeypatch)
    graph = product(256, terms, 256, F16, (False, False), F16)
    run(graph, {value.name: values(F16, value.shape) for value in graph.inputs}, 2e-3)


def test_batches_of_run_time_sizes(monkeypatch):
    b = Builder()
    b.symbols.update(m=Range(0, None), n=Range(0, None))
    m, n = symbol("m"), symbol("n")
    x, y = b.input("x", BF16, (n, m, 128)), b.input("y", BF16, (n, 128, 192))
    z = b.emit("dot_general", x, y, batch=((0,), (0,)), contract=((2,), (1,)), dtype=F32)
    graph = b.graph([z], ["z"])
    preferred(monkeypatch, GROUP_TILES[2])
    assert scheduled(graph) == "four warps"
    for rows, count in ((1, 1), (130, 2), (0, 3), (64, 0)):
        run(graph, {"x": values(BF16, (count, rows, 128)), "y": values(BF16, (count, 128, 192))}, 1e-6)


def test_what_the_instructions_cannot_take_goes_to_single_warps():
    assert scheduled(product(2048, 512, 2048, BF16, (False, False)), "cuda-sm80") == "one warp"
    assert scheduled(product(2048, 510, 2047, BF16, (False, False))) == "one warp"  # rows that begin at no multiple of 16 bytes
    assert scheduled(product(2048, 512, 2048, BF16, (False, False))) == "four warps"


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not here")
def test_the_cubin_has_the_instructions_and_the_ptx_does_without():
    kernels = []
    for number, columns in enumerate(WIDTHS):
        text = product_kernel(f"wgmma_m64n{columns}k16_bf16_tf")
        kernels.append(parse_kernel(text.replace("kernel k", f"kernel k{number}")))
    text = emit_module(kernels)
    assert own_architecture(text, 90) == "90a"
    assert own_architecture(text, 100) == "100"
    made = compile_text(text, 90, cache=False)
    assert not any(facts["spill"] for facts in made.resources.values())
    assert b".target sm_90\n" in made.ptx
    assert b"wgmma" not in made.ptx
    assert made.ptx.count(b"mma.sync") == sum(WIDTHS) // 8
    assert compile_text(text, 100, cache=False).resources.keys() == made.resources.keys()
