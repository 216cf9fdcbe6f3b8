"""Attention on tensor cores, and of few queries, under the shim: sizes that fill no tile, masks, 16-bit and computed operands."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tcompile.codegen.lower import lower
from tcompile.ir.build import Builder
from tcompile.ir.dtypes import BF16, BOOL, F16, F32, DType
from tcompile.ir.graph import Graph
from tcompile.ir.program_text import program_kernels
from tcompile.ir.target import named_target
from tcompile.ir.terms import Term
from tcompile.pipeline import optimise
from tests.codegen.test_cpu_attention import Case, mixed, products, softmax
from tests.cuda.test_cuda_templates import run, values

TARGET = named_target("cuda-sm90")
TOLERANCE = {"f16": 1e-3, "bf16": 1e-2}


def check(graph: Graph, arrays: dict[str, np.ndarray], precision: str, tensor: bool = True) -> None:
    target = replace(TARGET, precision=precision)
    tags = [kernel.tags for kernel in program_kernels(lower(optimise(graph, target), target)) if kernel.name.startswith("attention")]
    assert ["tensor" in tag for tag in tags] == [tensor]
    run(graph, arrays, TOLERANCE.get(precision, 2e-6), precision)


@pytest.mark.parametrize("precision", ["f16", "bf16"])
@pytest.mark.parametrize(
    ("rows", "keys", "depth", "columns", "symbolic"),
    [
        (17, 64, 16, 16, False),
        (40, 130, 64, 64, False),
        (70, 33, 20, 36, True),
        (16, 7, 8, 5, False),
        (33, 96, 128, 128, False),
        (20, 70, 6, 9, True),
    ],
)
def test_sizes(rows, keys, depth, columns, symbolic, precision):
    case = Case(symbolic=symbolic)
    m, n = case.size("m", rows), case.size("n", keys)
    q, k = case.heads("q", m, rows, 2, depth), case.heads("k", n, keys, 2, depth)
    v = case.heads("v", n, keys, 2, columns)
    y = mixed(softmax(products(q, k) * (1 / math.sqrt(depth))), v).transpose(0, 2, 1, 3).reshape(2, m, 2 * columns)
    check(case.b.graph([y.value], ["y"]), case.arrays, precision)


@pytest.mark.parametrize("order", ["mask", "computed q", "division"])
def test_masks_and_operands_that_are_computed(order):
    case = Case()
    q, k, v = case.heads("q", 21, 21, 3, 8), case.heads("k", 80, 80, 3, 8), case.heads("v", 80, 80, 3, 16)
    mask = case.input("mask", (2, 1, 1, 80), (2, 1, 1, 80))
    x = {"mask": products(q, k) * 0.3 + mask, "computed q": products(q * 0.5, k * 0.6), "division": products(q, k) / 3.0 - mask}[order]
    check(case.b.graph([mixed(softmax(x), v).value], ["y"]), case.arrays, "f16")


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize(("keys", "depth"), [(70, 16), (128, 64), (30, 10)])
def test_16_bit_operands_in_any_precision(dtype: DType, keys: int, depth: int):
    """They are copied as they are, sums are float32."""
    b = Builder()
    q, k, v = (b.input(name, dtype, (2, rows, depth)) for name, rows in (("q", 25), ("k", keys), ("v", keys)))
    scores = Term(b, b.emit("dot_general", q, k, batch=((0,), (0,)), contract=((2,), (2,)), dtype=F32))
    weights = softmax(scores * 0.2)
    wide = Term(b, v).convert(F32) if hasattr(Term, "convert") else Term(b, b.emit("convert", v, dtype=F32))
    y = b.emit("dot_general", weights.value, wide.value, batch=((0,), (0,)), contract=((2,), (1,)), dtype=F32)
    run(b.graph([y], ["y"]), {value.name: values(dtype, value.shape) for value in b.inputs}, 1e-2, dtype.name)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    ("rows", "keys", "depth", "columns"),
    [(1, 2, 8, 8), (1, 65, 64, 64), (1, 700, 128, 20), (2, 130, 7, 5), (4, 1100, 16, 33), (3, 9, 128, 128)],
)
def test_few_queries_share_out_the_keys(rows, keys, depth, columns, symbolic):
    """Every number of lanes for a key, one block and a cluster of them, keys that fill no turn."""
    case = Case(symbolic=symbolic)
    n = case.size("n", keys)
    q, k = case.heads("q", rows, rows, 2, depth), case.heads("k", n, keys, 2, depth)
    v = case.heads("v", n, keys, 2, columns)
    y = mixed(softmax(products(q, k) * (1 / math.sqrt(depth))), v).transpose(0, 2, 1, 3).reshape(2, rows, 2 * columns)
    graph = case.b.graph([y.value], ["y"])
    tags = [kernel.tags for kernel in program_kernels(lower(optimise(graph, TARGET), TARGET))]
    lanes = {128: 32, 64: 16, 33: 16, 16: 4, 8: 4, 7: 4}
    blocks = 8 if symbolic or keys >= 700 else 1
    assert f"{lanes[max(depth, columns)]} a key, {blocks} blocks" in [tag.get("lanes") for tag in tags], tags
    run(graph, case.arrays, 2e-6)


@pytest.mark.parametrize("blocked", [0, 1, 40])
def test_masked_keys_of_a_query(blocked):
    """Whole parts may hold masked keys alone; a query that sees none is NaN in both."""
    case = Case()
    q, k, v = case.heads("q", 1, 1, 2, 8), case.heads("k", 40, 40, 2, 8), case.heads("v", 40, 40, 2, 8)
    allowed = case.b.constant(np.arange(40) >= blocked, BOOL)
    x = Term(case.b, allowed).where(products(q, k), -math.inf)
    run(case.b.graph([mixed(softmax(x), v).value], ["y"]), case.arrays, 2e-6)


def test_few_queries_stay_on_scalar_sums():
    case = Case()
    q, k, v = case.heads("q", 5, 5, 2, 8), case.heads("k", 40, 40, 2, 8), case.heads("v", 40, 40, 2, 8)
    check(case.b.graph([mixed(softmax(products(q, k)), v).value], ["y"]), case.arrays, "f16", tensor=False)
