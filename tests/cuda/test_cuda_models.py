"""Whole models under the shim: imported, compiled for a GPU, their CUDA C run on the CPU, against the interpreter.

The digits classifier ships with the package. Public models run where TCOMPILE_PUBLIC_MODELS names folders (separated as in PATH)
that hold them; image models with a reduced input, language models with a short sequence.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import parser

import tcompile
from tcompile.accuracy import largest_error, random_inputs
from tcompile.benchmarks.model_set import INPUTS, Inputs
from tcompile.cli import main
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model
from tcompile.runtime.inspect import cuda_source, describe
from tests import test_host_models as host_models
from tests.cuda.shim_device import ShimDevice

FOLDERS = [Path(folder) for folder in os.environ.get("TCOMPILE_PUBLIC_MODELS", "").split(os.pathsep) if folder]
DIGITS = Path(tcompile.__file__).with_name("demo") / "digits.onnx"


def on_shim(model, **options):
    """A model loaded on the shim, through the same calls as on a GPU."""
    return tcompile.compile(model, device=ShimDevice(), device_code=False, cache=False, **options)


def check(model, sizes, draws=None, runs=1):
    exe, graph = on_shim(model), import_model(model)
    for seed in range(runs):
        arrays = random_inputs(graph.inputs, sizes, draws, seed)
        got = exe.run(arrays)
        for name, expected in interpret(graph, arrays).items():
            error, largest = largest_error(got[name], expected)
            assert error <= 2e-5 * max(largest, 1.0), f"{name}: off by {error:.3g}, of {largest:.3g}"  # sums in another order


def test_the_digits_classifier():
    exe = on_shim(DIGITS)
    with np.load(DIGITS.with_suffix(".npz")) as data:
        images, labels = data["images"][:16], data["labels"][:16]
    (probabilities,) = exe.run({"images": images}).values()
    assert (probabilities.argmax(1) == labels).mean() > 0.9
    check(DIGITS, {"batch": 3}, runs=3)


def found(name):
    """A public model's path; skips the test where it is not here."""
    for folder in FOLDERS:
        for path in (folder / f"{name}.onnx", folder / "real" / f"{name}.onnx"):
            if path.exists():
                return path
    pytest.skip(f"{name} is in no folder of TCOMPILE_PUBLIC_MODELS")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"), [("mnist_cntk", {}), ("silero_vad", {}), ("lstm_gru_tagger", {"seq": 5}), ("minilm_l6_v2", {"seq": 7})]
)
def test_public_models(name, sizes):
    known = INPUTS.get(name, Inputs())
    check(str(found(name)), {**known.sizes, **sizes}, known.draws, runs=2)


@pytest.mark.slow
def test_mobilenetv2_with_a_small_image(tmp_path):
    proto = onnx.load(found("mobilenetv2_bn"))
    for dim in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 32
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    path = tmp_path / "small.onnx"
    onnx.save(proto, path)
    check(str(path), {})


def test_a_model_with_strings_runs_its_parts_on_the_device(tmp_path):
    proto = parser.parse_model(host_models.MODEL)
    path = tmp_path / "hosted.tcm"
    tcompile.compile_file(proto, path, "cuda-sm90", device_code=False, cache=False)
    device = ShimDevice()
    exe = tcompile.load(path, device=device)
    host_models.check(exe.run({"city": host_models.CITIES, "x": host_models.X}))
    assert device.launches
    report = describe(path)
    assert report["host_calls"] and report["copies"] and report["arch"] == "sm_90"
    assert "__global__" in cuda_source(path)
    shown = CliRunner().invoke(main, ["inspect", "--kernels", str(path)]).output
    assert "copied each run" in shown and "runs in Python" in shown


def test_the_command_line_without_a_gpu(tmp_path):
    path = tmp_path / "digits.tcm"
    tcompile.compile_file(DIGITS, path, "cuda-sm80", device_code=False)
    runner = CliRunner()
    shown = runner.invoke(main, ["inspect", "--source", str(path)])
    assert shown.exit_code == 0 and "__global__" in shown.output
    report = json.loads(runner.invoke(main, ["inspect", "--json", str(path)]).output)
    assert report["target"] == "cuda-sm80" and report["kernels"]
    refused = runner.invoke(main, ["compile", str(DIGITS), "--precision", "tf32", "-o", str(tmp_path / "x.tcm")])
    assert refused.exit_code == 3 and not (tmp_path / "x.tcm").exists()
    missing = runner.invoke(main, ["run", str(path), "--device", "cuda:99", "--input", "images=random"])
    assert missing.exit_code == 1
