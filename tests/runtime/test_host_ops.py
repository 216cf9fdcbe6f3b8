"""Host ops by themselves: what ONNX's documents say of them, and where they fail."""

import io

import numpy as np
import pytest

from tcompile.errors import ArtifactError, InputError
from tcompile.runtime.host_ops import HostNode, implementation, strings

ML = "ai.onnx.ml"


def run(op, *inputs, domain="", opset=21, results=1, **attributes):
    return implementation(domain, op)(list(inputs), HostNode(opset, results, attributes))


def texts(*items):
    return np.array(items, object)


@pytest.mark.parametrize(
    "value", [["a", "é"], np.array(["a", "é"]), np.array([b"a", "é".encode()]), np.array([b"a", "é"], object), texts("a", "é")]
)
def test_strings_of_all_kinds_become_objects(value):
    array = strings(value)
    assert array.dtype == object and array.tolist() == ["a", "é"]


def test_what_is_no_string_is_refused():
    with pytest.raises(InputError, match="float"):
        strings(texts("a", 1.5))
    with pytest.raises(InputError, match="int64"):
        strings(np.arange(2))


def test_an_unknown_host_op_is_named():
    with pytest.raises(ArtifactError, match=r"org\.other\.Shout"):
        implementation("org.other", "Shout")


# Sequences ------------------------------------------------------------------------------------------------------


def test_sequences_are_changed_in_copies():
    before = [np.array(1), np.array(2)]
    assert [int(x) for x in run("SequenceInsert", before, np.array(9), np.array(-1))] == [1, 9, 2]
    assert [int(x) for x in run("SequenceInsert", before, np.array(9))] == [1, 2, 9]
    assert [int(x) for x in run("SequenceErase", before)] == [1]
    assert [int(x) for x in run("SequenceErase", before, np.array(0))] == [2]
    assert len(before) == 2


@pytest.mark.parametrize("position", [2, -3])
def test_positions_outside_of_a_sequence_fail(position):
    with pytest.raises(IndexError, match=str(position)):
        run("SequenceAt", [np.array(1), np.array(2)], np.array(position))


@pytest.mark.parametrize(
    ("sizes", "attributes", "shapes"),
    [
        (None, {}, [(1, 2)] * 5),
        (None, {"keepdims": 0}, [(2,)] * 5),
        (None, {"keepdims": 0, "axis": 1}, [(5,)] * 2),
        (np.array(2), {}, [(2, 2), (2, 2), (1, 2)]),
        (np.array([1, 4]), {}, [(1, 2), (4, 2)]),
        (np.array(5), {}, [(5, 2)]),
    ],
)
def test_splitting(sizes, attributes, shapes):
    x = np.arange(10).reshape(5, 2)
    pieces = run("SplitToSequence", x, *([] if sizes is None else [sizes]), **attributes)
    assert [piece.shape for piece in pieces] == shapes
    np.testing.assert_array_equal(np.concatenate([piece.reshape(-1) for piece in pieces]), (x.T if "axis" in attributes else x).reshape(-1))


def test_sizes_that_do_not_fit_fail():
    with pytest.raises(ValueError, match="5"):
        run("SplitToSequence", np.arange(5), np.array([1, 3]))


def test_optionals():
    assert run("OptionalHasElement", None) == np.array(False)
    assert run("OptionalHasElement", [np.array(1)]) == np.array(True)
    assert not run("OptionalHasElement")
    with pytest.raises(ValueError, match="empty"):
        run("OptionalGetElement", None)


# Strings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["Das", "der", "ROT"]),
        ({"stopwords": ["DER"]}, ["Das", "ROT"]),
        ({"stopwords": ["DER"], "is_case_sensitive": 1}, ["Das", "der", "ROT"]),
        ({"stopwords": ["der"], "is_case_sensitive": 1, "case_change_action": "UPPER"}, ["DAS", "ROT"]),
        ({"case_change_action": "LOWER"}, ["das", "der", "rot"]),
        ({"stopwords": ["das", "der", "rot"]}, [""]),
    ],
)
def test_normalizing(given, expected):
    assert run("StringNormalizer", texts("Das", "der", "ROT"), **given).tolist() == expected
    assert run("StringNormalizer", texts("Das", "der", "ROT").reshape(1, 3), **given).tolist() == [expected]


def test_splitting_strings():
    pieces, counts = run("StringSplit", texts("a.b", "", "c"), delimiter=".")
    assert pieces.tolist() == [["a", "b"], ["", ""], ["c", ""]] and counts.tolist() == [2, 1, 1]
    pieces, counts = run("StringSplit", texts("  a  b ", ""))
    assert pieces.tolist() == [["a", "b"], ["", ""]] and counts.tolist() == [2, 0]
    pieces, counts = run("StringSplit", np.empty((0, 3), object), delimiter=".")
    assert pieces.shape == (0, 3, 0) and counts.shape == (0, 3)


def test_expressions_match_whole_strings():
    assert run("RegexFullMatch", texts("ab", "abc", ""), pattern="a.?").tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.1), "0.1"), (np.float64(1e-30), "1e-30"), (np.float32("nan"), "NaN"), (np.float32("-inf"), "-INF"),
        (np.int64(-7), "-7"), (np.uint8(200), "200"),
    ],
)  # fmt: skip
def test_numbers_become_text_and_come_back(value, text):
    made = run("Cast", np.array([value]), to=8)
    assert made.tolist() == [text]
    number = {"float32": 1, "float64": 11, "int64": 7, "uint8": 2}[value.dtype.name]
    np.testing.assert_array_equal(run("Cast", made, to=number), np.array([value]))


def test_text_becomes_the_type_of_another_tensor():
    assert run("CastLike", texts("1.5", "INF"), np.zeros(1, np.float16)).dtype == np.float16
    assert run("CastLike", np.array([3]), texts("x")).tolist() == ["3"]


def test_tokens():
    made = run("Tokenizer", texts("a b,c", "dd"), domain="com.microsoft", separators=[" ", ","], mark=0, mincharnum=1, pad_value="#")
    assert made.tolist() == [["a", "b", "c"], ["dd", "#", "#"]]
    made = run("Tokenizer", texts("x1 yy2"), domain="com.microsoft", tokenexp="[a-z]+", mark=1, mincharnum=2, pad_value="#")
    assert made.tolist() == [["\x02", "yy", "\x03"]]


# Moves ----------------------------------------------------------------------------------------------------------

GRID = np.array([["a", "b", "c"], ["d", "e", "f"]], object)


@pytest.mark.parametrize(
    ("op", "operands", "attributes", "expected"),
    [
        ("Reshape", [np.array([0, -1])], {}, GRID),
        ("Reshape", [np.array([3, 2])], {}, GRID.reshape(3, 2)),
        ("Transpose", [], {}, GRID.T),
        ("Flatten", [], {"axis": 0}, GRID.reshape(1, 6)),
        ("Slice", [np.array([2]), np.array([-9]), np.array([1]), np.array([-1])], {}, GRID[:, ::-1]),
        ("Slice", [np.array([1]), np.array([9])], {}, GRID[1:]),
        ("Gather", [np.array(-1)], {"axis": 1}, GRID[:, 2]),
        ("GatherElements", [np.array([[0, 1, 0]])], {}, np.array([["a", "e", "c"]], object)),
        ("GatherND", [np.array([[1, 0], [0, 2]])], {}, texts("d", "c")),
        ("ScatterND", [np.array([[1, 0]]), texts("z")], {}, np.array([["a", "b", "c"], ["z", "e", "f"]], object)),
        ("Compress", [np.array([True, False, True])], {"axis": 1}, GRID[:, [0, 2]]),
        ("Tile", [np.array([1, 2])], {}, np.tile(GRID, (1, 2))),
        ("Expand", [np.array([2, 1, 1])], {}, np.stack([GRID, GRID])),
        ("Unsqueeze", [np.array([0, 3])], {}, GRID[None, ..., None]),
        ("Squeeze", [], {}, GRID),
        ("Shape", [], {"start": 1}, np.array([3])),
        ("Size", [], {}, np.array(6)),
        ("Equal", [texts("a", "e", "f")], {}, np.array([[True, False, False], [False, True, True]])),
        ("Concat", [GRID], {"axis": 1}, np.hstack([GRID, GRID])),
    ],
)
def test_moving_strings(op, operands, attributes, expected):
    made = run(op, GRID, *operands, **attributes)
    assert made.shape == expected.shape
    np.testing.assert_array_equal(made, expected)


def test_parts_of_strings():
    sizes = [part.shape for part in run("Split", GRID, results=2, axis=1)]
    assert sizes == [(2, 2), (2, 1)]


def test_unique_strings():
    kept, places, inverse, counts = run("Unique", texts("b", "a", "b", "c"), results=4)
    assert (kept.tolist(), places.tolist(), inverse.tolist(), counts.tolist()) == (["a", "b", "c"], [1, 0, 3], [1, 0, 1, 2], [1, 2, 1])
    kept, places, *_ = run("Unique", texts("b", "a", "b"), results=4, sorted=0)
    assert (kept.tolist(), places.tolist()) == (["b", "a"], [0, 1])
    kept, *_ = run("Unique", np.array([["x", "y", "x"], ["p", "q", "p"]], object), axis=1)
    assert kept.tolist() == [["x", "y"], ["p", "q"]]


# Tables and maps ------------------------------------------------------------------------------------------------


def test_encoding_labels():
    encode = {"keys_strings": ["a", "b", "a"], "values_int64s": [1, 2, 3], "default_int64": -5}
    assert run("LabelEncoder", texts("a", "b", "z"), domain=ML, opset=4, **encode).tolist() == [3, 2, -5]
    nan = {"keys_floats": [float("nan"), 1.0], "values_strings": ["none", "one"]}
    assert run("LabelEncoder", np.array([1.0, np.nan, 2.0], np.float32), domain=ML, opset=4, **nan).tolist() == ["one", "none", "_Unused"]
    old = {"classes_strings": ["a", "b"], "default_int64": -1, "default_string": "?"}
    assert run("LabelEncoder", texts("b", "z"), domain=ML, opset=1, **old).tolist() == [1, -1]
    assert run("LabelEncoder", np.array([1, 7]), domain=ML, opset=1, **old).tolist() == ["b", "?"]


def test_mapping_categories_both_ways():
    table = {"cats_strings": ["x", "y"], "cats_int64s": [10, 20], "default_int64": -1, "default_string": "?"}
    assert run("CategoryMapper", texts("y", "z"), domain=ML, **table).tolist() == [20, -1]
    assert run("CategoryMapper", np.array([10, 3]), domain=ML, **table).tolist() == ["x", "?"]


def test_one_hot_rows():
    assert run("OneHotEncoder", texts("b", "z"), domain=ML, cats_strings=["a", "b"]).tolist() == [[0, 1], [0, 0]]
    with pytest.raises(ValueError, match="z"):
        run("OneHotEncoder", texts("z"), domain=ML, cats_strings=["a"], zeros=0)


def test_maps():
    made = run("ZipMap", np.array([[0.25, 0.75]], np.float32), domain=ML, classlabels_strings=["no", "yes"])
    assert made == [{"no": 0.25, "yes": 0.75}]
    assert run("DictVectorizer", {"c": 8.0, "a": 4.0}, domain=ML, string_vocabulary=["a", "c", "b"]).tolist() == [[4, 8, 0]]
    assert run("CastMap", {3: 0.5, 1: 2.0}, domain=ML, map_form="DENSE").tolist() == [[2.0, 0.5]]
    assert run("CastMap", {3: 0.5}, domain=ML, map_form="SPARSE", max_map=5).tolist() == [[0, 0, 0, 0.5, 0]]


def test_counting_grams():
    grams = {"pool_strings": ["a", "b", "a", "b"], "ngram_counts": [0, 2], "ngram_indexes": [2, 0, 1]}
    size = {"min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 1}
    tokens = texts("a", "b", "c", "a", "x", "b")
    assert run("TfIdfVectorizer", tokens, mode="TF", **grams, **size).tolist() == [2, 2, 2]
    weights = {"weights": [0.5, 2.0, 3.0]}
    assert run("TfIdfVectorizer", tokens.reshape(1, 6), mode="IDF", **grams, **size, **weights).tolist() == [[2.0, 3.0, 0.5]]


# Images ---------------------------------------------------------------------------------------------------------


def encoded(form, pixels, mode="RGB"):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels, mode=None).convert(mode).save(file, form)
    return np.frombuffer(file.getvalue(), np.uint8)


def test_decoding_images():
    pytest.importorskip("PIL")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(run("ImageDecoder", encoded("PNG", pixels)), pixels)
    np.testing.assert_array_equal(run("ImageDecoder", encoded("BMP", pixels), pixel_format="BGR"), pixels[:, :, ::-1])
    assert run("ImageDecoder", encoded("PNG", pixels), pixel_format="Grayscale").shape == (5, 7, 1)
    assert run("ImageDecoder", encoded("PNG", pixels, "RGBA")).shape == (5, 7, 3)
    assert run("ImageDecoder", np.frombuffer(b"no image at all", np.uint8)).size == 0
