"""The static GPU report: symbols get the sizes that the model set feeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tcompile.benchmarks.gpu_static import StaticReport, recorded_shapes, static_row, symbol_values
from tcompile.benchmarks.model_set import Model
from tcompile.ir.dims import Range, symbol
from tcompile.ir.dtypes import F32
from tcompile.ir.program import Buffer, Program, Role
from tcompile.pipeline import Options


def program(inputs: dict[str, tuple], entry: tuple[str, ...]) -> Program:
    buffers = tuple(Buffer(name, F32, shape, Role.INPUT) for name, shape in inputs.items())
    return Program("p", buffers, (), (), (), {name: Range(0, None) for name in entry}, entry)


def test_shapes_of_draws_then_sizes_then_two():
    batch, samples = symbol("batch"), symbol("samples")
    shapes = {"input": (batch, samples), "state": (2, batch, 128), "other": (samples + 1,)}
    assert symbol_values(program(shapes, ("batch", "samples")), Model(Path("silero_vad.onnx"), "real")) == {"batch": 1, "samples": 576}
    bert = {"input_ids": (symbol("batch"), symbol("seq")), "mask": (symbol("heads"),)}
    found = symbol_values(program(bert, ("batch", "seq", "heads")), Model(Path("bert_base_dyn.onnx"), "recipes"))
    assert found == {"batch": 1, "seq": 128, "heads": 2}


def test_shapes_of_a_framework_s_inputs_come_from_their_heads(tmp_path):
    np.savez(tmp_path / "m.npz", **{"in.x": np.zeros((3, 5)), "in.words": np.array([["a"]], object), "out.y": np.zeros(7)})
    assert recorded_shapes(Model(tmp_path / "m.onnx", "frameworks")) == {"x": (3, 5), "words": (1, 1)}
    assert recorded_shapes(Model(tmp_path / "m.onnx", "real")) == {}


def test_a_report_goes_on_after_the_rows_of_the_same_compiler(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    onnx.save(helper.make_model(helper.make_graph([node], "g", tensors[:1], tensors[1:])), tmp_path / "relu.onnx")
    model = Model(tmp_path / "relu.onnx", "real")
    report = StaticReport({}, "this")
    line = report.add(model, lambda: static_row(model, "cuda-sm90", Options(device_code=False), symbolic=True))
    assert line.startswith("relu: 1 kernels, 1 launches") and report.missing([model]) == []
    assert report.finish("cuda-sm90") == "1 models compile for cuda-sm90, 0 do not; of 1 kernels 0 spill, 0 move too much"
    assert StaticReport(report.content, "this").missing([model]) == []
    assert StaticReport(report.content, "another").missing([model]) == [model]


def test_what_does_not_compile_is_named():
    report = StaticReport({}, "this")

    def fails() -> dict:
        raise ValueError("no such thing")

    assert report.add(Model(Path("m.onnx"), "real"), fails) == "m: ValueError: no such thing"
    assert report.content["refused"] == {"m": "ValueError: no such thing"}
    assert report.finish("cuda-sm90").startswith("0 models compile for cuda-sm90, 1 do not")
