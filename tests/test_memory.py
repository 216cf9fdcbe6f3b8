"""What an artifact says of memory is what its runs take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import tcompile

DEMO = Path(tcompile.__file__).parent / "demo" / "digits.onnx"


def measured(exe):
    memory = exe.memory()
    return memory.code + memory.weights + memory.peak


def network(channels=24):
    """Convolutions with a residual, softmax and a sum: an arena, scratch, weights."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal((channels, channels, 3, 3), np.float32) * 0.1, f"w{k}") for k in range(2)]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "conv0", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w1"], ["c"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "b"], ["d"], "add"),
        helper.make_node("Softmax", ["d"], ["e"], "softmax", axis=3),
        helper.make_node("ReduceSum", ["e"], ["y"], "sum", keepdims=0),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, 40, 40])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "net", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 3, "1..4"])
def test_the_stated_peak_is_kept_and_close(batch, threads):
    exe = tcompile.compile(network(), shapes={"x": [batch, 24, 40, 40]}, threads=threads)
    stated = exe.report()["peak_bytes"]
    for n in (1, 2, 4) if batch == "1..4" else (batch,):
        exe.run([np.ones((n, 24, 40, 40), np.float32)])
        assert measured(exe) <= stated
    assert stated <= 1.1 * measured(exe)


def test_two_models_of_one_size_differ_by_their_arenas():
    """The parts add up."""
    report = tcompile.compile(DEMO, shapes={"images": [16, 8, 8]}, threads=3).report()
    parts = sum(report[name] for name in ("code_bytes", "weights_bytes", "arena_bytes"))
    assert report["peak_bytes"] == parts + 3 * -(-report["scratch_bytes"] // 64) * 64


def test_sizes_without_a_bound_have_no_peak():
    report = tcompile.compile(network(), threads=1).report()
    assert report["arena_bytes"] is None and report["peak_bytes"] is None


def test_what_grows_is_named():
    """NonZero's result, and what is made of it: their sizes are known in the run."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["at"], "find"),
        helper.make_node("Cast", ["at"], ["y"], "cast", to=TensorProto.FLOAT),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, None])
    exe = tcompile.compile(helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 21)]))
    growing = exe.report()["growing"]
    assert "y" in [site["name"] for site in growing]
    assert all(set(site["nodes"]) <= {"find", "cast"} and site["nodes"] for site in growing)


def test_the_last_use_of_an_array_makes_room():
    """A chain of unary operators that cannot fuse into one kernel takes the memory of one (and of a few sums)."""
    size = 64 * 64 * 4
    nodes, last = [], "x"
    for k in range(4):
        nodes += [helper.make_node("Softmax", [last], [f"s{k}"], axis=1), helper.make_node("Softmax", [f"s{k}"], [f"t{k}"], axis=0)]
        last = f"t{k}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 64]) for name in ("x", last)]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 21)])
    exe = tcompile.compile(model)
    array = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    got = exe.run([array])[last]
    for _ in range(4):
        for axis in (1, 0):
            array = np.exp(array) / np.exp(array).sum(axis, keepdims=True)
    np.testing.assert_allclose(got, array, rtol=1e-4)
    assert size <= exe.report()["arena_bytes"] < 1.1 * size
