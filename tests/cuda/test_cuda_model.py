"""The static model of GPU kernels: numbers that can be counted by hand, and how much the kernels move of what they must."""

from __future__ import annotations

import pytest

from tcompile.codegen.cuda_model import KernelModel, limit, occupancy, program_models
from tcompile.codegen.lower import lower
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range, symbol
from tcompile.ir.dtypes import F16, F32, I64, DType
from tcompile.ir.graph import Graph, Value
from tcompile.ir.target import GpuTarget, named_target
from tcompile.ir.terms import Term
from tcompile.pipeline import optimise
from tests.codegen.test_cpu_attention import softmax

TARGET = named_target("cuda-sm90")
assert isinstance(TARGET, GpuTarget)


def models(graph: Graph, **sizes: int) -> list[KernelModel]:
    program = lower(optimise(graph, TARGET), TARGET)
    return [one for one, _ in program_models(program, TARGET, sizes)]


def product(b: Builder, x: Value, y: Value, dtype: DType = F32) -> Value:
    return b.emit("dot_general", x, y, batch=((), ()), contract=((1,), (0,)), dtype=dtype)


def test_a_map_reads_and_writes_every_element_once():
    b = Builder()
    b.symbols["n"] = Range(0, None)
    x, y = b.input("x", F32, (symbol("n"), 100)), b.input("y", F32, (100,))
    (one,) = models(b.graph([b.map("add", x, b.emit("broadcast", y, shape=x.shape, axes=(1,)))], ["z"]), n=30)
    assert one.minimum == one.moved == 4 * (2 * 3000 + 100)
    assert one.flops == 3000


def test_a_gather_counts_the_rows_it_reads():
    b = Builder()
    table, rows = b.input("t", F32, (50_000, 768)), b.input("i", I64, (64,))
    (one,) = models(b.graph([b.emit("gather", table, rows, axis=0)], ["z"]))
    assert one.minimum == 2 * 64 * 768 * 4 + 64 * 8
    assert one.ratio <= limit(one.name)


def test_occupancy_is_bound_by_registers_and_shared_memory():
    assert occupancy(TARGET, 256, 32, 0) == 1
    assert occupancy(TARGET, 256, 128, 0) == 0.25
    assert occupancy(TARGET, 128, 32, 56 << 10) == 4 * 128 / 2048  # 57 KiB each with the system's


def graphs() -> dict[str, Graph]:
    """Layers of the public models: large products and convolutions, normalisations, softmaxes, transposes, decoding."""
    found = {}
    for name, (rows, terms, columns) in {"bert": (128, 768, 3072), "head": (64, 768, 50257), "decode": (1, 768, 50257)}.items():
        b = Builder()
        found[name] = b.graph([product(b, b.input("x", F32, (rows, terms)), b.input("y", F32, (terms, columns)))], ["z"])
    b = Builder()
    found["half"] = b.graph([product(b, b.input("x", F16, (4096, 4096)), b.input("y", F16, (4096, 4096)), F16)], ["z"])
    for name, (shape, outputs, kernel, stride) in {
        "stem": ((1, 3, 224, 224), 64, 7, 2),
        "body": ((8, 256, 14, 14), 256, 3, 1),
        "pointwise": ((8, 1024, 14, 14), 256, 1, 1),
    }.items():
        b = Builder()
        x, w = b.input("x", F32, shape), b.input("w", F32, (outputs, shape[1], kernel, kernel))
        pads = {"low": (kernel // 2,) * 2, "high": (kernel // 2,) * 2, "lhs_dilation": (1, 1), "dilation": (1, 1), "groups": 1}
        found[name] = b.graph([b.emit("conv", x, w, strides=(stride, stride), dtype=F32, **pads)], ["z"])
    b = Builder()
    found["softmax"] = b.graph([softmax(Term(b, b.input("x", F32, (12 * 512, 512)))).value], ["z"])
    b = Builder()
    found["turn"] = b.graph([b.transpose(b.input("x", F32, (32, 512, 768)), (0, 2, 1))], ["z"])
    b = Builder()
    found["reduce"] = b.graph([b.emit("reduce", b.input("x", F32, (64, 4096, 128)), fn="add", axes=(1,))], ["z"])
    return found


@pytest.mark.parametrize("name", graphs())
def test_kernels_move_little_more_than_they_must(name):
    for one in models(graphs()[name]):
        assert one.ratio <= limit(one.name), f"{one.name} moves {one.ratio:.2f} times the minimum"
        assert 0 < one.occupancy <= 1
