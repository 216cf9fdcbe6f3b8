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
    assert json.loads(done.stdout) == {"artifact": str(path), "bytes": path.stat().st_size}
    return path


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


def test_check_accepts_the_demo():
    done = run("check", DEMO, "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"supported": True, "problems": []})


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
