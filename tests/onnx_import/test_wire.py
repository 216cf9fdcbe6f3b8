"""Models whose tensors' data stays in the file."""

from __future__ import annotations

import mmap

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tcompile.errors import InvalidModelError
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model
from tcompile.ir.onnx_model import load_model, read_tensor
from tcompile.ir.onnx_wire import SMALLEST, without_data


def model(*arrays):
    tensors = [numpy_helper.from_array(array, f"w{k}") for k, array in enumerate(arrays)]
    nodes = [helper.make_node("Identity", [f"w{k}"], [f"y{k}"], f"node_{k}") for k in range(len(arrays))]
    outputs = [helper.make_tensor_value_info(f"y{k}", tensor.data_type, None) for k, tensor in enumerate(tensors)]
    graph = helper.make_graph(nodes, "g", [], outputs, tensors, doc_string="doc")
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    made.metadata_props.add(key="a", value="b")
    return made


BIG = np.random.default_rng(0).standard_normal((SMALLEST, 3)).astype(np.float32)


def test_large_tensors_are_mapped_from_the_model_itself(tmp_path):
    small = np.arange(3.0)
    onnx.save(model(small, BIG), tmp_path / "m.onnx")
    proto, files = load_model(tmp_path / "m.onnx")
    assert proto.ByteSize() < 2000 and proto.metadata_props[0].value == "b" and proto.graph.doc_string == "doc"
    arrays = [read_tensor(tensor, files) for tensor in proto.graph.initializer]
    np.testing.assert_array_equal(arrays[0], small)
    np.testing.assert_array_equal(arrays[1], BIG)
    base = arrays[1]
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.bool_, ml_dtypes.bfloat16, ml_dtypes.int4, np.int64])
def test_every_type(tmp_path, dtype):
    array = np.random.default_rng(1).integers(0, 2, (3, SMALLEST)).astype(dtype)
    onnx.save(model(array), tmp_path / "m.onnx")
    proto, files = load_model(tmp_path / "m.onnx")
    (tensor,) = proto.graph.initializer
    assert not tensor.raw_data
    got = read_tensor(tensor, files)
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got.astype(np.float64), array.astype(np.float64))


def test_bytes_and_files_give_the_same(tmp_path):
    made = model(BIG, np.arange(5))
    onnx.save(made, tmp_path / "m.onnx")
    for source in (made, made.SerializeToString(), tmp_path / "m.onnx"):
        got = interpret(import_model(source), [])
        np.testing.assert_array_equal(got["y0"], BIG)


def test_a_model_behind_a_link_is_read(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "models").mkdir()
    onnx.save(model(BIG), tmp_path / "blobs" / "x")
    (tmp_path / "models" / "m.onnx").symlink_to(tmp_path / "blobs" / "x")
    np.testing.assert_array_equal(interpret(import_model(tmp_path / "models" / "m.onnx"), [])["y0"], BIG)


@pytest.mark.parametrize("extents", [[SMALLEST, 4], [SMALLEST, 2]])
def test_data_that_does_not_fit_its_shape_is_refused(tmp_path, extents):
    made = model(BIG)
    made.graph.initializer[0].dims[:] = extents
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(InvalidModelError, match="tensor w0: its data does not fit f32"):
        import_model(tmp_path / "m.onnx")


def test_a_tensor_that_claims_another_place_cannot_leave_the_file(tmp_path):
    made = model(np.arange(4.0))
    (tensor,) = made.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("tcompile.offset", 10**9), ("length", 32), ("location", "/etc/passwd")):
        tensor.external_data.add(key=key, value=str(value))
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(InvalidModelError, match="lie outside"):
        import_model(tmp_path / "m.onnx")


def test_the_rest_of_the_file_is_what_it_was():
    made = model(np.arange(4.0))
    data = made.SerializeToString()
    assert onnx.ModelProto.FromString(without_data(memoryview(data))) == made


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 400), st.integers(0, 255))
def test_damaged_files_never_crash(junk, position, value):
    data = bytearray(model(np.arange(4.0)).SerializeToString())
    data[position % len(data)] = value
    for damaged in (bytes(data), bytes(data[: position % len(data)]), junk):
        slim = without_data(memoryview(damaged))
        assert slim is None or isinstance(slim, bytes)
