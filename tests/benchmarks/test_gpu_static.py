"""The static GPU report: symbols get the sizes that the model set feeds."""

from __future__ import annotations

from pathlib import Path

from tcompile.benchmarks.gpu_static import symbol_values
from tcompile.benchmarks.model_set import Model
from tcompile.ir.dims import Range, symbol
from tcompile.ir.dtypes import F32
from tcompile.ir.program import Buffer, Program, Role


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
