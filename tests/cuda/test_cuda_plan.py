"""Plans that are damaged are refused by the name of what is wrong, and never followed."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tcompile.codegen.cuda_program import encode_expression
from tcompile.errors import ArtifactError
from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.loops_evaluate import compile_dim
from tcompile.runtime.cuda_expressions import read_expression
from tcompile.runtime.cuda_plan import read_cuda_plan
from tcompile.runtime.loader import Archive
from tests.cuda.loops import artifact_of

N = dims.symbol("n")


@pytest.fixture(scope="module")
def content():
    """A plan with an If, a weight and a bound dimension."""
    b = Builder("all")
    b.symbols["n"] = Range(0, None)
    mask, x = b.input("mask", dtypes.BOOL, (N,)), b.input("x", dtypes.F32, (N, 3))
    y = b.nary("add", x, b.constant(np.arange(3, dtype=np.float32)))
    indices, count = b.emit_all("compact", (mask,))
    found = b.slice(indices, [0], [b.bind_dim(count, "k", 0, N)])
    return json.loads(Archive(artifact_of(b.graph([y, b.map("add", found, found)]))[0]).part("cuda.json").tobytes())


def launch(plan):
    return next(step for step in plan["steps"] if step["do"] == "launch")


def weight(plan):
    return next(buffer for buffer in plan["buffers"] if buffer["role"] == "weight")


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda p: p.update(format=99), "version 99"),
        (lambda p: p.pop("steps"), "it lacks 'steps'"),
        (lambda p: p["steps"].append({"do": "eval"}), "no step of the kind 'eval'"),
        (lambda p: launch(p).update(kernel=99), "index out of range"),
        (lambda p: launch(p).update(kernel=-1), "a kernel's number is -1"),
        (lambda p: launch(p)["buffers"].append(0), "buffers and"),
        (lambda p: launch(p)["buffers"].__setitem__(0, 999), "no buffer 999"),
        (lambda p: launch(p)["buffers"].__setitem__(0, -1), "no buffer -1"),
        (lambda p: launch(p).update(dims=["nobody"] * len(launch(p)["dims"]) + ["nobody"]), "nobody"),
        (lambda p: weight(p).update(offset=1 << 40), "outside of the weights"),
        (lambda p: weight(p).update(offset=-64), "outside of the weights"),
        (lambda p: p["buffers"][0].update(role="mine"), "the role 'mine'"),
        (lambda p: p["buffers"][0].update(dtype=999), "element type 999"),
        (lambda p: p["kernels"][0].update(block=[2048, 1, 1]), "a block of"),
        (lambda p: p["kernels"][0].update(shared=1 << 30), "bytes of shared memory"),
        (lambda p: p["kernels"][0].update(grid=[["exec", 1, 2], 1, 1]), "'exec' is no function"),
        (lambda p: p.update(arena=["+", [1, "k_not_there"]]), "no symbol"),
        (lambda p: p.update(inputs=[len(p["buffers"])]), "no buffer"),
        (lambda p: p.update(shares=[[9, 0]]), "no pair of output 9"),
        (lambda p: p.update(output_names=[]), "2 outputs have 0 names"),
    ],
)
def test_damage_is_named(content, damage, text):
    plan = copy.deepcopy(content)
    damage(plan)
    with pytest.raises(ArtifactError, match=text):
        read_cuda_plan(json.dumps(plan).encode())


def test_no_json_is_damage_too():
    for data in (b"", b"[1, 2]", b"\xff\xfe", b'{"format": 1}', b"[" * 100000):
        with pytest.raises(ArtifactError):
            read_cuda_plan(data)


def test_deep_expressions_are_refused(content):
    expr = "n"
    for _ in range(500):
        expr = ["min", expr, 1]
    plan = copy.deepcopy(content)
    plan["arena"] = expr
    with pytest.raises(ArtifactError, match="nested too deeply"):
        read_cuda_plan(json.dumps(plan).encode())


LEAVES = st.one_of(st.integers(-5, 5), st.sampled_from([dims.symbol("a"), dims.symbol("b")]))
FUNCTIONS = {"floordiv": dims.floordiv, "mod": dims.mod, "min": dims.minimum, "max": dims.maximum, "bcast": dims.bcast}


def combined(parts):
    pairs = st.tuples(parts, parts)
    binary = st.tuples(st.sampled_from(sorted(FUNCTIONS)), parts, parts)
    return st.one_of(pairs.map(lambda p: p[0] + p[1]), pairs.map(lambda p: p[0] * p[1]), binary.map(apply))


def apply(call):
    fn, a, b = call
    try:
        return FUNCTIONS[fn](a, b)
    except dims.DimError:
        return a


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
@given(st.recursive(LEAVES, combined, max_leaves=12), st.integers(-7, 7), st.integers(-7, 7))
def test_expressions_mean_what_they_meant(expr, a, b):
    values = {"a": a, "b": b}
    written = json.loads(json.dumps(encode_expression(expr)))
    read = read_expression(written, {"a", "b"})
    assert read.value(values) == compile_dim(expr)(values)
    assert read.symbols == dims.symbols(expr)
