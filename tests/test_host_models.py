"""Models with host ops as artifacts: compiled, saved, loaded, run, refused, and shown by the command line."""

import json
import pickle
import subprocess
import sys

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import parser

import tcompile
from tcompile import backend
from tcompile.cli import main
from tcompile.runtime import HostedExecutable

MODEL = """<ir_version: 10, opset_import: ["" : 21, "ai.onnx.ml" : 4]>
g (string[n] city, float[n, 3] x) => (string[n] label, float[n, 2] scores, seq(float[2]) rows) {
    code = ai.onnx.ml.LabelEncoder <keys_strings = ["Rome", "Oslo"], values_floats = [1.0, -1.0], default_float = 0.0> (city)
    axis = Constant <value_ints = [1]> ()
    column = Unsqueeze(code, axis)
    both = Mul(column, x)
    label, scores = ai.onnx.ml.LinearClassifier <coefficients = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0], intercepts = [0.0, 0.25],
        classlabels_strings = ["cat", "dog"], post_transform = "NONE"> (both)
    rows = SplitToSequence <axis = 0, keepdims = 0> (scores)
}"""
CITIES = np.array(["Oslo", "Rome", "Bonn"])
X = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)
SCORES = np.array([[-1, -4.75], [4, 11.25], [0, 0.25]], np.float32)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return parser.parse_model(MODEL)


@pytest.fixture(scope="module")
def executable(model):
    return tcompile.compile(model, threads=1)


def check(results):
    assert results["label"].tolist() == ["cat", "dog", "dog"]
    np.testing.assert_allclose(results["scores"], SCORES)
    np.testing.assert_allclose(results["rows"], SCORES)


def test_runs_and_says_what_it_takes_and_gives(executable):
    assert isinstance(executable, HostedExecutable)
    check(executable.run({"city": CITIES, "x": X}))
    check(executable.run([CITIES.astype(object), X]))
    assert [str(spec) for spec in (*executable.inputs, *executable.outputs)] == [
        "city: string[n]", "x: f32[n, 3]", "label: string[n]", "scores: f32[n, 2]", "rows: sequence(f32[2])",
    ]  # fmt: skip
    assert executable.run({"city": CITIES, "x": X}, ["scores"]).keys() == {"scores"}


def test_donated_inputs_are_allowed_and_stay(executable):
    x = X.copy()
    check(executable.run({"city": CITIES, "x": x}, donate=["x"]))
    np.testing.assert_array_equal(x, X)
    with pytest.raises(tcompile.InputError, match="no input 'z'"):
        executable.run({"city": CITIES, "x": x}, donate=["z"])


def test_what_python_runs_is_named(executable, model):
    calls = ["ai.onnx.ml.LabelEncoder (LabelEncoder #0)", "tcompile.Lookup (label)", "tcompile.Unstack (rows)"]
    assert executable.report()["host_calls"] == calls
    assert tcompile.host_calls(model) == calls
    assert tcompile.check(model) == []


def test_no_host_means_a_refusal_by_name(model):
    with pytest.raises(tcompile.UnsupportedError, match=r"(?s)needs Python.*LabelEncoder.*Lookup"):
        tcompile.compile(model, host_ops=False)


def test_saved_and_loaded_where_no_compiler_is(executable, tmp_path):
    path = tmp_path / "model.tcm"
    executable.save(path)
    check(tcompile.load(path, threads=1).run({"city": CITIES, "x": X}))
    check(pickle.loads(pickle.dumps(executable)).run({"city": CITIES, "x": X}))
    code = f"""
import sys
for name in ("onnx", "llvmlite", "tcompile.ir"):
    sys.modules[name] = None
import numpy as np, tcompile
exe = tcompile.load({str(path)!r}, threads=1)
exe.verify_weights()
print(exe.run({{"city": np.array(["Oslo"]), "x": np.ones((1, 3), np.float32)}})["label"].tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['cat']"


def test_the_same_model_gives_the_same_bytes(model, tmp_path):
    for name in ("a", "b"):
        tcompile.compile_file(model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_damaged_steps_are_noticed(model, tmp_path):
    path = tcompile.compile_file(model, tmp_path / "model.tcm")
    data = path.read_bytes()
    with pytest.raises(tcompile.ArtifactError, match="host steps"):
        tcompile.load(data.replace(b'"Rome"', b'"Roma"'))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"city": CITIES}, "'x' is missing"),
        ({"city": CITIES, "x": X, "y": X}, "no input 'y'"),
        ({"city": CITIES[:2], "x": X}, "n = 2"),
        ({"city": CITIES, "x": X.astype(np.float64)}, "float64"),
        ({"city": X[:, 0], "x": X}, "strings are expected"),
        ({"city": CITIES.reshape(3, 1), "x": X}, "shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(executable, inputs, message):
    with pytest.raises(tcompile.InputError, match=message):
        executable.run(inputs)


def test_a_host_op_that_fails_names_its_node():
    body = """<ir_version: 10, opset_import: ["" : 21]>
    g (string[n] a) => (float[n] y) { b = Cast <to = 1> (a)  y = Neg(b) }"""
    executable = tcompile.compile(parser.parse_model(body), threads=1)
    with pytest.raises(tcompile.ExecutionError, match=r"Cast \(Cast #0\).*hello"):
        executable.run({"a": np.array(["hello"])})


def test_outputs_are_never_the_memory_of_inputs():
    body = """<ir_version: 10, opset_import: ["" : 21]>
    g (seq(float[2]) s, float[2] x) => (seq(float[2]) t) { t = SequenceInsert(s, x) }"""
    executable = tcompile.compile(parser.parse_model(body), threads=1)
    x, element = np.ones(2, np.float32), np.zeros(2, np.float32)
    made = executable.run({"s": [element], "x": x})["t"]
    made[0][:] = made[1][:] = 7
    assert x.tolist() == [1, 1] and element.tolist() == [0, 0]


def test_a_profile_has_a_row_for_each_step(executable):
    rows = executable.profile({"city": CITIES, "x": X}, runs=2).calls
    assert [row.kernel for row in rows] == ["host op", "segment 0", "host op", "host op"]


def test_through_the_backend_interface(model):
    rep = backend.prepare(model)
    outputs = rep.run([CITIES, X])
    assert outputs.label.tolist() == ["cat", "dog", "dog"]


def test_on_the_command_line(model, tmp_path):
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "city.npy", CITIES)
    np.save(tmp_path / "x.npy", X)
    runner, source, artifact = CliRunner(), str(tmp_path / "model.onnx"), str(tmp_path / "model.tcm")
    checked = runner.invoke(main, ["check", source])
    assert checked.exit_code == 0 and "runs in Python: ai.onnx.ml.LabelEncoder" in checked.output
    assert runner.invoke(main, ["compile", source, "-o", artifact, "--no-host-ops"]).exit_code == 3
    assert runner.invoke(main, ["compile", source, "-o", artifact]).exit_code == 0
    inspected = runner.invoke(main, ["inspect", artifact]).output
    assert "runs in Python" in inspected and "tcompile.Lookup (label)" in inspected
    arguments = ["run", artifact, "--input", f"city={tmp_path / 'city.npy'}", "--input", f"x={tmp_path / 'x.npy'}"]
    shown = runner.invoke(main, [*arguments, "--output", f"label={tmp_path / 'label.npy'}"])
    assert shown.exit_code == 0 and "rows" in shown.output
    assert np.load(tmp_path / "label.npy").tolist() == ["cat", "dog", "dog"]
    plain = json.loads(runner.invoke(main, [*arguments, "--json"]).output)
    assert plain["label"] == {"dtype": "string", "shape": [3], "values": ["cat", "dog", "dog"]}
    assert len(plain["rows"]) == 3
