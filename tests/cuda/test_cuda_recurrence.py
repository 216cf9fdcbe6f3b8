"""Recurrences in one kernel under the shim: cells of every kind and size against the interpreter, and the loops that stay loops."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest

from tcompile.codegen.cuda_c import emit_module
from tcompile.codegen.cuda_compile import compile_text
from tcompile.codegen.cuda_recurrence import plan
from tcompile.codegen.lower import lower
from tcompile.ir.graph import Graph
from tcompile.ir.loops_parse import parse_kernel
from tcompile.ir.loops_text import print_kernel
from tcompile.ir.loops_verify import verify_kernel
from tcompile.ir.onnx_import import import_model
from tcompile.ir.program_text import program_kernels
from tcompile.ir.target import GpuTarget, named_target
from tcompile.pipeline import optimise
from tests.cuda.kernel_runs import run_cuda
from tests.cuda.test_cuda_templates import run

RNG = np.random.default_rng(3)
SM90 = named_target("cuda-sm90")
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
INPUT = 6


def network(op: str, hidden: int, batch: int | str, time: int | str, direction: str = "forward", attributes: str = "") -> Graph:
    """A layer with random weights and biases; ``x`` is [time, batch, INPUT]."""
    directions = 2 if direction == "bidirectional" else 1
    finals = ", yh, yc" if op == "LSTM" else ", yh"
    outputs = ", ".join(f"float[a{name}, b{name}, c{name}] {name}" for name in finals.replace(",", "").split())
    body = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[{time}, {batch}, {INPUT}] x) => (float[t, {directions}, n, {hidden}] y, {outputs}) {{
      y{finals} = {op}<hidden_size={hidden}, direction="{direction}"{attributes}>(x, w, r, b)
    }}"""
    model = onnx.parser.parse_model(body)
    gates = GATES[op] * hidden
    for name, shape in (("w", (directions, gates, INPUT)), ("r", (directions, gates, hidden)), ("b", (directions, 2 * gates))):
        array = RNG.standard_normal(shape).astype(np.float32) / np.sqrt(hidden)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return import_model(model)


def kernels(graph: Graph, target: GpuTarget = SM90) -> list[str]:
    """The names of a graph's kernels without their digests."""
    return [kernel.name.rsplit("_", 1)[0] for kernel in program_kernels(lower(optimise(graph, target), target))]


def check(graph: Graph, batch: int, time: int, expected: int) -> None:
    assert kernels(graph).count("recurrence") == expected
    run(graph, {"x": RNG.standard_normal((time, batch, INPUT)).astype(np.float32)}, 2e-6)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("hidden", [1, 7, 32, 33, 96])
def test_cells_of_any_size(op, hidden):
    """One block, several lanes of a unit beyond the last one's, a cluster; rows of more than one batch."""
    attributes = ", linear_before_reset=1" if op == "GRU" else ""
    check(network(op, hidden, 3, 5, attributes=attributes), 3, 5, 1)


@pytest.mark.parametrize(("hidden", "batch", "time"), [(128, 1, 4), (130, 2, 3), (256, 1, 2)])
def test_clusters_share_a_row(hidden, batch, time):
    check(network("LSTM", hidden, batch, time), batch, time, 1)


@pytest.mark.parametrize(("batch", "time"), [(1, 1), (2, 6), (5, 3)])
def test_symbolic_batches_and_lengths(batch, time):
    check(network("LSTM", 40, "batch", "time"), batch, time, 1)


def test_no_turns_leave_the_initial_state():
    graph = network("GRU", 20, "batch", "time", attributes=", linear_before_reset=1")
    assert kernels(graph).count("recurrence") == 1
    run(graph, {"x": np.zeros((0, 2, INPUT), np.float32)}, 0)


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_directions(direction):
    graph = network("LSTM", 24, 2, 4, direction)
    assert "recurrence" in kernels(graph)
    run(graph, {"x": RNG.standard_normal((4, 2, INPUT)).astype(np.float32)}, 2e-6)


@pytest.mark.parametrize(("hidden", "batch"), [(12, 2), (33, 1), (100, 3)])
def test_products_of_products(hidden, batch):
    """A reset gate before the product: the second product of a turn needs the first."""
    check(network("GRU", hidden, batch, 4), batch, 4, 1)


def test_weights_beyond_the_registers_stay_a_loop():
    assert "recurrence" not in kernels(network("LSTM", 600, 1, 3))


def test_without_clusters_one_block_takes_what_it_can():
    sm80 = named_target("cuda-sm80")
    assert kernels(network("LSTM", 48, 1, 3), sm80).count("recurrence") == 1
    assert kernels(network("LSTM", 128, 1, 3), sm80).count("recurrence") == 0
    assert plan(sm80, 128, [128] * 4) is None
    for units in (1, 5, 31, 64, 200, 256):
        made = plan(SM90, units, [units] * 4)
        assert made.blocks * made.units >= units and made.threads % 32 == 0
        assert made.blocks == 1 or (made.blocks - 1) * made.units < units


# Clusters ---------------------------------------------------------------------------------------------------

MEETING = """
kernel k(p0: in f32[2, 128], p1: inout f32[2, 128], p2: out f32[2, 128]) dims () {{
  grid g in 0..2 {{
    cluster c in 0..2 {{
      block t in 0..64 {{
        store p1[g, 64*c + t] = load p0[g, 64*c + t]
        {barrier}
        store p2[g, 64*c + t] = load p1[g, -64*c - t + 127]
      }}
    }}
  }}
}}
"""


def test_blocks_of_a_cluster_meet():
    kernel = parse_kernel(MEETING.format(barrier="barrier cluster"))
    verify_kernel(kernel)
    assert print_kernel(parse_kernel(print_kernel(kernel))) == print_kernel(kernel)
    x, held, got = RNG.standard_normal((2, 128)).astype(np.float32), np.zeros((2, 128), np.float32), np.zeros((2, 128), np.float32)
    run_cuda(kernel, [x, held, got])
    np.testing.assert_array_equal(got, x[:, ::-1])


def test_a_block_barrier_does_not_meet_the_others():
    x, held, got = RNG.standard_normal((2, 128)).astype(np.float32), np.zeros((2, 128), np.float32), np.zeros((2, 128), np.float32)
    run_cuda(parse_kernel(MEETING.format(barrier="barrier block")), [x, held, got])
    assert not np.array_equal(got, x[:, ::-1])


def test_a_block_that_does_not_come_is_named():
    text = MEETING.format(barrier="barrier cluster").replace("barrier cluster", "if lt(index(c), 1:i64) { barrier cluster }")
    kernel = parse_kernel(text)
    with pytest.raises(Exception, match="a cluster barrier stands under a condition"):
        verify_kernel(kernel)


def test_nvcc_takes_clusters():
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    text = emit_module((parse_kernel(MEETING.format(barrier="barrier cluster")),))
    assert "__cluster_dims__(2, 1, 1)" in text
    assert "const float *__restrict__ p0, float *p1, float *__restrict__ p2" in text  # others write p1
    assert compile_text(text, 90, cache=False).resources["k"]["spill"] == 0
