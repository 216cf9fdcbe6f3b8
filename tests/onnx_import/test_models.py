"""What a model may hold besides nodes: inputs, constants, functions, subgraphs; and how problems are reported."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tcompile.errors import InputError, InvalidModelError, UnsupportedError
from tcompile.ir.dims import Range, parse
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import check_model, import_model
from tests.onnx_import.models import model

ADD = "g (float[batch, 3] x, float[batch, d] y) => (float[a, b] z) { z = Add(x, y) }"


# Inputs -----------------------------------------------------------------------------------------------


def test_a_dimension_name_is_one_symbol_for_all_inputs():
    graph = import_model(model(ADD))
    assert graph.inputs[0].shape == (parse("batch"), 3)
    assert graph.inputs[1].shape == (parse("batch"), parse("d"))
    assert graph.symbols["batch"] == Range()


@pytest.mark.parametrize(
    ("entry", "shape", "symbols"),
    [
        ([8, 3], (8, 3), {"d": Range()}),
        (["8", 3], (8, 3), {"d": Range()}),
        (["1..64", 3], (parse("batch"), 3), {"batch": Range(1, 64), "d": Range()}),
        (["2..", 3], (parse("batch"), 3), {"batch": Range(2), "d": Range()}),
        (["rows", 3], (parse("rows"), 3), {"rows": Range(), "d": Range()}),
        (["rows=1..9", 3], (parse("rows"), 3), {"rows": Range(1, 9), "d": Range()}),
    ],
)
def test_shapes_given_for_one_input_hold_for_every_use_of_the_name(entry, shape, symbols):
    graph = import_model(model(ADD), {"x": entry})
    assert graph.inputs[0].shape == shape
    assert graph.inputs[1].shape[0] == shape[0]
    assert graph.symbols == symbols


@pytest.mark.parametrize("shapes", [{"q": [1]}, {"x": [1]}, {"x": ["a b", 3]}, {"x": ["9..1", 3]}, {"x": [2, 3], "y": [4, 3]}])
def test_shapes_that_do_not_fit_the_model_are_refused(shapes):
    with pytest.raises(InputError):
        import_model(model(ADD), shapes)


def test_an_initializer_that_is_also_an_input_is_a_constant():
    proto = model("g (float[2] x, float[2] w) => (float[2] y) { y = Mul(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.float32), "w"))
    graph = import_model(proto)
    assert [value.name for value in graph.inputs] == ["x"]
    assert interpret(graph, [np.ones(2, np.float32)])["y"].tolist() == [2, 3]


def test_outputs_may_repeat_and_may_be_inputs_or_constants():
    proto = model("g (float[2] x) => (float[2] x, float[2] y, float[2] y, float[1] c) { y = Relu(x) c = Constant<value_floats = [4.0]>() }")
    graph = import_model(proto)
    assert graph.output_names == ("x", "y", "y", "c")
    assert interpret(graph, [np.ones(2, np.float32)])["c"].tolist() == [4]


def test_values_are_called_by_their_onnx_names():
    graph = import_model(model('g (float[2] x) => (float[2] y) { "enc/h" = Relu(x) y = Exp("enc/h") }'.replace('"enc/h"', "h")))
    assert [node.output.name for node in graph.nodes if node.op == "map"][-2:] == ["h", "y"]


def test_declared_shapes_of_intermediate_values_are_not_trusted():
    proto = model("g (float[2, 3] x) => (float[9, 9] z) { y = Relu(x) z = Exp(y) }")
    proto.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [7]))
    assert import_model(proto).outputs[0].shape == (2, 3)


# Constants --------------------------------------------------------------------------------------------


def external(location: str, **fields: int) -> onnx.ModelProto:
    proto = model("g (float[2] x) => (float[2] y) { y = Mul(x, w) }")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=str(value))
    proto.graph.initializer.append(tensor)
    return proto


def test_external_data_is_mapped_from_beside_the_model(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"head" + np.array([5, 6], np.float32).tobytes())
    onnx.save(external("w.bin", offset=4), tmp_path / "m.onnx")
    graph = import_model(tmp_path / "m.onnx")
    (constant,) = (node.attrs["value"] for node in graph.nodes if node.op == "constant")
    assert isinstance(constant.base, np.memmap) or isinstance(constant, np.memmap)
    assert interpret(graph, [np.ones(2, np.float32)])["y"].tolist() == [5, 6]


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "missing.bin", ""])
def test_external_data_outside_of_the_folder_or_missing_is_refused(tmp_path, location):
    onnx.save(external(location), tmp_path / "m.onnx")
    with pytest.raises(InvalidModelError, match="w"):
        import_model(tmp_path / "m.onnx")


def test_external_data_that_is_too_short_is_refused(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"1234")
    onnx.save(external("w.bin"), tmp_path / "m.onnx")
    with pytest.raises(InvalidModelError, match="outside"):
        import_model(tmp_path / "m.onnx")


# Functions and subgraphs ------------------------------------------------------------------------------


def test_functions_of_the_model_are_inlined_with_their_attributes():
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21, "mine" : 1]>
        g (float[3] x) => (float[3] y) { y = mine.twice<alpha = 0.5>(x) }
        <domain: "mine", opset_import: ["" : 21]>
        twice<alpha>(a) => (c) { b = LeakyRelu<alpha: float = @alpha>(a) c = LeakyRelu<alpha: float = @alpha>(b) }
    """)
    assert interpret(import_model(proto), [np.array([-4, 0, 4], np.float32)])["y"].tolist() == [-1, 0, 4]


def test_a_function_that_calls_itself_is_refused():
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21, "mine" : 1]>
        g (float[3] x) => (float[3] y) { y = mine.f(x) }
        <domain: "mine", opset_import: ["" : 21, "mine" : 1]>
        f(a) => (c) { c = mine.f(a) }
    """)
    with pytest.raises(InvalidModelError, match="calls itself"):
        import_model(proto)


def test_a_subgraph_sees_outer_values_as_captures_and_outer_constants_as_its_own():
    graph = import_model(
        model("""g (bool c, float[2] x) => (float[2] y) {
            k = Constant<value_floats = [1.0, 2.0]>()
            y = If(c) <then_branch = t () => (float[2] a) { a = Add(x, k) }, else_branch = e () => (float[2] b) { b = Identity(x) }>
        }""")
    )
    (node,) = (node for node in graph.nodes if node.op == "if")
    assert [value.name for value in node.inputs] == ["c", "x"]
    x = np.array([3, 4], np.float32)
    assert interpret(graph, [np.array(True), x])["y"].tolist() == [4, 6]
    assert interpret(graph, [np.array(False), x])["y"].tolist() == [3, 4]


# Problems ---------------------------------------------------------------------------------------------


def test_all_problems_are_reported_at_once_with_node_op_opset_and_dtype():
    proto = model(
        """g (float[2] x) => (float[2] z) {
            [first] a = custom.Foo(x)
            [second] b = Relu(a)
            [third] c = custom.Bar(b)
            [fourth] z = NoSuchOp(x)
        }""",
        imports=', "custom" : 3',
    )
    problems = check_model(proto)
    assert [(p.node, p.domain, p.op, p.opset, p.dtype) for p in problems] == [
        ("first", "custom", "Foo", 3, "f32"),
        ("third", "custom", "Bar", 3, ""),
        ("fourth", "", "NoSuchOp", 21, "f32"),
    ]
    with pytest.raises(UnsupportedError) as error:
        import_model(proto)
    assert all(name in str(error.value) for name in ("first", "third", "fourth", "custom.Bar"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("g (float[2] x) => (float[2] y) { y = Relu(nowhere) }", "nowhere"),
        ("g (float[2] x) => (float[2] y) { y = Relu(x, x) }", "inputs"),
        ("g (float[2] x) => (float[2] y) { y = Relu() }", "inputs"),
        ("g (float[2] x) => (float[2] y) { y = Relu(x) y = Exp(x) }", "twice"),
        ("g (float[2] x) => (float[2] y) { y = Relu(x) }".replace("=> (float[2] y)", "=> (float[2] q)"), "q"),
        ("g (float[2] x, float[3] b) => (float[2] y) { y = Add(x, b) }", "broadcast"),
        ("g (float[2] x, int64[2] b) => (float[2] y) { y = Add(x, b) }", "one element type"),
        ("g (float[2] x) => (float[2] y) { y = Transpose<perm = [1]>(x) }", "permutation"),
        ("g (float[2] x) => (float[2] y) { y = Concat<axis = 4>(x) }", "axis 4"),
        ("g (float[2] x) => (float[2] y) { y = Concat(x) }", "axis"),
        ("g (float[2] x) => (float[2] y) { y = LeakyRelu<alpha = 3>(x) }", "alpha"),
        ("g (float[4] x) => (float[2] y) { s = Constant<value_ints = [3, -1]>() y = Reshape(x, s) }", "reshaped"),
        ("g (float[4] x) => (float[2] y) { s = Constant<value_ints = [-1, -1]>() y = Reshape(x, s) }", "at most one"),
        ("g (float[4] x) => (float[2] y) { s = Constant<value_ints = [1, 0]>() y = Reshape(x, s) }", "does not have"),
    ],
)
def test_models_that_break_the_specification_are_refused_by_name(body, words):
    with pytest.raises(InvalidModelError, match=words):
        import_model(model(body))


def test_what_is_no_model_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\xff\xfe not a model")
    for source in (path, b"", b"garbage"):
        with pytest.raises(InvalidModelError):
            import_model(source)
    with pytest.raises(FileNotFoundError):
        import_model(tmp_path / "absent.onnx")


def test_opsets_that_are_too_new_are_refused_and_old_ones_by_operator():
    with pytest.raises(UnsupportedError, match="newer"):
        import_model(model("g (float[2] x) => (float[2] y) { y = Relu(x) }", opset=10_000))
    assert check_model(model("g (bool[2] x) => (bool[2] y) { y = Not(x) }", opset=1)) == []
    (problem,) = check_model(model("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }", opset=5))
    assert "before opset 6" in problem.reason


# Sequences and optionals ------------------------------------------------------------------------------


def sequence_model() -> onnx.ModelProto:
    return model("g (seq(float[n, 2]) s) => (float[m, 2] y) { y = ConcatFromSequence<axis = 0>(s) }")


def test_a_sequence_input_becomes_one_input_per_element():
    graph = import_model(sequence_model(), {"s": [["a", 2], [3, 2]]})
    assert [value.name for value in graph.inputs] == ["s[0]", "s[1]"]
    assert graph.outputs[0].shape == (parse("a + 3"), 2)


def test_a_sequence_input_of_unknown_length_is_refused_with_a_hint():
    (problem,) = check_model(sequence_model())
    assert "sequence" in problem.reason and "shapes=" in problem.hint


# Malformed models -------------------------------------------------------------------------------------


def test_names_that_are_no_text_are_refused():
    data = model("g (float[2] x) => (float[2] y) { y = Relu(x) }").SerializeToString()
    with pytest.raises(InvalidModelError, match="UTF-8"):
        import_model(data.replace(b"Relu", b"Re\xff\x00"))


@pytest.mark.parametrize("version", (-1, -(2**63), 2**31, 2**62))
def test_opsets_that_are_no_versions_are_refused(version):
    proto = model("g (float[2] x) => (float[2] y) { y = Relu(x) }", imports=', "ai.onnx.ml": 3, "other": 1')
    for entry in proto.opset_import:
        entry.version, kept = version, entry.version
        with pytest.raises((InvalidModelError, UnsupportedError), match=str(version)):
            import_model(proto.SerializeToString())
        entry.version = kept
