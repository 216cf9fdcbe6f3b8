"""Models that Python runs in part: where they are cut, what the host is told, and what comes out of them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import parser

from tcompile.errors import InputError, InvalidModelError, UnsupportedError
from tcompile.ir.graph import Graph
from tcompile.ir.host import HostCall, HostProgram, NativeCall
from tcompile.ir.onnx_host import check_program, import_program
from tcompile.ir.onnx_host_ops import ALWAYS, MOVING, RESOLVED
from tcompile.runtime.host_ops import registered
from tests.onnx_import.hosted import run_program

ML = '"ai.onnx.ml" : 4'


def parsed(body: str, opsets: str = '"" : 21') -> onnx.ModelProto:
    """A model in ONNX's text form."""
    return parser.parse_model(f"<ir_version: 10, opset_import: [{opsets}]> {body}")


def strings(*texts):
    return np.array(texts, object)


def program_of(body: str, opsets: str = '"" : 21') -> HostProgram:
    program = import_program(parsed(body, opsets))
    assert isinstance(program, HostProgram)
    return program


def floats(*values):
    return np.array(values, np.float32)


# Where models are cut -------------------------------------------------------------------------------------------


def test_a_model_of_tensors_is_one_graph():
    assert isinstance(import_program(parsed("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")), Graph)


def test_sequences_that_are_resolved_when_compiling_need_no_host():
    body = """g (float[n, 4] x) => (float[n, 4] y) {
        s = SequenceConstruct(x, x)
        k = Constant <value_int = 1> ()
        y = SequenceAt(s, k)
    }"""
    assert isinstance(import_program(parsed(body)), Graph)


def test_all_that_follows_labels_is_one_segment():
    body = """g (string[n] city, string[n] job, float[n] age) => (float[n] score) {
        a = ai.onnx.ml.LabelEncoder <keys_strings = ["Rome", "Oslo"], values_int64s = [1, 2], default_int64 = 0> (city)
        b = ai.onnx.ml.LabelEncoder <keys_strings = ["cook"], values_int64s = [7]> (job)
        c = Cast <to = 1> (a)
        d = Cast <to = 1> (b)
        old = Exp(age)
        ab = Add(c, d)
        score = Mul(ab, old)
    }"""
    program = program_of(body, f'"" : 21, {ML}')
    assert [type(step) for step in program.block.steps] == [HostCall, HostCall, NativeCall]
    assert program.host_calls() == ["ai.onnx.ml.LabelEncoder (LabelEncoder #0)", "ai.onnx.ml.LabelEncoder (LabelEncoder #1)"]
    given = {"city": strings("Oslo", "Bonn"), "job": strings("cook", "cook"), "age": floats(0, 1)}
    np.testing.assert_allclose(run_program(program, given)["score"], np.exp(floats(0, 1)) * [9, 7], rtol=1e-6)


def test_compiled_code_runs_before_and_after_a_host_op():
    body = """g (int64[n] k) => (float[n] y) {
        two = Constant <value_int = 2> ()
        half = Div(k, two)
        text = Cast <to = 8> (half)
        back = Cast <to = 1> (text)
        y = Neg(back)
    }"""
    program = program_of(body)
    assert [type(step) for step in program.block.steps] == [NativeCall, HostCall, HostCall, NativeCall]
    np.testing.assert_array_equal(run_program(program, {"k": np.array([4, 7, 9])})["y"], floats(-2, -3, -4))


def test_extents_that_inputs_share_keep_their_names_and_ranges_behind_host_ops():
    body = """g (string[n] a, float[n] b) => (float[n] y) {
        c = ai.onnx.ml.LabelEncoder <keys_strings = ["x"], values_floats = [1.0]> (a)
        y = Add(c, b)
    }"""
    program = import_program(parsed(body, f'"" : 21, {ML}'), {"b": ["n=2..9"]})
    (segment,) = program.segments
    assert {str(value.type) for value in segment.inputs} == {"f32[n]"}
    assert (segment.symbols["n"].lo, segment.symbols["n"].hi) == (2, 9)


def test_dead_nodes_make_no_steps():
    body = """g (string[n] a, float[n] b) => (float[n] y) {
        unused = StringConcat(a, a)
        y = Neg(b)
    }"""
    assert program_of(body).host_calls() == []


def test_labels_of_a_classifier_are_looked_up_in_the_end():
    body = """g (float[n, 2] x) => (string[n] label, float[n, 2] scores) {
        label, scores = ai.onnx.ml.LinearClassifier <coefficients = [1.0, 0.0, 0.0, 1.0], intercepts = [0.0, 0.0],
            classlabels_strings = ["cat", "dog"], post_transform = "NONE"> (x)
    }"""
    program = program_of(body, f'"" : 21, {ML}')
    assert program.host_calls() == ["tcompile.Lookup (label)"]
    result = run_program(program, {"x": np.array([[1, 0], [0, 1], [2, 1]], np.float32)})
    assert result["label"].tolist() == ["cat", "dog", "cat"]


def test_sequences_that_the_model_returns_are_lists():
    body = """g (float[6] x) => (seq(float[2]) s) {
        two = Constant <value_int = 2> ()
        s = SplitToSequence <axis = 0> (x, two)
    }"""
    result = run_program(program_of(body), {"x": np.arange(6, dtype=np.float32)})["s"]
    assert [part.tolist() for part in result] == [[0, 1], [2, 3], [4, 5]]


# Sequences, optionals and control flow --------------------------------------------------------------------------


def sequence_model(nodes, inputs, outputs):
    graph = h.make_graph(nodes, "g", inputs, outputs)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)


def sequence_info(name, *shape):
    return h.make_tensor_sequence_value_info(name, T.FLOAT, shape)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_loop_over_a_sequence_whose_length_the_run_knows(count):
    """total = sum over k of relu(s[k]), and the elements doubled in a new sequence."""
    body = h.make_graph(
        [
            h.make_node("SequenceAt", ["s", "k"], ["x"]),
            h.make_node("Relu", ["x"], ["positive"]),
            h.make_node("Add", ["total", "positive"], ["sum"]),
            h.make_node("Add", ["x", "x"], ["twice"]),
            h.make_node("SequenceInsert", ["made", "twice"], ["longer"]),
            h.make_node("Identity", ["go"], ["again"]),
        ],
        "body",
        [h.make_tensor_value_info("k", T.INT64, []), h.make_tensor_value_info("go", T.BOOL, []),
         h.make_tensor_value_info("total", T.FLOAT, [2]), sequence_info("made", 2)],
        [h.make_tensor_value_info("again", T.BOOL, []), h.make_tensor_value_info("sum", T.FLOAT, [2]), sequence_info("longer", 2)],
    )  # fmt: skip
    nodes = [
        h.make_node("SequenceLength", ["s"], ["length"]),
        h.make_node("SequenceEmpty", [], ["none"]),
        h.make_node("Loop", ["length", "", "start", "none"], ["total_out", "doubled"], body=body),
    ]
    model = sequence_model(
        nodes,
        [sequence_info("s", 2), h.make_tensor_value_info("start", T.FLOAT, [2])],
        [h.make_tensor_value_info("total_out", T.FLOAT, [2]), sequence_info("doubled", 2)],
    )
    program = import_program(model)
    assert "Loop (Loop #2)" in program.host_calls()
    elements = [floats(k, -k) for k in range(count)]
    result = run_program(program, {"s": elements, "start": floats(1, 1)})
    np.testing.assert_array_equal(result["total_out"], floats(1 + sum(range(count)), 1))
    assert [item.tolist() for item in result["doubled"]] == [[2 * k, -2 * k] for k in range(count)]


def test_elements_of_a_sequence_that_a_loop_filled_have_a_rank():
    body = h.make_graph(
        [
            h.make_node("SequenceAt", ["s", "k"], ["x"]),
            h.make_node("SequenceInsert", ["made", "x"], ["longer"]),
            h.make_node("Identity", ["go"], ["again"]),
        ],
        "body",
        [h.make_tensor_value_info("k", T.INT64, []), h.make_tensor_value_info("go", T.BOOL, []), sequence_info("made", 2)],
        [h.make_tensor_value_info("again", T.BOOL, []), sequence_info("longer", 2)],
    )
    nodes = [
        h.make_node("SequenceLength", ["s"], ["length"]),
        h.make_node("SequenceEmpty", [], ["none"]),
        h.make_node("Loop", ["length", "", "none"], ["copied"], body=body),
        h.make_node("SequenceAt", ["copied", "first"], ["one"]),
        h.make_node("Softmax", ["one"], ["y"]),
    ]
    inputs = [sequence_info("s", 2), h.make_tensor_value_info("first", T.INT64, [])]
    program = import_program(sequence_model(nodes, inputs, [h.make_tensor_value_info("y", T.FLOAT, [2])]))
    result = run_program(program, {"s": [floats(3, 3), floats(0, 1)], "first": np.array(0)})
    np.testing.assert_allclose(result["y"], [0.5, 0.5])


def test_carried_extents_that_change_from_turn_to_turn():
    """A value that grows by one element a turn, because a sequence makes the loop run on the host."""
    body = h.make_graph(
        [
            h.make_node("Concat", ["x", "x"], ["longer"], axis=0),
            h.make_node("SequenceInsert", ["s", "x"], ["more"]),
            h.make_node("Identity", ["go"], ["again"]),
        ],
        "body",
        [h.make_tensor_value_info("k", T.INT64, []), h.make_tensor_value_info("go", T.BOOL, []),
         h.make_tensor_value_info("x", T.FLOAT, [None]), sequence_info("s", None)],
        [h.make_tensor_value_info("again", T.BOOL, []), h.make_tensor_value_info("longer", T.FLOAT, [None]), sequence_info("more", None)],
    )  # fmt: skip
    nodes = [h.make_node("Loop", ["turns", "", "start", "before"], ["last", "all"], body=body), h.make_node("Neg", ["last"], ["y"])]
    model = sequence_model(
        nodes,
        [h.make_tensor_value_info("turns", T.INT64, []), h.make_tensor_value_info("start", T.FLOAT, [1]), sequence_info("before", None)],
        [h.make_tensor_value_info("y", T.FLOAT, [None]), sequence_info("all", None)],
    )
    result = run_program(import_program(model), {"turns": np.array(3), "start": floats(5), "before": [floats(9, 9)]})
    np.testing.assert_array_equal(result["y"], np.full(8, -5, np.float32))
    assert [len(item) for item in result["all"]] == [2, 1, 2, 4]


@pytest.mark.parametrize("given", [None, floats(1, 2)])
def test_an_optional_that_the_run_may_lack(given):
    then = h.make_graph(
        [h.make_node("OptionalGetElement", ["x"], ["there"])], "then", [], [h.make_tensor_value_info("there", T.FLOAT, [2])]
    )
    zero = h.make_tensor("zero", T.FLOAT, [2], [0.0, 0.0])
    other = h.make_graph(
        [h.make_node("Constant", [], ["zeros"], value=zero)], "else", [], [h.make_tensor_value_info("zeros", T.FLOAT, [2])]
    )
    nodes = [
        h.make_node("OptionalHasElement", ["x"], ["has"]),
        h.make_node("If", ["has"], ["value"], then_branch=then, else_branch=other),
        h.make_node("Exp", ["value"], ["y"]),
    ]
    info = h.make_value_info("x", h.make_optional_type_proto(h.make_tensor_type_proto(T.FLOAT, [2])))
    program = import_program(sequence_model(nodes, [info], [h.make_tensor_value_info("y", T.FLOAT, [2])]))
    result = run_program(program, {"x": given})["y"]
    np.testing.assert_allclose(result, np.exp(floats(0, 0) if given is None else given), rtol=1e-6)


def test_functions_of_the_model_are_cut_too():
    body = """g (string[n] a) => (int64[n] y) { y = local.encode(a) }
    <domain: "local", opset_import: ["" : 21, "ai.onnx.ml" : 4]>
    encode (a) => (y) {
        code = ai.onnx.ml.LabelEncoder <keys_strings = ["x"], values_int64s = [5]> (a)
        y = Neg(code)
    }"""
    program = program_of(body, f'"" : 21, "local" : 1, {ML}')
    assert run_program(program, {"a": strings("x", "z")})["y"].tolist() == [-5, 1]


def test_the_runtime_has_every_host_op_that_the_importer_knows():
    assert registered() == ALWAYS | RESOLVED | MOVING | {("tcompile", "Lookup"), ("tcompile", "Unstack")}


# What is refused ------------------------------------------------------------------------------------------------


def test_an_operator_that_cannot_run_on_strings_is_named():
    problems, _ = check_program(parsed("g (string[n] a) => (float[n] y) { y = Softmax(a) }"))
    assert [problem.op for problem in problems] == ["Softmax"]
    assert "string[n]" in problems[0].reason


def test_an_unsupported_node_beside_host_ops_is_named():
    body = """g (string[n] a, float[n] b) => (string[n] s, float[n] y) {
        s = StringConcat(a, a)
        y = com.example.Unknown(b)
    }"""
    problems, _ = check_program(parsed(body, '"" : 21, "com.example" : 1'))
    assert [problem.op for problem in problems] == ["Unknown"]


def test_a_value_that_nothing_defines_is_named():
    model = parsed("g (string[n] a) => (string[n] s) { s = StringConcat(a, a) }")
    model.graph.node[0].input[1] = "nowhere"
    with pytest.raises(InvalidModelError, match="nowhere"):
        import_program(model)


SAME = "{ z = StringConcat(a, a) }"
BODIES = {
    "SequenceMap": (
        "seq(string[n]) s, string[n] a",
        "seq(string[n]) y",
        f"y = SequenceMap <body = b (string[n] x) => (string[n] z) {SAME}> (s, a)",
    ),
    "Loop": ("string[n] a, int64 k, bool c", "string[n] y", "y = Loop <body = b (int64 i) => (bool d) { d = Not(c) }> (k, c, a)"),
    "If": (
        "string[n] a, bool c",
        "string[n] y",
        f"y = If (c) <then_branch = t () => (string[n] z) {SAME}, else_branch = e () => () {{}}>",
    ),
}


@pytest.mark.parametrize("op", BODIES)
def test_blocks_of_other_values_than_the_node_needs_are_invalid(op):
    inputs, outputs, node = BODIES[op]
    model = parsed(f"g ({inputs}) => ({outputs}) {{ {node} }}")
    with pytest.raises(InvalidModelError, match=rf"{op} #0 .* (needs|and needs) "):
        import_program(model)


def test_attributes_that_an_operators_definition_does_not_take_are_refused():
    attributes = 'kv_num_heads = 7, q_num_heads = 4, update_rule = "delta"'  # 7 does not divide 32
    body = f"""g (float[2, 4, 32] q, float[2, 4, 32] k, float[2, 4, 32] v, float[2, 4, 4] b) => (float[2, 4, 32] y, float[2, 4, 8, 8] s) {{
        y, s = LinearAttention <{attributes}> (q, k, v, "", "", b)
    }}"""
    if onnx.defs.onnx_opset_version() < 27:
        pytest.skip("this onnx has no LinearAttention")
    with pytest.raises(UnsupportedError, match="LinearAttention"):
        import_program(parsed(body, '"" : 27'))


def test_shapes_of_what_is_no_input_are_refused():
    model = parsed("g (string[n] a) => (string[n] s) { s = StringConcat(a, a) }")
    with pytest.raises(InputError, match="no input 'b'"):
        import_program(model, {"b": [3]})


def test_a_rank_that_nothing_tells_is_asked_for():
    info = h.make_value_info("s", h.make_sequence_type_proto(h.make_tensor_type_proto(T.FLOAT, None)))
    nodes = [h.make_node("SequenceAt", ["s", "k"], ["x"]), h.make_node("Softmax", ["x"], ["y"])]
    model = sequence_model(nodes, [info, h.make_tensor_value_info("k", T.INT64, [])], [h.make_tensor_value_info("y", T.FLOAT, None)])
    with pytest.raises(UnsupportedError, match="rank"):
        import_program(model)


def test_a_sequence_of_known_structure_is_resolved_when_compiling():
    nodes = [h.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)]
    model = sequence_model(nodes, [sequence_info("s", None)], [h.make_tensor_value_info("y", T.FLOAT, [None])])
    graph = import_program(model, {"s": [[2], [3]]})
    assert isinstance(graph, Graph)
    assert [value.name for value in graph.inputs] == ["s[0]", "s[1]"]
