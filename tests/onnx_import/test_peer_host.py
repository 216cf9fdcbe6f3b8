"""Host ops against ONNX Runtime."""

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from tcompile.ir.host import HostProgram
from tcompile.ir.onnx_host import import_program
from tests.onnx_import.hosted import run_program

onnxruntime = pytest.importorskip("onnxruntime")
ML, MICROSOFT = "ai.onnx.ml", "com.microsoft"
OPSETS = [h.make_opsetid("", 20), h.make_opsetid(ML, 3), h.make_opsetid(MICROSOFT, 1)]


def texts(*items):
    return np.array(items, object)


WORDS = texts("the quick  brown fox", "", "a.b.c", "Straße ÄÖ", "x", "the the the")
GRID = np.array([["b", "a", "c"], ["d", "b", "b"]], object)


def number_of(array):
    return T.STRING if array.dtype == object else h.np_dtype_to_tensor_dtype(array.dtype)


def check(op, *operands, domain="", outputs=1, axes=(), **attributes):
    """One node on arrays; ``axes`` of the first operand are symbolic. Strings must be equal, numbers close."""
    names = [f"x{k}" for k in range(len(operands))]
    infos = []
    for k, (name, array) in enumerate(zip(names, operands, strict=True)):
        shape = [f"n{axis}" if k == 0 and axis in axes else extent for axis, extent in enumerate(array.shape)]
        infos.append(h.make_tensor_value_info(name, number_of(array), shape))
    results = [f"y{k}" for k in range(outputs)]
    node = h.make_node(op, names, results, domain=domain, **attributes)
    graph = h.make_graph([node], "g", infos, [h.make_empty_tensor_value_info(name) for name in results])
    model = h.make_model(graph, opset_imports=OPSETS, ir_version=10)
    given = dict(zip(names, operands, strict=True))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    program = import_program(model)
    assert isinstance(program, HostProgram)
    for (name, got), wanted in zip(run_program(program, given).items(), session.run(None, given), strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape, (name, got, wanted)
        if got.dtype == object:
            assert got.tolist() == wanted.tolist()
        else:
            np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("attributes", [{}, {"delimiter": "."}, {"delimiter": " "}, {"maxsplit": 1}, {"delimiter": "the", "maxsplit": 2}])
def test_splitting(attributes):
    # ONNX Runtime counts no part in an empty string, where ONNX's reference counts one
    words = WORDS if not attributes.get("delimiter") else WORDS[WORDS != ""]
    check("StringSplit", words, outputs=2, axes=(0,), **attributes)


@pytest.mark.parametrize("pattern", ["", "x", r"[a-z .]*", r"(?i)THE.*", r".*\s\pL+", r"\w+"])
def test_matching(pattern):
    check("RegexFullMatch", WORDS, pattern=pattern)


def test_joining():
    check("StringConcat", GRID, texts("x", "", "zz"))


@pytest.mark.parametrize("change", ["NONE", "LOWER", "UPPER"])
@pytest.mark.parametrize("sensitive", [0, 1])
def test_normalizing(change, sensitive):
    stops = {"stopwords": ["B", "x"], "is_case_sensitive": sensitive, "case_change_action": change, "locale": "C"}
    check("StringNormalizer", texts("b", "Bc", "x", "B"), **stops)
    check("StringNormalizer", texts("b", "Bc").reshape(1, 2), **stops)


@pytest.mark.parametrize(
    "attributes",
    [
        {"separators": [" "], "mark": 0},
        {"separators": [" ", r"\."], "mark": 1},
        {"tokenexp": "[a-zA-Z]+", "mark": 0},
        {"tokenexp": "[a-z]", "mark": 1},
    ],
)
@pytest.mark.parametrize("shortest", [1, 2])
def test_tokens(attributes, shortest):
    words = texts("the quick brown", "a.bb.c", "x yy")
    check("Tokenizer", words, domain=MICROSOFT, pad_value="#", mincharnum=shortest, axes=(0,), **attributes)


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize("skips", [0, 2])
def test_grams(mode, skips):
    pool = {
        "pool_strings": ["b", "a", "b", "b", "a", "b"],
        "ngram_counts": [0, 2],
        "ngram_indexes": [3, 0, 1, 2],
        "weights": [1.0, 2.0, 0.5, 3.0],
    }
    check("TfIdfVectorizer", GRID, mode=mode, min_gram_length=1, max_gram_length=2, max_skip_count=skips, **pool)


@pytest.mark.parametrize(
    "values",
    [
        {"values_int64s": [3, 4], "default_int64": -9},
        {"values_floats": [0.5, 4.0]},
        {"values_strings": ["one", "two"], "default_string": "?"},
    ],
)
def test_labels(values):
    check("LabelEncoder", GRID, domain=ML, keys_strings=["a", "b"], **values)


def test_one_hot():
    check("OneHotEncoder", GRID, domain=ML, cats_strings=["b", "q", "a"], zeros=1)


def test_categories():
    check("CategoryMapper", GRID, domain=ML, cats_strings=["b", "q", "a"], cats_int64s=[7, 8, 9], default_int64=-4)


@pytest.mark.parametrize(
    ("op", "operands", "attributes"),
    [
        ("Gather", [np.array([1, -1])], {"axis": 1}),
        ("GatherND", [np.array([[1, 2], [0, 0]])], {}),
        ("Reshape", [np.array([3, -1])], {}),
        ("Transpose", [], {"perm": [1, 0]}),
        ("Slice", [np.array([-1]), np.array([-99]), np.array([1]), np.array([-2])], {}),
        ("Concat", [GRID], {"axis": 0}),
        ("Expand", [np.array([2, 1, 1])], {}),
        ("Tile", [np.array([1, 2])], {}),
        ("Unsqueeze", [np.array([0])], {}),
        ("Equal", [texts("b", "b", "b")], {}),
        ("Shape", [], {}),
        ("Size", [], {}),
        ("Flatten", [], {"axis": 1}),
        ("ScatterElements", [np.array([[0, 1, 0]]), texts("p", "q", "r").reshape(1, 3)], {}),
    ],
)
def test_moving(op, operands, attributes):
    check(op, GRID, *operands, axes=(0,) if op not in ("Equal", "Concat", "Expand") else (), **attributes)


@pytest.mark.parametrize("in_order", [0, 1])
def test_unique(in_order):
    check("Unique", GRID, outputs=4, sorted=in_order)


def test_reading_numbers():
    check("Cast", texts("1.5", "-2e3", "0"), to=T.FLOAT)
    check("Cast", texts("15", "-2", "0"), to=T.INT64)
    check("Cast", np.array([[1, -20]]), to=T.STRING)
