"""Independent loops become concurrent blocks, their memory is apart, and what fails first in program order is what is reported."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import tcompile
from tcompile.codegen.concurrent import concurrent_loops
from tcompile.codegen.lower import lower
from tcompile.codegen.memory import plan
from tcompile.errors import ExecutionError, InvalidModelError
from tcompile.ir.dims import evaluate
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model
from tcompile.ir.program import Call, Concurrent, Copy, Loop, Role
from tcompile.ir.program_interpret import run_program
from tcompile.ir.program_parse import parse_program
from tcompile.ir.program_text import buffers_of, print_program, walk
from tcompile.ir.program_verify import verify_program
from tcompile.pipeline import compile_artifact, optimise
from tests.codegen.lowering import TARGET

HIDDEN, INPUT = 12, 5


def bidirectional(op="LSTM", batch="batch", time="time", hidden=HIDDEN, layers=1, **attrs):
    """Layers of a recurrence in both directions over x [time, batch, INPUT]."""
    rng = np.random.default_rng(1)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    nodes, constants, width, source = [], [], INPUT, "x"
    for k in range(layers):
        for name, shape in (("w", (2, gates * hidden, width)), ("r", (2, gates * hidden, hidden)), ("b", (2, 2 * gates * hidden))):
            constants.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) * 0.3, f"{name}{k}"))
        states = [f"y{k}", f"h{k}", *([f"c{k}"] if op == "LSTM" else [])]
        kept = {"hidden_size": hidden, "direction": "bidirectional", **attrs}
        nodes.append(helper.make_node(op, [source, f"w{k}", f"r{k}", f"b{k}"], states, f"{op.lower()}{k}", **kept))
        nodes.append(helper.make_node("Transpose", [f"y{k}"], [f"t{k}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"t{k}", "flat"], [f"f{k}"]))
        source, width = f"f{k}", 2 * hidden
    constants.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), "flat"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [time, batch, INPUT])
    outputs = [helper.make_empty_tensor_value_info(name) for name in (source, f"h{layers - 1}")]
    graph = helper.make_graph(nodes, "both", [x], outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def program_of(model):
    program = concurrent_loops(lower(optimise(import_model(model), TARGET), TARGET))
    verify_program(program)
    return program


def groups(program):
    return [i for i in walk(program.body) if isinstance(i, Concurrent)]


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("sizes", [("batch", "time"), (3, "time"), (2, 7)])
def test_the_directions_of_each_layer_are_a_group(op, sizes):
    """Each with its own product of the inputs, which nothing else reads."""
    found = groups(program_of(bidirectional(op, *sizes, layers=2)))
    assert [len(group.branches) for group in found] == [2, 2]
    for group in found:
        for branch in group.branches:
            assert isinstance(branch[-1], Loop) and any(isinstance(i, Call) and i.kernel.name.startswith("gemm") for i in branch[:-1])


@pytest.mark.parametrize("sizes", [("batch", "time"), (2, 7)])
def test_grouped_programs_mean_the_same(sizes):
    model = bidirectional("GRU", *sizes, layers=2)
    plain = lower(optimise(import_model(model), TARGET), TARGET)
    x = np.random.default_rng(2).standard_normal((7, 2, INPUT)).astype(np.float32)
    expected, got = run_program(plain, [x]), run_program(program_of(model), [x])
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


def test_groups_print_and_parse_back():
    program = program_of(bidirectional())
    text = print_program(program)
    weights = {b.name: b.value for i in walk(program.body) for b in buffers_of(i) if b.role is Role.WEIGHT}
    again = parse_program(text, weights)
    assert print_program(again) == text and len(groups(again)) == 1
    verify_program(again)


def test_the_verifier_refuses_blocks_that_depend_on_each_other():
    text = """\
program p(x: f32[n]) -> (y: f32[n], z: f32[n])
  entry symbol n in 0..
  symbol t in 0..
  symbol u in 0..
  concurrent
    loop t < 3
      copy y = x (n)
  and
    loop u < 3
      copy z = {source} (n)
"""
    verify_program(parse_program(text.format(source="x")))
    with pytest.raises(InvalidModelError, match="concurrent blocks that depend on each other"):
        verify_program(parse_program(text.format(source="y")))


@pytest.mark.parametrize("sizes", [("batch", "time"), (3, 11)])
def test_blocks_share_no_byte_of_the_arena(sizes):
    program = program_of(bidirectional("LSTM", *sizes, layers=2))
    places = plan(program)
    values = {"batch": 3, "time": 11}
    for group in groups(program):
        spans = []
        for branch in group.branches:
            written = {i.target for i in walk(branch) if isinstance(i, Copy)}
            written |= {b for i in walk(branch) if isinstance(i, Call) for b in i.buffers}
            own = [b for b in written if b.role is Role.TEMP]
            starts = [places.offsets[b] if b in places.offsets else places.slot_start(places.slot_of[b]) for b in own]
            sizes_of = [evaluate(np.prod(np.array(b.shape, object)) * b.dtype.bytes, values) for b in own]
            spans.append({(evaluate(start, values), size, b) for start, size, b in zip(starts, sizes_of, own, strict=True)})
        for start, size, one in spans[0]:
            for other, length, two in spans[1]:
                assert one is two or start + size <= other or other + length <= start, (one.name, two.name)


def loops(first="Mul(a, s)", second="Mul(a, s)", trips=("n", "n")):
    """Two ONNX Loops over one carried vector each."""
    body = "(int64 i, bool c, float[8] a) => (bool d, float[8] b) {{ d = Identity(c) b = {} }}"
    return f"""<ir_version: 8, opset_import: ["" : 17]>
    two (float[8] x, float[8] s, int64 n, int64 m) => (float[8] y, float[8] z) {{
      yes = Constant<value = bool {{1}}> ()
      y = Loop<body = one {body.format(first)}> ({trips[0]}, yes, x)
      z = Loop<body = two {body.format(second)}> ({trips[1]}, yes, s)
    }}"""


def test_loops_of_other_turns_or_work_stay_in_turn():
    assert not groups(program_of(parser.parse_model(loops(trips=("n", "m")))))
    assert not groups(program_of(parser.parse_model(loops(second="Tanh(a)"))))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_first_failure_in_program_order_is_reported(threads):
    """Both loops read out of range, the second in an earlier turn."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    two (float[8] x, int64[6] p, int64[6] q) => (float[6] y, float[6] z) {
      y = Scan<body = one (int64 i) => (float a) { a = Gather(x, i) }, num_scan_inputs = 1> (p)
      z = Scan<body = two (int64 j) => (float b) { b = Gather(x, j) }, num_scan_inputs = 1> (q)
    }"""
    model = parser.parse_model(text)
    for node, name in zip(model.graph.node, ("first", "second"), strict=True):
        node.attribute[0].g.node[0].name = name
    assert groups(program_of(model))
    exe = tcompile.compile(model.SerializeToString(), threads=threads)
    good = np.arange(6)
    x = np.arange(8, dtype=np.float32)
    for p, q, name in ((6, 2, "first"), (0, 2, "second"), (6, 0, "first")):
        bad = [good + np.where(good >= 6 - k, 8, 0) for k in (p, q)]
        with pytest.raises(ExecutionError, match=name):
            exe.run({"x": x, "p": bad[0], "q": bad[1]})
        got = exe.run({"x": x, "p": good, "q": good})
        np.testing.assert_array_equal(got["z"], x[:6])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_profiles_count_the_calls_of_all_blocks(threads):
    exe = tcompile.compile(bidirectional(), threads=threads)
    found = exe.profile({"x": np.zeros((9, 2, INPUT), np.float32)}, runs=2).calls
    steps = [call for call in found if call.turns == 9]
    assert len(steps) >= 4 and all(call.seconds > 0 for call in steps)
    assert sum(call.kernel == steps[0].kernel for call in steps) in (1, 2)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("sizes", [("batch", "time"), (2, 9)])
def test_blocks_have_the_same_bits_at_any_thread_count(op, sizes):
    artifact = compile_artifact(bidirectional(op, *sizes, hidden=40, layers=2))
    fixed = sizes == (2, 9)
    for time, batch in ((9, 2),) if fixed else ((0, 2), (1, 1), (9, 2), (5, 33), (3, 0)):
        x = np.random.default_rng(3).standard_normal((time, batch, INPUT)).astype(np.float32)
        one, *others = (tcompile.load(artifact, threads=threads).run([x]) for threads in (1, 2, 3, 5))
        for other in others:
            for name, array in one.items():
                np.testing.assert_array_equal(other[name], array)


def nested():
    """An ONNX Loop whose body runs a recurrence in both directions, over what the turn before made."""
    rng = np.random.default_rng(4)
    weights = {"w0": (2, 3 * INPUT, INPUT), "r0": (2, 3 * INPUT, INPUT), "b0": (2, 6 * INPUT)}
    constants = [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) * 0.3, name) for name, shape in weights.items()]
    body = helper.make_graph(
        [
            helper.make_node("GRU", ["a", "w0", "r0", "b0"], ["y"], "both", hidden_size=INPUT, direction="bidirectional"),
            helper.make_node("ReduceSum", ["y", "one"], ["b"], keepdims=0),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["time", 2, INPUT]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, ["time", 2, INPUT]),
        ],
    )
    constants += [numpy_helper.from_array(np.array(3, np.int64), "turns"), numpy_helper.from_array(np.array([1], np.int64), "one")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", 2, INPUT])
    loop = helper.make_node("Loop", ["turns", "", "x"], ["z"], "outer", body=body)
    graph = helper.make_graph([loop], "nested", [x], [helper.make_empty_tensor_value_info("z")], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_groups_inside_loops_run_each_turn():
    model = nested()
    assert len(groups(program_of(model))) == 1
    x = np.random.default_rng(5).standard_normal((6, 2, INPUT)).astype(np.float32)
    (expected,) = interpret(import_model(model), [x]).values()
    for threads in (1, 2, 3):
        np.testing.assert_allclose(tcompile.compile(model, threads=threads).run([x])["z"], expected, 1e-4, 1e-5)


@pytest.mark.parametrize("threads", [2, 3])
def test_runs_of_concurrent_loops_can_be_cancelled(threads):
    exe = tcompile.compile(bidirectional("LSTM", 1, "time"), threads=threads)
    long, short = (np.zeros((time, 1, INPUT), np.float32) for time in (400_000, 4))
    expected = exe.run([short])
    outcome = []

    def work():
        try:
            exe.run([long])
        except ExecutionError as error:
            outcome.append(str(error))

    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():
        exe.cancel()
        worker.join(0.01)
    assert outcome and outcome[0].startswith("cancelled")
    for name, array in exe.run([short]).items():
        np.testing.assert_array_equal(array, expected[name])
