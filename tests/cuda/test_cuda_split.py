"""Sums whose parts the blocks of a cluster add, or a second kernel: any number of parts, tiles that nothing fills, epilogues."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tcompile.codegen import cuda_gemm, cuda_tensor, cuda_warpgroup
from tcompile.codegen.cuda_tensor import WARP_TILES
from tcompile.codegen.cuda_tile import TILES, split_parts
from tcompile.codegen.cuda_warpgroup import GROUP_TILES
from tcompile.codegen.lower import lower
from tcompile.ir.build import Builder
from tcompile.ir.dtypes import F16, F32, DType
from tcompile.ir.graph import Graph
from tcompile.ir.program import Call
from tcompile.ir.program_text import walk
from tcompile.ir.target import named_target
from tcompile.pipeline import optimise
from tests.cuda.test_cuda_conv import convolution
from tests.cuda.test_cuda_templates import run, values

SM90 = named_target("cuda-sm90")


def product(rows: int, terms: int, columns: int, dtype: DType = F32) -> Graph:
    """Two of a batch, a bias and a maximum behind."""
    b = Builder()
    x, y = b.input("x", dtype, (2, rows, terms)), b.input("y", dtype, (2, terms, columns))
    z = b.emit("dot_general", x, y, batch=((0,), (0,)), contract=((2,), (1,)), dtype=F32)
    bias = b.emit("broadcast", b.input("c", F32, (columns,)), shape=z.shape, axes=(2,))
    return b.graph([b.map("max", b.map("add", z, bias), b.emit("broadcast", b.constant(0.0, F32), shape=z.shape, axes=()))], ["z"])


def launches(graph: Graph, precision: str = "f32") -> list[tuple[str | None, str | None]]:
    """The parts and the instruction of each launch."""
    target = replace(SM90, precision=precision)
    calls = [one.kernel.tags for one in walk(lower(optimise(graph, target), target).body) if isinstance(one, Call)]
    return [(tags.get("parts"), tags.get("tensor")) for tags in calls]


def check(graph: Graph, parts: int, precision: str = "f32", tolerance: float = 3e-6) -> None:
    found = launches(graph, precision)
    assert found[0][0] == str(parts)
    assert len(found) == (1 if parts <= SM90.cluster else 2)
    run(graph, {value.name: values(value.dtype, value.shape) for value in graph.inputs}, tolerance, precision)


@pytest.mark.parametrize(("rows", "terms", "columns"), [(33, 70, 19), (20, 96, 36), (40, 40, 130)])
@pytest.mark.parametrize("parts", [2, 3, 5, 8, 9])
def test_scalar_products(rows, terms, columns, parts, monkeypatch):
    monkeypatch.setattr(cuda_gemm, "choose", lambda *_: (TILES[7], parts))
    check(product(rows, terms, columns), parts)


@pytest.mark.parametrize(("rows", "terms", "columns"), [(33, 130, 19), (64, 96, 72)])
@pytest.mark.parametrize("parts", [2, 7])
@pytest.mark.parametrize("tile", [4, 6])
def test_products_of_single_warps(rows, terms, columns, parts, tile, monkeypatch):
    monkeypatch.setattr(cuda_tensor, "choose_tile", lambda *_: (WARP_TILES[tile], parts, 0.0))
    check(product(rows, terms, columns), parts, "f16", 1e-3)


@pytest.mark.parametrize("parts", [2, 4])
def test_products_of_four_warps(parts, monkeypatch):
    monkeypatch.setattr(cuda_warpgroup, "choose_tile", lambda *_: (GROUP_TILES[3], parts, 0.0))
    graph = product(70, 264, 136, F16)
    check(graph, parts, tolerance=1e-6)
    assert launches(graph)[0][1].startswith("wgmma")


@pytest.mark.parametrize("parts", [2, 6])
@pytest.mark.parametrize("outputs", [16, 21])
def test_convolutions(parts, outputs, monkeypatch):
    monkeypatch.setattr(cuda_gemm, "choose", lambda *_: (TILES[7], parts))
    check(convolution((2, 64, 5, 7), outputs), parts)


def test_blocks_that_fill_the_machine_stay_whole():
    assert split_parts(SM90, SM90.sms, 4096, split=True) == [1]
    assert split_parts(SM90, 40, 4096, split=False) == [1]
    assert split_parts(SM90, 40, 512, split=True) == [1, 2, 3, 4]
    assert max(split_parts(SM90, 40, 4096, split=True)) == 2 * SM90.sms // 40


def test_without_clusters_a_second_kernel_adds(monkeypatch):
    monkeypatch.setattr(cuda_gemm, "choose", lambda *_: (TILES[7], 3))
    sm80 = named_target("cuda-sm80")
    calls = [one for one in walk(lower(optimise(product(33, 70, 19), sm80), sm80).body) if isinstance(one, Call)]
    assert len(calls) == 2
