"""Whole graphs lowered to programs and interpreted, against the graph interpreter."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tcompile.codegen.lower import lower
from tcompile.errors import ExecutionError
from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.interpret import interpret
from tcompile.ir.loops import Status
from tcompile.ir.loops_verify import verify_kernel
from tcompile.ir.program import Copy, Role
from tcompile.ir.program_interpret import ProgramStop, run_program
from tcompile.ir.program_text import print_program, program_buffers, program_kernels, walk
from tcompile.ir.program_verify import verify_program
from tcompile.runtime.executable import Executable
from tests.codegen.lowering import TARGET
from tests.codegen.native import artifact, run_native
from tests.cuda.loops import on_loops

N = dims.symbol("n")


def builder(**ranges):
    made = Builder("test")
    made.symbols.update({name: Range(*ends) for name, ends in (ranges or {"n": (0, None)}).items()})
    return made


def check(graph, *arrays, rtol=1e-5):
    program = lower(graph, TARGET)
    verify_program(program)
    for kernel in program_kernels(program):
        verify_kernel(kernel)
    expected, got = interpret(graph, arrays), run_program(program, arrays)
    assert expected.keys() == got.keys()
    native, device = run_native(graph, *arrays), on_loops(graph)[0].run(list(arrays))
    for name, array in expected.items():
        for result in (got[name], native[name], device[name]):
            np.testing.assert_allclose(result, array, rtol=rtol, atol=rtol, err_msg=name)
            assert result.shape == array.shape
    return program


def rand(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n", [0, 1, 5, 1000])
def test_a_symbolic_add_is_one_call(n):
    b = builder()
    x, y = b.input("x", dtypes.F32, (N,)), b.input("y", dtypes.F32, (N,))
    program = check(b.graph([b.map("add", x, y)], ["z"]), rand(n), rand(n))
    assert len(program.body) == 1 and not [buffer for buffer in program_buffers(program) if buffer.role is Role.TEMP]


def test_equal_layers_share_one_kernel():
    b = builder()
    x = b.input("x", dtypes.F32, (N, 4))
    for _ in range(3):
        x = b.map("tanh", x)
    assert len(program_kernels(check(b.graph([x]), rand(3, 4), rtol=1e-4))) == 1


def test_reshapes_cost_nothing():
    b = builder()
    x = b.input("x", dtypes.F32, (N, 4))
    y = b.reshape(b.map("neg", b.reshape(x, (N * 4,))), (N, 2, 2))
    program = check(b.graph([y]), rand(3, 4))
    assert len(program.body) == 1


def test_outputs_that_are_inputs_constants_or_twins_are_copied():
    b = builder()
    x = b.input("x", dtypes.F32, (N,))
    y = b.map("neg", x)
    c = b.constant(np.arange(3.0, dtype=np.float32))
    d = b.dim((N, N + 1))
    program = check(b.graph([x, y, y, c, d], ["a", "b", "c", "d", "e"]), rand(7))
    assert sum(isinstance(i, Copy) for i in program.body) == 4


def test_scalar_constants_become_part_of_the_code():
    b = builder()
    x = b.input("x", dtypes.F32, (N,))
    program = check(b.graph([b.map("mul", x, b.scalar_like(3.0, x))]), rand(5))
    assert not [buffer for buffer in program_buffers(program) if buffer.role is Role.WEIGHT]


def test_equal_weights_are_stored_once():
    b = builder()
    x = b.input("x", dtypes.F32, (N, 4))
    w = np.arange(4, dtype=np.float32)
    y = b.nary("add", b.nary("mul", x, b.constant(w.copy())), b.constant(w.copy()))
    program = check(b.graph([y]), rand(5, 4))
    assert len([buffer for buffer in program_buffers(program) if buffer.role is Role.WEIGHT]) == 1


def test_a_bound_dimension_makes_a_growing_buffer():
    b = builder(n=(0, None))
    mask = b.input("mask", dtypes.BOOL, (N,))
    indices, count = b.emit_all("compact", (mask,))
    k = b.bind_dim(count, "k", 0, N)
    found = b.slice(indices, [0], [k])
    twice = b.map("add", found, found)
    program = check(b.graph([b.map("mul", twice, found)]), np.array([True, False, True, True]))
    assert [buffer for buffer in program_buffers(program) if buffer.role is Role.GROWING]


@pytest.mark.parametrize("flag", [True, False])
def test_if(flag):
    b = builder()
    x, cond = b.input("x", dtypes.F32, (N,)), b.input("cond", dtypes.BOOL, ())
    then, other = b.region("then"), b.region("else")
    for region, fn in ((then, "neg"), (other, "abs")):
        region.out = region.map(fn, region.input("x", dtypes.F32, (N,)))
    regions = (then.graph([then.out]), other.graph([other.inputs[0]]))
    (out,) = b.emit_all("if", (cond, x), {}, regions)
    check(b.graph([b.map("exp", out)]), rand(6), np.array(flag))


@pytest.mark.parametrize("flag", [True, False])
def test_if_with_unlike_shapes(flag):
    b = builder()
    x, cond = b.input("x", dtypes.F32, (N,)), b.input("cond", dtypes.BOOL, ())
    then, other = b.region("then"), b.region("else")
    a, c = then.input("x", dtypes.F32, (N,)), other.input("x", dtypes.F32, (N,))
    b.symbols["m"] = Range(0, None)
    regions = (then.graph([then.concat([a, a], 0)]), other.graph([c]))
    (out,) = b.emit_all("if", (cond, x), {"shape_symbols": ((0, 0, "m"),)}, regions)
    check(b.graph([b.map("neg", out), out]), rand(6), np.array(flag))


@pytest.mark.parametrize("trip", [0, 1, 5, -3])
def test_loop_carries_scans_and_stops(trip):
    b = builder()
    x = b.input("x", dtypes.F32, (N,))
    count = b.input("count", dtypes.I64, ())
    body = b.region("body")
    i, y, prev = body.input("i", dtypes.I64, ()), body.input("y", dtypes.F32, (N,)), body.input("prev", dtypes.F32, (N,))
    bump = body.map("add", y, body.broadcast_to(body.convert(i, dtypes.F32), (N,)))
    going = body.map("lt", i, body.constant(3, dtypes.I64))
    region = body.graph([going, bump, y, body.map("mul", bump, prev)])
    b.symbols.update({"c": Range(0, None), "turns": Range(0, None)})
    attrs = {"carried": 2, "trip": None, "counter": "c", "always": False, "scans": 1, "scan_extent": dims.symbol("turns")}
    outs = b.emit_all("loop", (count, b.constant(True), x, x), attrs, (region,))
    check(b.graph(outs, ["y", "prev", "scan"]), rand(4), np.array(trip))


def test_a_loop_of_known_length_scans_into_its_output():
    b = builder()
    x = b.input("x", dtypes.F32, (N, 4))
    body = b.region("body")
    i, s, c = body.input("i", dtypes.I64, ()), body.input("s", dtypes.F32, (4,)), body.input("x", dtypes.F32, (N, 4))
    row = body.emit("gather", c, i, axis=0)
    total = body.map("add", s, row)
    region = body.graph([body.constant(True), total, total])
    b.symbols["c"] = Range(0, None)
    attrs = {"carried": 1, "trip": N, "counter": "c", "always": True, "scans": 1, "scan_extent": N}
    outs = b.emit_all("loop", (b.dim(N), b.constant(True), b.constant(np.zeros(4, np.float32)), x), attrs, (region,))
    check(b.graph(outs, ["sum", "all"]), rand(6, 4))


def test_a_carried_value_may_grow():
    b = builder()
    x = b.input("x", dtypes.F32, (N,))
    b.symbols.update({"c": Range(0, None), "m": Range(0, None), "end": Range(0, None)})
    m = dims.symbol("m")
    body = b.region("body")
    body.input("i", dtypes.I64, ())
    y, step = body.input("y", dtypes.F32, (m,)), body.input("x", dtypes.F32, (N,))
    region = body.graph([body.constant(True), body.concat([body.map("neg", y), step], 0)])
    attrs = {"carried": 1, "trip": 4, "counter": "c", "always": True, "scans": 0, "shape_symbols": ((0, 0, "m", "end"),)}
    (out,) = b.emit_all("loop", (b.constant(4), b.constant(True), x, x), attrs, (region,))
    check(b.graph([out, b.map("abs", out)]), rand(3))


def test_an_index_out_of_range_stops_the_run():
    b = builder()
    x, i = b.input("x", dtypes.F32, (N,)), b.input("i", dtypes.I64, (2,))
    b.source = ("Gather_7",)
    graph = b.graph([b.emit("gather", x, i, axis=0)])
    program = lower(graph, TARGET)
    with pytest.raises(ProgramStop) as stop:
        run_program(program, [rand(3), np.array([0, 3])])
    assert stop.value.status is Status.INDEX and stop.value.source == ("Gather_7",)
    with pytest.raises(ExecutionError, match="Gather_7"):
        run_native(graph, rand(3), np.array([0, 3]))


def test_extents_that_do_not_broadcast_stop_the_run():
    b = builder(n=(0, None), m=(0, None))
    x, y = b.input("x", dtypes.F32, (N,)), b.input("y", dtypes.F32, (dims.symbol("m"),))
    graph = b.graph([b.nary("add", x, y)])
    check(graph, rand(4), rand(1))
    check(graph, rand(1), rand(4))
    with pytest.raises(ProgramStop):
        run_program(lower(graph, TARGET), [rand(3), rand(2)])
    with pytest.raises(ExecutionError, match="broadcast"):
        run_native(graph, rand(3), rand(2))


def test_a_fused_kind_without_a_kernel_runs_node_by_node():
    b = builder()
    x = b.input("x", dtypes.F32, (N, 4))
    w = b.constant(np.eye(4, dtype=np.float32))
    region = b.region("body")
    rx, rw = region.input("x", dtypes.F32, (N, 4)), region.input("w", dtypes.F32, (4, 4))
    dot = region.emit("dot_general", rx, rw, batch=((), ()), contract=((1,), (0,)), dtype=dtypes.F32)
    (out,) = b.emit_all("fused", (x, w), {"kind": "nobody knows"}, (region.graph([region.map("neg", dot)]),))
    check(b.graph([out]), rand(5, 4))


def test_the_text_names_calls_and_symbols():
    b = builder()
    x = b.input("x", dtypes.F32, (N,))
    b.source = ("Neg_0",)
    text = print_program(lower(b.graph([b.map("neg", x)], ["y"]), TARGET), kernels=False)
    head, symbol, call = text.splitlines()
    assert (head, symbol) == ("program test(x: f32[n]) -> (y: f32[n])", "  entry symbol n in 0..")
    assert re.fullmatch(r"  call neg_[0-9a-f]{12}\(x, y\) dims \(n\)  ; Neg_0", call)
    assert list(walk(lower(b.graph([b.map("neg", x)]), TARGET).body))


def test_threads_give_the_same_bits():
    b = builder()
    x = b.input("x", dtypes.F32, (N, 1000))
    graph = b.graph([b.reduce("add", b.map("exp", x), (0,)), b.reduce("add", x, (1,)), b.map("tanh", x)])
    x = rand(300, 1000)
    one, three = run_native(graph, x, threads=1), run_native(graph, x, threads=3)
    for name, array in one.items():
        np.testing.assert_array_equal(array, three[name])


def test_one_artifact_takes_all_sizes_in_turn():
    b = builder()
    x = b.input("x", dtypes.F32, (N, 5))
    graph = b.graph([b.map("neg", b.map("abs", b.transpose(b.map("exp", x), (1, 0))))])
    with Executable(artifact(graph)) as exe:
        for n in (3, 0, 40, 1):
            (got,) = exe.run([rand(n, 5)]).values()
            np.testing.assert_allclose(got, -np.exp(rand(n, 5)).T, rtol=1e-6)
