"""Loops, scans, branches and sequences against ONNX Runtime: one sentence a case."""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model
from tcompile.ir.verify import verify

onnxruntime = pytest.importorskip("onnxruntime")
HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
X = np.arange(12, dtype=np.float32).reshape(4, 3) / 7

# name -> (text, inputs)
CASES = {
    "a carried value grows by a row each turn": (
        """g (float[n, 3] x, int64 m, bool go) => (float[k, 3] y) {
            y = Loop (m, go, x) <body = b (int64 i, bool c, float[r, 3] v) => (bool again, float[q, 3] w) {
                one = Constant <value_ints = [0]> ()
                row = Gather <axis = 0> (v, one)
                w = Concat <axis = 0> (v, row)
                again = Identity (c)
            }>
        }""",
        {"x": X, "m": np.array(3), "go": np.array(True)},
    ),
    "a condition on the data ends the loop, and the scan has as many rows as turns": (
        """g (float[n, 3] x) => (float s, float[k] y) {
            start = Constant <value_float = 0.0> ()
            yes = Constant <value = bool {1}> ()
            s, y = Loop (, yes, start) <body = b (int64 i, bool c, float v) => (bool again, float w, float e) {
                total = ReduceSum <keepdims = 0> (x)
                w = Add (v, total)
                e = Identity (w)
                limit = Constant <value_float = 50.0> ()
                again = Less (w, limit)
            }>
        }""",
        {"x": X},
    ),
    "branches give unlike extents": (
        """g (float[n, 3] x, bool c) => (float[k, 3] y) {
            y = If (c) <
                then_branch = t () => (float[a, 3] p) { p = Concat <axis = 0> (x, x) },
                else_branch = e () => (float[b, 3] q) { q = Neg (x) }
            >
        }""",
        {"x": X, "c": np.array(True)},
    ),
    "a branch inside of a loop reads values of both scopes around it": (
        """g (float[n, 3] x, int64 m) => (float[n, 3] y) {
            zero = Constant <value_float = 0.0> ()
            bound = Add (x, zero)
            yes = Constant <value = bool {1}> ()
            y = Loop (m, yes, x) <body = b (int64 i, bool c, float[n, 3] v) => (bool again, float[n, 3] w) {
                two = Constant <value = int64 {2}> ()
                odd = Mod (i, two)
                cond = Cast <to = 9> (odd)
                w = If (cond) <
                    then_branch = t () => (float[n, 3] p) { p = Add (v, bound) },
                    else_branch = e () => (float[n, 3] q) { q = Sub (v, x) }
                >
                again = Identity (c)
            }>
        }""",
        {"x": X, "m": np.array(5)},
    ),
    "a scan reads one axis backwards, and writes its stack to the last axis in reverse": (
        """g (float[3] h, float[n, 3] x, float[3, n] z) => (float[3] f, float[3, n] y) {
            f, y = Scan <num_scan_inputs = 2, scan_input_axes = [0, 1], scan_input_directions = [1, 0],
                         scan_output_axes = [1], scan_output_directions = [1],
                         body = b (float[3] s, float[3] a, float[3] c) => (float[3] t, float[3] o) {
                half = Constant <value_float = 0.5> ()
                u = Mul (s, half)
                v = Add (u, a)
                t = Sub (v, c)
                o = Tanh (t)
            }> (h, x, z)
        }""",
        {"h": X[0], "x": X, "z": X.T.copy() * 2},
    ),
    "a loop appends to a sequence, which is joined afterwards": (
        """g (float[n, 3] x, int64 m) => (float[k, 3] y, int64 count) {
            none = SequenceEmpty ()
            yes = Constant <value = bool {1}> ()
            all = Loop (m, yes, none) <body = b (int64 i, bool c, seq(float[n, 3]) s) => (bool again, seq(float[n, 3]) t) {
                f = Cast <to = 1> (i)
                e = Mul (x, f)
                t = SequenceInsert (s, e)
                again = Identity (c)
            }>
            y = ConcatFromSequence <axis = 0> (all)
            count = SequenceLength (all)
        }""",
        {"x": X, "m": np.array(4)},
    ),
    "a counter with its own condition picks rows": (
        """g (float[n, 3] x) => (float[k, 3] y) {
            start = Constant <value = int64 {0}> ()
            yes = Constant <value = bool {1}> ()
            last, y = Loop (, yes, start) <body = b (int64 i, bool c, int64 k) => (bool again, int64 l, float[3] row) {
                row = Gather <axis = 0> (x, k)
                two = Constant <value = int64 {2}> ()
                l = Add (k, two)
                three = Constant <value = int64 {3}> ()
                again = Less (l, three)
            }>
        }""",
        {"x": X},
    ),
    "the body alone knows the extent of what it scans": (
        """g (float[n, 3] x, int64[1] m, int64 turns) => (float[t, k, 3] y) {
            yes = Constant <value = bool {1}> ()
            y = Loop (turns, yes) <body = b (int64 i, bool c) => (bool again, float[r, 3] e) {
                zero = Constant <value_ints = [0]> ()
                e = Slice (x, zero, m)
                again = Identity (c)
            }>
        }""",
        {"x": X, "m": np.array([2]), "turns": np.array(3)},
    ),
    "no turns give the carried values back": (
        """g (float[n, 3] x, int64 m) => (float[n, 3] y, float[t, 3] s) {
            yes = Constant <value = bool {1}> ()
            y, s = Loop (m, yes, x) <body = b (int64 i, bool c, float[n, 3] v) => (bool again, float[n, 3] w, float[3] e) {
                w = Neg (v)
                axis = Constant <value_ints = [0]> ()
                e = ReduceSum <keepdims = 0> (v, axis)
                again = Identity (c)
            }>
        }""",
        {"x": X, "m": np.array(0)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_onnxruntime(name):
    text, feeds = CASES[name]
    model = onnx.parser.parse_model(HEAD + text)
    graph = import_model(model)
    verify(graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = session.run(None, feeds)
    got = interpret(graph, {value.name: feeds[value.name] for value in graph.inputs})
    for (output, ours), theirs in zip(got.items(), wanted, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), output
        np.testing.assert_allclose(ours, theirs, 1e-5, 1e-6, err_msg=output)


def test_a_known_condition_leaves_no_branch():
    text = """g (float[n] x) => (float[n] y) {
        c = Constant <value = bool {1}> ()
        y = If (c) < then_branch = t () => (float[n] p) { p = Neg (x) }, else_branch = e () => (float[n] q) { q = Abs (x) } >
    }"""
    graph = import_model(onnx.parser.parse_model(HEAD + text))
    assert [node.op for node in graph.nodes] == ["map"]


def test_a_counted_loop_has_a_known_number_of_turns():
    text, _ = CASES["a counter with its own condition picks rows"]
    graph = import_model(onnx.parser.parse_model(HEAD + text))
    (loop,) = (node for node in graph.nodes if node.op == "loop")
    assert (loop.attrs["trip"], loop.attrs["always"], loop.attrs["carried"]) == (2, True, 0)


@pytest.mark.parametrize("constant", (False, True))
@pytest.mark.parametrize("backwards", (0, 1))
def test_scans_of_sequences_of_unlike_lengths(backwards, constant):
    """Scan of opset 8 with sequence_lens: shorter entries end early, and give zeros behind."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "row"], ["next"]), helper.make_node("Identity", ["next"], ["seen"])],
        "body",
        [info("state", TensorProto.FLOAT, [2]), info("row", TensorProto.FLOAT, [2])],
        [info("next", TensorProto.FLOAT, [2]), info("seen", TensorProto.FLOAT, [2])],
    )
    node = helper.make_node("Scan", ["lengths", "start", "x"], ["last", "y"], body=body, num_scan_inputs=1, directions=[backwards])
    lengths = np.array([4, 1, 2])
    rng = np.random.default_rng(2)
    feeds = {"start": rng.random((3, 2), np.float32), "x": rng.random((3, 4, 2), np.float32)} | ({} if constant else {"lengths": lengths})
    inputs = [info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for name, array in feeds.items()]
    outputs = [info("last", TensorProto.FLOAT, [3, 2]), info("y", TensorProto.FLOAT, [3, 4, 2])]
    initial = [onnx.numpy_helper.from_array(lengths, "lengths")] if constant else []
    graph = helper.make_graph([node], "scan", inputs, outputs, initial)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=4)
    expected = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    for got, wanted in zip(interpret(import_model(proto), feeds).values(), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
