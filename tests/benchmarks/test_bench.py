"""Benchmarks of tiny models, end to end: processes, results, resuming, refusals."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import tcompile
from tcompile.benchmarks.cases import Case, prepare
from tcompile.benchmarks.engine import Engine
from tcompile.benchmarks.machine import limits
from tcompile.benchmarks.model_flops import model_flops
from tcompile.benchmarks.speed import summary
from tcompile.cli import main
from tcompile.errors import Error
from tcompile.ir.onnx_import import import_model

DEMO = Path(tcompile.__file__).parent / "demo" / "digits.onnx"
KEYS = {
    "model", "threads", "tcompile_ms", "onnxruntime_ms", "ratio_to_best_peer", "ratio_lower_95", "limit_ms", "memory_ms", "rounds",
    "tcompile_load_ms", "onnxruntime_load_ms", "tcompile_peak_rss_mb", "artifact_bytes", "compile_s", "compile_cpu_s", "tcompile_spread",
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TCOMPILE_BENCH_DIR", str(tmp_path / "cases"))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_bench_writes_stable_keys_and_resumes(folder):
    pytest.importorskip("onnxruntime")
    path = folder / "result.json"
    command = ("bench", DEMO, "--peer", "onnxruntime", "--seconds", "0.1", "--json", path, "--size", "batch=3")
    done = run(*command, "--costs")
    assert done.exit_code == 0, done.output
    found = json.loads(path.read_text())
    (row,) = found["models"]
    assert row.keys() >= KEYS and (row["model"], row["threads"], found["failed"]) == ("digits", 1, {})
    assert 0 < row["ratio_lower_95"] <= row["ratio_to_best_peer"] == pytest.approx(found["geometric_mean"]["1"])
    assert found["machine"]["1"]["peak_gflops"] > 0 and found["clock"] == "wall"
    assert "best peer / ours" in done.stdout and "wall clock" in done.stdout and "compile s" in done.stdout
    again = run(*command, "--resume", "--threads", "1,2")
    assert again.exit_code == 0, again.output
    first, second = json.loads(path.read_text())["models"]
    assert first == row and second["threads"] == 2


def test_cpu_time_is_labelled_and_only_for_one_thread():
    done = run("bench", DEMO, "--seconds", "0", "--clock", "cpu")
    assert done.exit_code == 0, done.output
    assert "CPU time of all threads" in done.stdout
    assert "one thread" in run("bench", DEMO, "--clock", "cpu", "--threads", "2").stderr
    assert run("bench", DEMO, "--threads", "two").exit_code == 2


def test_a_model_that_is_refused_is_named_and_the_others_go_on(folder):
    graph = helper.make_graph(
        [helper.make_node("Wobble", ["x"], ["y"], "w", domain="made.up")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("made.up", 1)]), folder / "bad.onnx")
    done = run("bench", folder / "bad.onnx", DEMO, "--seconds", "0", "--json", folder / "r.json")
    found = json.loads((folder / "r.json").read_text())
    assert done.exit_code == 1 and "Wobble" in found["failed"]["bad"] and [row["model"] for row in found["models"]] == ["digits"]
    assert found["models"][0]["ratio_to_best_peer"] is None and found["geometric_mean"] == {}


def test_a_prepared_case_is_kept_until_something_changes(folder):
    case = Case("digits", DEMO, {"batch": 2})
    first = prepare(case, folder)
    stamp = Path(first.artifact).stat().st_mtime_ns
    assert prepare(case, folder) == first and Path(first.artifact).stat().st_mtime_ns == stamp
    other = prepare(Case("digits", DEMO, {"batch": 4}), folder)
    assert other.artifact != first.artifact and other.flops == 2 * first.flops


def test_recorded_inputs_are_used(folder):
    images = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8)
    np.savez(folder / "recorded.npz", **{"in.images": images, "out.0": np.zeros(3)})
    ready = prepare(Case("digits", DEMO, recorded=folder / "recorded.npz"), folder)
    with np.load(ready.inputs) as data:
        assert list(data) == ["images"] and np.array_equal(data["images"], images)


def test_an_engine_tells_why_it_refuses(folder):
    (folder / "no.onnx").write_text("no model")
    np.savez(folder / "inputs.npz", x=np.zeros(1))
    engine = Engine("tcompile", 1)
    with pytest.raises(Error, match="tcompile: ArtifactError"):
        engine.load(folder / "no.onnx", folder / "inputs.npz")
    engine.close()
    assert engine.process.poll() is not None


def test_an_engine_is_stopped_between_its_turns(folder):
    """And runs when it is asked; ending it ends the process."""
    ready = prepare(Case("digits", DEMO), folder)
    engine = Engine("tcompile", 1)
    assert engine.load(ready.artifact, ready.inputs).keys() == {"import_ms", "load_ms", "first_ms"}
    state = Path(f"/proc/{engine.process.pid}/stat")
    if state.exists():
        assert state.read_text().rpartition(")")[2].split()[0] in "Tt"
    assert len(engine.run(3, 2, "cpu")) == 3 and engine.memory()["peak_rss_mb"] > 1
    engine.close()
    assert engine.process.returncode == 0


def test_operations_as_written():
    """A convolution, a transposed one (each input element meets each tap) and a product; elementwise work is not counted."""
    w = numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")
    v = numpy_helper.from_array(np.zeros((4, 2, 2, 2), np.float32), "v")
    m = numpy_helper.from_array(np.zeros((16, 5), np.float32), "m")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("ConvTranspose", ["b", "v"], ["c"], strides=[2, 2]),
        helper.make_node("MatMul", ["c", "m"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, 16, 5])],
        [w, v, m],
    )
    imported = import_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    counted = model_flops(imported, {"x": np.zeros((2, 3, 8, 8), np.float32)})
    assert counted == 2 * 2 * (4 * 64 * 27 + 4 * 64 * 2 * 4 + 2 * 16 * 5 * 16)


def test_the_machine_has_limits():
    machine = limits(1)
    assert machine.flops > 0 and all(rate > 0 for _, rate in machine.bandwidth)
    small, large = machine.bandwidth[0], machine.bandwidth[-1]
    assert machine.read_rate(1) == small[1] and machine.read_rate(1e12) == large[1] == machine.memory
    assert machine.least_seconds(machine.flops, 0) == pytest.approx(1) and machine.least_seconds(0, large[0]) == large[0] / large[1]


def test_rows_below_the_bar_are_named():
    rows = [{"model": "a", "threads": 1, "ratio_to_best_peer": 2.0, "ratio_lower_95": 1.9}]
    rows += [{"model": "b", "threads": 1, "ratio_to_best_peer": 0.98, "ratio_lower_95": 0.9}]
    assert summary(rows) == {"geometric_mean": {"1": pytest.approx(1.4)}, "slower": [["b", 1]]}
