"""The command line on the demo model: results, JSON, exit statuses."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import tcompile
from tcompile.cli import main

DEMO = Path(tcompile.__file__).parent / "demo" / "digits.onnx"


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "digits.tcm"
    done = run("compile", DEMO, "-o", path, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["artifact"], report["bytes"]) == (str(path), path.stat().st_size)
    assert report["kernels"] <= report["calls"] and report["seconds"] > 0 and report["peak_bytes"] is None
    return path


def test_compile_tells_what_it_made(tmp_path):
    done = run("compile", DEMO, "-o", tmp_path / "m.tcm", "--shape", "images=4,8,8")
    assert done.exit_code == 0, done.output
    for label in ("m.tcm", "target", "kernels", "peak memory", "may grow          nothing", "time"):
        assert label in done.output
    report = json.loads(run("inspect", tmp_path / "m.tcm", "--json").stdout)
    compiled = json.loads(run("compile", DEMO, "-o", tmp_path / "n.tcm", "--shape", "images=4,8,8", "--json").stdout)
    for name in ("peak_bytes", "arena_bytes", "code_bytes", "weights_bytes", "scratch_bytes", "threads", "growing"):
        assert report[name] == compiled[name], name


def test_run_prints_and_writes_outputs(artifact, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8), np.uint8))
    done = run("run", artifact, "--input", f"images={tmp_path}/x.npy", "--output", f"probabilities={tmp_path}/y.npy", "--json")
    assert done.exit_code == 0, done.output
    values = np.array(json.loads(done.stdout)["probabilities"]["values"], np.float32)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), values)


def test_run_names_a_missing_input(artifact):
    done = run("run", artifact)
    assert done.exit_code == 1
    assert "images" in done.stderr


def test_run_draws_random_inputs(artifact):
    done = run("run", artifact, "--input", "images=random", "--size", "batch=3", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["probabilities"]["shape"] == [3, 10]
    assert run("run", artifact, "--input", "images=random", "--size", "batch=three").exit_code == 2
    assert "there is no input 'image'" in run("run", artifact, "--input", "images=random", "--input", "image=random").stderr


def test_profile_names_kernels_and_nodes(artifact):
    done = run("profile", artifact, "--size", "batch=4", "--runs", "2", "--json")
    assert done.exit_code == 0, done.output
    calls = json.loads(done.stdout)["calls"]
    assert {"conv1", "conv2"} <= {node for call in calls for node in call["nodes"]}
    assert all(call["seconds"] >= 0 and call["turns"] == 1 for call in calls) and any(call["gflops"] for call in calls)
    conv = next(call for call in calls if "conv2" in call["nodes"])
    assert conv["fastest"] <= conv["seconds"] and conv["record"]["template"] and conv["predicted"] > 0 and conv["roofline"] > 0
    shown = run("profile", artifact, "--runs", "1", "--top", "2")
    assert "GFLOP/s" in shown.output and "conv2" in shown.output and f"and {len(calls) - 2} more calls" in shown.output


def test_profile_joins_a_peer_by_nodes(artifact):
    pytest.importorskip("onnxruntime")
    assert "--model" in run("profile", artifact, "--peer", "onnxruntime").stderr
    done = run("profile", artifact, "--model", DEMO, "--peer", "onnxruntime", "--runs", "2", "--size", "batch=4", "--json")
    assert done.exit_code == 0, done.output
    groups = json.loads(done.stdout)["groups"]
    (conv,) = [group for group in groups if "relu2" in group["nodes"]]
    assert conv["seconds"] > 0 and "Conv" in conv["peer"] and conv["gap"] == conv["seconds"] - conv["peer_seconds"]
    shown = run("profile", artifact, "--model", DEMO, "--peer", "onnxruntime", "--runs", "1")
    assert "the same nodes here and in onnxruntime" in shown.output


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"PK\x03\x04" + bytes(40), "it is a zip: a compiled artifact is run with tcompile run"),
        (b"\x80\x02}q" + bytes(40), "it is a pickle: export the PyTorch model"),
        (bytes(4) + b"TFL3" + bytes(40), "it is a TensorFlow Lite file"),
        (b'\x10\0\0\0\0\0\0\0{"a":1}', "it is a safetensors file"),
        (b"once upon a time", "export the model to ONNX first"),
        (b"", "export the model to ONNX first"),
    ],
)
def test_what_is_no_onnx_model_is_named(tmp_path, content, hint):
    (tmp_path / "m.onnx").write_bytes(content)
    done = run("compile", tmp_path / "m.onnx")
    assert done.exit_code == 1 and hint in done.stderr and "m.onnx" in done.stderr


def test_check_accepts_the_demo():
    done = run("check", DEMO, "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"supported": True, "problems": [], "host_calls": []})


def test_check_lists_every_problem_and_exits_3(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Wobble", ["x"], ["y"], "w", domain="made.up")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("made.up", 1)]), tmp_path / "m.onnx")
    done = run("check", tmp_path / "m.onnx", "--json")
    assert done.exit_code == 3
    (problem,) = json.loads(done.stdout)["problems"]
    assert (problem["node"], problem["op"], problem["domain"]) == ("w", "Wobble", "made.up")
    assert run("compile", tmp_path / "m.onnx").exit_code == 3


def test_verify_compares_with_the_interpreter():
    done = run("verify", DEMO, "--size", "batch=3", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["agrees"] is True


def test_inspect_shows_the_signature(artifact):
    report = json.loads(run("inspect", artifact, "--json").stdout)
    assert report["outputs"][0]["name"] == "probabilities"
    shown = run("inspect", artifact, "--kernels")
    assert shown.exit_code == 0
    assert "images" in shown.output and "conv1" in shown.output


def test_stop_after_prints_the_graph():
    done = run("compile", DEMO, "--stop-after", "canonicalise")
    assert done.exit_code == 0, done.output
    assert "conv" in done.output
    assert run("compile", DEMO, "--stop-after", "nonsense").exit_code == 3


def test_dump_ir_writes_every_stage(tmp_path):
    done = run("compile", DEMO, "-o", tmp_path / "m.tcm", "--dump-ir", tmp_path / "ir", "--check")
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (tmp_path / "ir").iterdir())
    assert names[0] == "00-import.txt" and names[-1] == "99-program.txt"


def test_a_damaged_artifact_is_an_error(artifact, tmp_path):
    (tmp_path / "bad.tcm").write_bytes(artifact.read_bytes()[:-100])
    done = run("inspect", tmp_path / "bad.tcm")
    assert done.exit_code == 1
    assert "error" in done.stderr


def test_the_demo_reports_its_accuracy():
    done = run("demo")
    assert done.exit_code == 0, done.output
    assert "accuracy 98.1% on 360 held-out images" in done.output


def test_package_makes_a_folder(artifact, tmp_path):
    done = run("package", artifact, "-o", tmp_path / "digits", "--name", "digits")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "digits" / "include" / "digits_model.h").exists()
    assert run("package", artifact, "-o", tmp_path / "digits").exit_code == 1


def test_convolutions_may_be_computed_as_they_are_defined(tmp_path):
    weights = np.random.default_rng(0).standard_normal((64, 64, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 64, 32, 32))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 64, 32, 32))],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    for flags, expected in (((), True), (("--no-winograd",), False)):
        assert run("compile", model, "-o", tmp_path / "m.tcm", "--target", "x86-64-v3", *flags).exit_code == 0
        calls = json.loads(run("inspect", tmp_path / "m.tcm", "--json").stdout)["calls"]
        assert any(call["record"].get("template") == "winograd" for call in calls) == expected
