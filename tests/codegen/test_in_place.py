"""Results in place of operands: which kernels allow it, and what memory plans make of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcompile.codegen.draft import Scope
from tcompile.codegen.in_place import in_place_pairs, is_copy
from tcompile.codegen.lifetimes import shared
from tcompile.codegen.lower import lower
from tcompile.codegen.lower_node import launches
from tcompile.codegen.memory import plan
from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.interpret import interpret
from tcompile.ir.loops import Access, For, If, Kernel, Load, Op, Param, Store, While, true
from tcompile.ir.loops_interpret import run_kernel
from tcompile.ir.program import Role
from tcompile.ir.program_interpret import run_program
from tcompile.ir.program_parse import parse_program
from tcompile.ir.program_text import print_program, program_buffers, program_kernels
from tests.codegen.lowering import TARGET

N = dims.symbol("n")
AT, J, K = (dims.symbol(name) for name in "ijk")
X, Y = Param("x", dtypes.F32, (N * 4,)), Param("y", dtypes.F32, (N * 4,), Access.OUT)


def load(index, mask=None):
    return Load("x", (index,), dtypes.F32, mask)


def store(index, value, mask=None):
    return Store("y", (index,), value, mask)


def pairs(*body, once=()):
    return in_place_pairs((X, Y), body, {"i", "j"}, once)


def test_the_element_read_is_the_element_written():
    assert pairs(For("i", N, (store(AT, load(AT)),))) == ((0, 1),)


def test_a_neighbour_is_read():
    assert pairs(For("i", N, (store(AT, load(AT + 1)),))) == ()


def test_an_element_is_read_again_later():
    assert pairs(For("i", N, (store(AT, load(AT)),)), For("j", N, (store(J + N, load(J)),)), once=("y",)) == ()


def test_a_row_is_read_before_it_is_written():
    row = (For("j", 4, (Store("acc", (0,), load(AT * 4 + J)),)), For("k", 4, (store(AT * 4 + K, load(AT * 4 + K)),)))
    assert in_place_pairs((X, Y), (For("i", N, row),), {"i", "j", "k"}) == ((0, 1),)
    assert in_place_pairs((X, Y), (For("i", N, row[::-1]),), {"i", "j", "k"}) == ()


def test_a_row_is_read_by_another_row():
    row = (For("j", 4, (store(AT * 4 + J, load((N - 1 - AT) * 4 + J)),)),)
    assert pairs(For("i", N, row)) == ()


def test_elements_written_more_than_once_do_not_count():
    assert in_place_pairs((X, Y), (For("i", N, (store(AT, load(AT)),)),), set()) == ()
    assert in_place_pairs((X, Y), (For("i", N, (store(AT, load(AT)),)),), set(), {"y"}) == ((0, 1),)


def test_a_store_that_may_not_happen_protects_nothing():
    assert pairs(For("i", N, (store(AT, load(AT), true()),))) == ()
    assert pairs(For("i", N, (Store("z", (0,), load(AT)), If(true(), (store(AT, load(AT)),))))) == ()
    assert pairs(For("i", N, (If(true(), (Store("z", (0,), load(AT)),)), store(AT, load(AT))))) == ((0, 1),)


def test_while_loops_are_not_understood():
    assert pairs(For("i", N, (While(true(), (store(AT, load(AT)),)),)), once=("y",)) == ()


def test_types_must_be_the_same():
    other = replace(Y, dtype=dtypes.I32)
    assert in_place_pairs((X, other), (For("i", N, (store(AT, load(AT)),)),), {"i"}) == ()


def test_copies_are_recognised():
    body = (For("i", N, (store(AT, load(AT)),)),)
    assert is_copy(Kernel("k", (X, Y), ("n",), body, ((0, 1),)))
    assert not is_copy(Kernel("k", (X, Y), ("n",), body))
    doubled = (For("i", N, (store(AT, Op("add", (load(AT), load(AT)), dtypes.F32)),)),)
    assert not is_copy(Kernel("k", (X, Y), ("n",), doubled, ((0, 1),)))


# Kernels of nodes ------------------------------------------------------------------------------------------------


def builder():
    made = Builder("test")
    made.symbols["n"] = Range(0, None)
    return made


def kernels(graph):
    return program_kernels(lower(graph, TARGET))


def test_elementwise_results_may_overwrite_operands_of_their_shape():
    b = builder()
    x, z = b.input("x", dtypes.F32, (N, 4)), b.input("z", dtypes.F32, (N, 4))
    (kernel,) = kernels(b.graph([b.map("add", x, z)]))
    assert kernel.aliases == ((0, 2), (1, 2))


def test_broadcasts_may_not():
    b = builder()
    (kernel,) = kernels(b.graph([b.broadcast_to(b.input("x", dtypes.F32, (4,)), (4, 4))]))
    assert kernel.aliases == ()


def test_transposes_may_not():
    b = builder()
    x = b.input("x", dtypes.F32, (N, N))
    (kernel,) = kernels(b.graph([b.emit("transpose", x, perm=(1, 0))]))
    assert kernel.aliases == ()


def test_sums_may_not():
    b = builder()
    x = b.input("x", dtypes.F32, (N, 4))
    (kernel,) = kernels(b.graph([b.emit("reduce", x, fn="add", axes=(1,))]))
    assert kernel.aliases == ()


def test_a_concat_may_begin_where_its_first_operand_lies():
    b = builder()
    x, y = b.input("x", dtypes.F32, (1, N, 4)), b.input("y", dtypes.F32, (1, 1, 4))
    program = lower(b.graph([b.concat([x, y], 1)]), TARGET)
    first, second = program_kernels(program)
    assert first.aliases == ((0, 1),) and is_copy(first) and second.aliases == ()
    assert list(shared(program)) == [(0, 0)]


def test_a_concat_that_moves_rows_may_where_both_have_one_pitch():
    b = builder()
    x, y = b.input("x", dtypes.F32, (2, N, 4)), b.input("y", dtypes.F32, (2, 1, 4))
    program = lower(b.graph([b.concat([x, y], 1)]), TARGET)
    (past, _), (present,) = program.inputs, program.outputs
    assert list(shared(program)) == [(0, 0)]
    assert (past.pitch.axis, present.pitch.axis) == (1, 1) and past.pitch.symbol != present.pitch.symbol
    move, _ = program_kernels(program)
    assert move.aliases == ((0, 1),) and not is_copy(move)  # but where the pitches are equal
    text = print_program(program)
    assert "x: f32[2, n, 4] pitch 1 pitch0" in text and print_program(parse_program(text)) == text
    arrays = rand(2, 5, 4), rand(2, 1, 4)
    (got,) = run_program(program, arrays).values()
    np.testing.assert_array_equal(got, np.concatenate(arrays, 1))


def test_a_concat_behind_another_operand_has_no_pitch():
    b = builder()
    x, y = b.input("x", dtypes.F32, (2, N, 4)), b.input("y", dtypes.F32, (2, 1, 4))
    assert list(shared(lower(b.graph([b.concat([y, x], 1)]), TARGET))) == []
    changed = lower(b.graph([b.concat([b.map("neg", x), y], 1)]), TARGET)
    assert list(shared(changed)) == [(0, 0)] and changed.inputs[0].pitch is None  # x is dead by then


def test_a_scatter_may_update_its_operand():
    b = builder()
    x, i, u = b.input("x", dtypes.F32, (N, 4)), b.input("i", dtypes.I64, (1, 1)), b.input("u", dtypes.F32, (1, 4))
    program = lower(b.graph([b.emit("scatter_nd", x, i, u, combiner="set")]), TARGET)
    assert list(shared(program)) == [(0, 0)]
    assert is_copy(program_kernels(program)[0])


# Programs --------------------------------------------------------------------------------------------------------


def chain(b, fns, x):
    for fn in fns:
        x = b.map(fn, x)
    return x


def run_placed(graph, *arrays):
    """Runs a program on the memory its plan gives it, and on memory of its own; both must give what the graph means."""
    program = lower(graph, TARGET)
    places = plan(program)
    env = dict(zip(program.entry_symbols, [array.shape[0] for array in arrays], strict=False))
    arena = np.full(dims.evaluate(places.arena_bytes, env), 0xA5, np.uint8)
    memory = {}
    for buffer in program_buffers(program):
        if buffer.role is Role.TEMP:
            offset = places.offsets[buffer] if buffer in places.offsets else dims.evaluate(places.slot_start(places.slot_of[buffer]), env)
            size = dims.evaluate(dims.product(buffer.shape), env) * buffer.dtype.bytes
            memory[buffer] = arena[offset : offset + size].view(buffer.dtype.numpy)
    expected = interpret(graph, arrays)
    for name, array in run_program(program, arrays, memory).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5)
    return places.arena_bytes


def rand(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rows", [6, N])
def test_a_chain_of_maps_takes_one_place(rows):
    b = builder()
    x = b.input("x", dtypes.F32, (rows, 64))
    size = run_placed(b.graph([chain(b, ["neg", "abs", "exp", "neg"], x)]), rand(6, 64))
    assert (size if isinstance(size, int) else dims.evaluate(size, {"n": 6})) == 6 * 64 * 4


def test_an_operand_that_is_needed_later_stays():
    b = builder()
    x = b.input("x", dtypes.F32, (6, 64))
    y = b.map("neg", x)
    z = b.map("abs", y)
    assert run_placed(b.graph([b.map("exp", b.map("add", z, y))]), rand(6, 64)) == 2 * 6 * 64 * 4


def test_an_operand_read_twice_in_one_kernel_stays():
    b = builder()
    x = b.input("x", dtypes.F32, (8, 8))
    y = b.map("neg", x)
    flipped = b.emit("transpose", y, perm=(1, 0))
    region = b.region("body")
    a = region.input("a", dtypes.F32, (8, 8))
    out = region.map("sub", a, region.emit("transpose", a, perm=(1, 0)))
    (fused,) = b.emit_all("fused", (y,), {"kind": "map"}, (region.graph([out]),))
    assert flipped.shape == fused.shape
    assert run_placed(b.graph([b.map("abs", fused)]), rand(8, 8)) == 2 * 8 * 8 * 4


def test_views_of_one_buffer_are_one_operand():
    b = builder()
    x = b.input("x", dtypes.F32, (8, 8))
    y = b.map("neg", x)
    view = b.reshape(b.reshape(y, (64,)), (8, 8))
    assert run_placed(b.graph([b.map("abs", b.map("sub", y, view))]), rand(8, 8)) == 8 * 8 * 4


def test_softmax_works_in_place():
    b = builder()
    x = b.input("x", dtypes.F32, (N, 16))
    y = b.map("neg", x)
    region = b.region("body")
    a = region.input("a", dtypes.F32, (N, 16))
    e = region.map("exp", a)
    total = region.broadcast_to(region.reshape(region.emit("reduce", e, fn="add", axes=(1,)), (N, 1)), (N, 16))
    (soft,) = b.emit_all("fused", (y,), {"kind": "rows"}, (region.graph([region.map("div", e, total)]),))
    size = run_placed(b.graph([b.map("abs", soft)]), rand(5, 16))
    assert dims.evaluate(size, {"n": 5}) == 5 * 16 * 4


def test_what_a_loop_reads_in_every_turn_is_not_shared():
    b = builder()
    x = b.input("x", dtypes.F32, (4,))
    body = b.region("body")
    body.input("i", dtypes.I64, ())
    s, c = body.input("s", dtypes.F32, (4,)), body.input("x", dtypes.F32, (4,))
    region = body.graph([body.constant(True), body.map("add", s, c), body.map("neg", c)])
    b.symbols["c"] = Range(0, None)
    attrs = {"carried": 1, "trip": 3, "counter": "c", "always": True, "scans": 1, "scan_extent": 3}
    outs = b.emit_all("loop", (b.constant(3), b.constant(True), b.constant(np.zeros(4, np.float32)), x), attrs, (region,))
    graph = b.graph(outs, ["sum", "all"])
    run_placed(graph, rand(4))
    program = lower(graph, TARGET)
    assert all(program.output_names[k] != "all" for k, _ in shared(program))


def test_an_input_that_is_read_after_the_output_is_written_is_not_shared():
    b = builder()
    x = b.input("x", dtypes.F32, (N, 4))
    y = b.map("neg", x)
    z = b.map("add", x, b.map("exp", y))
    program = lower(b.graph([y, z], ["y", "z"]), TARGET)
    assert list(shared(program)) == [(1, 0)]


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_keep_their_answers_on_shared_memory(seed):
    rng = np.random.default_rng(seed)
    b = builder()
    values = [b.input("x", dtypes.F32, (8, 8)), b.input("y", dtypes.F32, (8, 8))]
    for _ in range(10):
        a, c = (values[k] for k in rng.integers(max(0, len(values) - 4), len(values), 2))
        kind = rng.integers(4)
        if kind == 0:
            values.append(b.map("neg", a))
        elif kind == 1:
            values.append(b.map("add", a, c))
        elif kind == 2:
            values.append(b.emit("transpose", a, perm=(1, 0)))
        else:
            values.append(b.reshape(b.map("max", b.reshape(a, (64,)), b.reshape(c, (64,))), (8, 8)))
    run_placed(b.graph([values[-1], values[-3]]), rand(8, 8), rand(8, 8) + 1)


def test_kernels_give_the_same_on_one_buffer():
    b = builder()
    x, z = b.input("x", dtypes.F32, (N, 40)), b.input("z", dtypes.F32, (N, 40))
    node = b.graph([b.map("sub", x, z)]).nodes[-1]
    (launch,) = launches(node, Scope(b.symbols), TARGET)
    mine, theirs = rand(3, 40).reshape(-1), rand(3, 40).reshape(-1) * 2
    expected = mine - theirs
    arrays = {x: mine, z: theirs, node.output: mine}
    assert run_kernel(launch.kernel, [arrays[value] for value in launch.values], [3]) is None
    np.testing.assert_array_equal(mine, expected)
