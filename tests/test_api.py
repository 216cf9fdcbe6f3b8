"""The Python API on the demo model: compile, run, save, load, report, errors."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tcompile
from tcompile import backend

DEMO = Path(tcompile.__file__).parent / "demo"


@pytest.fixture(scope="module")
def digits():
    with np.load(DEMO / "digits.npz") as data:
        return data["images"], data["labels"]


@pytest.fixture(scope="module")
def executable():
    return tcompile.compile(DEMO / "digits.onnx", threads=1)


def test_the_demo_model_classifies_held_out_digits(executable, digits):
    images, labels = digits
    probabilities = executable.run({"images": images})["probabilities"]
    assert (probabilities.argmax(1) == labels).mean() > 0.97
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("batch", [0, 1, 2, 7, 360])
def test_one_artifact_serves_every_batch(executable, digits, batch):
    everything = executable.run([digits[0]])["probabilities"]
    part = executable.run([digits[0][:batch]])["probabilities"]
    assert part.shape == (batch, 10)
    np.testing.assert_array_equal(part, everything[:batch])


def test_an_artifact_survives_saving_and_loading(executable, digits, tmp_path):
    executable.save(tmp_path / "digits.tcm")
    again = tcompile.load(tmp_path / "digits.tcm")
    np.testing.assert_array_equal(again.run([digits[0]])["probabilities"], executable.run([digits[0]])["probabilities"])


def test_the_signature_names_symbols(executable):
    (images,) = executable.inputs
    assert (images.name, str(images.dtype), tuple(images.shape)) == ("images", "uint8", ("batch", 8, 8))


def test_the_report_is_plain_data(executable):
    report = executable.report()
    assert report["inputs"][0]["name"] == "images"
    assert report["calls"] and all("kernel" in call for call in report["calls"])


@pytest.mark.parametrize("wrong", [np.zeros((1, 8, 8), np.float32), np.zeros((1, 8, 9), np.uint8), np.zeros(8, np.uint8)])
def test_a_wrong_input_is_refused_by_name(executable, wrong):
    with pytest.raises(tcompile.InputError, match="images"):
        executable.run({"images": wrong})


def test_shapes_bound_a_symbol(digits):
    bounded = tcompile.compile(DEMO / "digits.onnx", shapes={"images": ["1..4", 8, 8]}, threads=1)
    assert bounded.run([digits[0][:4]])["probabilities"].shape == (4, 10)
    with pytest.raises(tcompile.Error, match="batch"):
        bounded.run([digits[0][:5]])


def test_unsupported_ops_are_all_named():
    nodes = [
        helper.make_node("Wobble", ["x"], ["y"], "first", domain="made.up"),
        helper.make_node("Jiggle", ["y"], ["z"], "second", domain="made.up"),
    ]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])  # noqa: E731
    graph = helper.make_graph(nodes, "g", [value("x")], [value("z")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("made.up", 1)])
    assert {problem.op for problem in tcompile.check(model)} == {"Wobble", "Jiggle"}
    with pytest.raises(tcompile.UnsupportedError, match=r"(?s)Wobble.*Jiggle"):
        tcompile.compile(model)


@pytest.mark.parametrize("cut", [0, 1, 100, 5000])
def test_a_truncated_model_is_an_error(cut):
    data = (DEMO / "digits.onnx").read_bytes()
    with pytest.raises(tcompile.Error):
        tcompile.compile(data[:cut])


def test_the_backend_runs_one_node():
    node = helper.make_node("Add", ["a", "b"], ["c"])
    a, b = np.arange(3, dtype=np.float32), np.ones((2, 1), np.float32)
    (c,) = backend.run_node(node, [a, b])
    np.testing.assert_array_equal(c, a + b)
    assert backend.supports_device("CPU") and not backend.supports_device("CUDA")


def test_the_backend_prepares_a_model(digits):
    rep = backend.prepare(onnx.load(DEMO / "digits.onnx"))
    assert rep.run([digits[0][:3]])[0].shape == (3, 10)
