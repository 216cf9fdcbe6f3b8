"""The GPU benchmark where there is no GPU: what hangs, dies or is refused is named, and the rest goes on; peers get the same graphs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import numpy_helper, parser

import tcompile
from tcompile.benchmarks import gpu
from tcompile.benchmarks.gpu_apart import Apart, Failed
from tcompile.benchmarks.gpu_cases import graph_flops, kernel_cases
from tcompile.benchmarks.gpu_unroll import unrolled
from tcompile.codegen.lower import lower
from tcompile.errors import UnsupportedError
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model
from tcompile.ir.program_text import program_kernels
from tcompile.pipeline import Options, chosen_target, optimise

DIGITS = Path(tcompile.__file__).with_name("demo") / "digits.onnx"
RECURRENT = """
<ir_version: 8, opset_import: ["" : 17]>
recurrent (float[length, 2, 3] x, bool go) => (float[length, 1, 2, 4] y, float[2, 4] chosen)
{
    y, h, c = LSTM <hidden_size = 4> (x, w, r)
    axis = Constant <value_ints = [0]> ()
    last = Squeeze (h, axis)
    chosen = If (go) <
        then_branch = yes () => (float[2, 4] a) { a = Neg (last) },
        else_branch = no () => (float[2, 4] b) { b = Exp (last) }
    >
}
"""


def recurrent():
    proto = parser.parse_model(RECURRENT)
    rng = np.random.default_rng(0)
    for name, inputs in (("w", 3), ("r", 4)):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((1, 16, inputs)).astype(np.float32), name))
    return import_model(proto)


@pytest.mark.parametrize("go", [True, False])
def test_what_peers_get_of_loops_and_branches_means_the_same(go):
    graph = recurrent()
    inputs = {"x": np.random.default_rng(1).standard_normal((5, 2, 3)).astype(np.float32), "go": np.array(go)}
    flat = unrolled(graph, inputs)
    assert not any(node.regions for node in flat.nodes) and all(value.type.is_static for node in flat.nodes for value in node.outputs)
    expected, got = interpret(graph, inputs), interpret(flat, inputs)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


def test_long_loops_are_refused():
    graph = recurrent()
    with pytest.raises(UnsupportedError, match="more than 2048 turns"):
        unrolled(graph, {"x": np.zeros((3000, 2, 3), np.float32), "go": np.array(True)})


@pytest.mark.parametrize("peer", ["torch", "jax"])
def test_peers_compute_what_the_interpreter_does(peer):
    module = pytest.importorskip(peer)
    graph = recurrent()
    inputs = {"x": np.random.default_rng(1).standard_normal((5, 2, 3)).astype(np.float32), "go": np.array(True)}
    flat = unrolled(graph, inputs)
    if peer == "torch":
        from tcompile.benchmarks.gpu_torch import torch_function

        results = torch_function(flat, "cpu")(*(module.from_numpy(inputs[value.name]) for value in flat.inputs))
    else:
        from tcompile.benchmarks.gpu_jax import jax_function

        results = module.jit(jax_function(flat))(*(inputs[value.name] for value in flat.inputs))
    for got, expected in zip(results, interpret(graph, inputs).values(), strict=True):
        np.testing.assert_allclose(np.asarray(got), expected, atol=1e-5)


def test_kernels_have_the_work_that_their_limits_are_made_of():
    cases = {case.name: case for case in kernel_cases()}
    assert cases["gemm 4096 f32"].flops == graph_flops(cases["gemm 4096 f32"].graph) == 2 * 4096**3
    assert cases["conv 3x3"].flops == graph_flops(cases["conv 3x3"].graph)
    assert cases["attention"].flops == graph_flops(cases["attention"].graph) == 4 * 16 * 1024 * 1024 * 64


@pytest.mark.parametrize("case", [case for case in kernel_cases() if case.name.startswith("attention")], ids=lambda case: case.name)
def test_attention_is_one_kernel(case):
    target = chosen_target("cuda-sm90", Options(precision=case.precision))
    (kernel,) = program_kernels(lower(optimise(case.graph, target), target))
    assert ("lanes" in kernel.tags, "tensor" in kernel.tags) == (case.name == "attention of one query", case.precision == "f16")


def test_every_kernel_has_a_name_and_bytes():
    cases = {case.name: case for case in kernel_cases()}
    assert all(case.bytes > 0 for case in cases.values()) and len(cases) == len(kernel_cases())


def sleep_long():
    time.sleep(60)


def end_at_once():
    os._exit(7)


def lose_the_device():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_work_apart_ends_alone():
    with Apart() as apart:
        first = apart.call(os.getpid, seconds=60)
        assert apart.call(divmod, 7, 2, seconds=60) == (3, 1)
        with pytest.raises(Failed, match="ZeroDivisionError"):
            apart.call(divmod, 1, 0, seconds=60)
        assert apart.call(os.getpid, seconds=60) == first != os.getpid()
        with pytest.raises(Failed, match="no answer within"):
            apart.call(sleep_long, seconds=0.2)
        second = apart.call(os.getpid, seconds=60)
        with pytest.raises(Failed, match="status 7"):
            apart.call(end_at_once, seconds=60)
        with pytest.raises(Failed, match="illegal memory access"):
            apart.call(lose_the_device, seconds=60)
        assert apart.call(os.getpid, seconds=60) not in (first, second)


def test_a_report_is_gone_on_with(tmp_path):
    path = tmp_path / "gpu.json"
    report = gpu.Report(path)
    report.add("models", "a f32", {"error": 1e-7, "wrong": ""})
    report.add("models", "b f32", {"error": 1.0, "wrong": "y by 1 of 1"})
    report.fail("bench c", Failed("no answer"))
    again = gpu.Report(path)
    assert set(again.content["models"]) == {"a f32", "b f32"} and not again.content["failed"]
    assert again.wrong() == ["b f32: y by 1 of 1"]


def test_parts_share_the_time():
    clock = gpu.Clock(100.0, ["models", "bench"])
    assert 0 < clock.left("models") < clock.left("bench") <= 100.0


def test_a_machine_whose_device_fails_gets_a_report_of_that(tmp_path, monkeypatch):
    folder, build = tmp_path / "models", tmp_path / "build"
    (folder / "real").mkdir(parents=True)
    (folder / "real" / "digits.onnx").write_bytes(DIGITS.read_bytes())
    (folder / "minilm").mkdir()
    (folder / "minilm" / "broken.onnx").write_bytes(b"")
    monkeypatch.setattr(gpu, "_device", lambda name: SimpleNamespace(name="a device", sm=90))
    monkeypatch.setattr("tcompile.benchmarks.gpu_models.complete_minilm", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    found = tmp_path / "gpu.json"
    arguments = [str(folder), "--build", str(build), "--json", str(found), "--only", "models,kernels,bench", "--workers", "1"]
    assert gpu.main([*arguments, "--device", "cuda:99", "--seconds", "100"]) == 0
    content = json.loads(found.read_text())
    assert (build / f"gpu-sm90-{gpu.sources()}" / "digits.npz").exists()
    assert "no network" in content["failed"]["model broken"]
    assert {"rates", "bench digits ours"} & set(content["failed"])
    assert not content["models"] and content["device"] == "a device"
