"""``tcompile package``: the folder builds with a C compiler alone, and its example computes what Python does."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tcompile
from tcompile.edge_package import identifier
from tcompile.pipeline import compile_artifact

COMPILER = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) or shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")
DIGITS = Path(tcompile.__file__).parent / "demo" / "digits.onnx"


def _model(name="a b/*c", inputs=("x", "x!"), op="Sub"):
    """Two inputs whose names are one C identifier, of symbolic extents."""
    values = [helper.make_tensor_value_info(text, TensorProto.FLOAT, ["n", 3]) for text in inputs]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph([helper.make_node(op, list(inputs), ["y"])], name, values, [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _build(folder, own):
    sources = ["example/main.c", "model/model.c", *(str(path.relative_to(folder)) for path in sorted((folder / "src").glob("*.c")))]
    strict = ["-Wall", "-Wextra", "-Werror"]
    command = [COMPILER, "-std=c11", "-O1", *strict, "-Iinclude", "-Isrc", *sources, "-pthread", "-o", f"{own}_example"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / f"{own}_example"


@needs_compiler
def test_the_example_computes_what_python_does(tmp_path):
    """The shipped model, with arrays from files and to a file."""
    folder = tcompile.package(compile_artifact(DIGITS), tmp_path / "digits", "digits")
    program = _build(folder, "digits")
    with np.load(DIGITS.with_suffix(".npz")) as data:
        images = data["images"][:5]
    images.tofile(tmp_path / "x.bin")
    expected = tcompile.compile(DIGITS).run({"images": images})["probabilities"]
    command = [program, f"images={'x'.join(map(str, images.shape))}:{tmp_path / 'x.bin'}", f"probabilities>{tmp_path / 'y.bin'}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == f"probabilities: ONNX type 1, shape [{', '.join(map(str, expected.shape))}]\n"
    np.testing.assert_array_equal(np.fromfile(tmp_path / "y.bin", np.float32), expected.reshape(-1))


@needs_compiler
def test_names_that_are_no_identifiers(tmp_path):
    """Names of model and inputs come out as distinct identifiers; an input that does not fit is an error."""
    folder = tcompile.package(compile_artifact(_model()), tmp_path / "p")
    program = _build(folder, "a_b_c")
    header = (folder / "include" / "a_b_c_model.h").read_text()
    assert "A_B_C_INPUT_X_0 = 0," in header and "A_B_C_INPUT_X_1 = 1," in header and "A_B_C_OUTPUTS = 1," in header
    np.arange(6, dtype=np.float32).tofile(tmp_path / "x")
    assert subprocess.run([program, f"x=2x3:{tmp_path / 'x'}", f"x!=2x3:{tmp_path / 'x'}", f"y>{tmp_path / 'y'}"]).returncode == 0
    np.testing.assert_array_equal(np.fromfile(tmp_path / "y", np.float32), np.zeros(6))
    done = subprocess.run([program, "x=2x3"], capture_output=True, text=True)
    assert done.returncode == 1 and "'x!'" in done.stderr


@needs_compiler
def test_a_package_for_another_machine(tmp_path):
    """Only the target's own toolchain builds it for use, but it is complete; this machine refuses to open it by name."""
    folder = tcompile.package(compile_artifact(_model("m", ("a", "b"), "Add"), "aarch64-linux"), tmp_path / "p")
    assert "aarch64-linux" in (folder / "include" / "m_model.h").read_text()
    if sysconfig.get_platform().endswith("x86_64"):
        done = subprocess.run([_build(folder, "m")], capture_output=True, text=True)
        assert done.returncode == 1 and "compiled for aarch64" in done.stderr


def test_nothing_is_written_where_it_cannot_be(tmp_path):
    """A folder that exists stays as it is; models that Python runs in part, and wrong names, are refused."""
    artifact = compile_artifact(_model("m", ("a", "b")))
    (tmp_path / "there").mkdir()
    with pytest.raises(tcompile.Error, match="exists already"):
        tcompile.package(artifact, tmp_path / "there")
    with pytest.raises(tcompile.Error, match="no C identifier"):
        tcompile.package(artifact, tmp_path / "p", "my model")
    damaged = bytearray(artifact)
    damaged[artifact.index(b"TCOMPILE") + 40] ^= 1
    with pytest.raises(tcompile.ArtifactError):
        tcompile.package(bytes(damaged), tmp_path / "p")
    text = helper.make_tensor_value_info("s", TensorProto.STRING, [2])
    graph = helper.make_graph([helper.make_node("StringConcat", ["s", "s"], ["t"])], "g", [text], [onnx.ValueInfoProto(name="t")])
    graph.output[0].CopyFrom(helper.make_tensor_value_info("t", TensorProto.STRING, [2]))
    strings = compile_artifact(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))
    with pytest.raises(tcompile.UnsupportedError, match="needs Python"):
        tcompile.package(strings, tmp_path / "p")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_identifiers():
    assert [identifier(text) for text in ("a b/*c", "9lives", "Größe", "", "__x")] == ["a_b_c", "model_9lives", "gr_e", "model", "x"]
