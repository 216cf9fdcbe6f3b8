"""Models that do not fit in memory twice, or at all."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tcompile
from tests.onnx_import.test_wire import model

HERE = Path(__file__).parent
_SPACE = 5 << 30


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files, and a process' peak memory in KiB")
def test_a_model_of_more_than_two_gigabytes_compiles_in_little_memory():
    """Neither its file nor its artifact is held in memory; the files do not outlive the test."""
    with tempfile.TemporaryDirectory() as folder:
        if shutil.disk_usage(folder).free < _SPACE:
            pytest.skip("needs 5 GiB of free disk space")
        done = subprocess.run([sys.executable, HERE / "big_model.py", folder], capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout)
    assert sizes["artifact"] > sizes["weights"] > 1 << 31
    assert sizes["peak"] - sizes["start"] < sizes["weights"] / 10
    assert sizes["error"] < 1e-4


_FOLDED = """
import resource, sys
import tcompile
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tcompile.compile_file(sys.argv[1], sys.argv[2], memory=0)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a process' peak memory in KiB")
def test_computed_weights_do_not_add_up_in_memory(tmp_path):
    """Sixteen matrices of 16 MB, folded one after the other, take the memory of a few."""
    rng, side, count = np.random.default_rng(0), 2048, 16
    tensors = [numpy_helper.from_array(rng.standard_normal((side, side), np.float32), f"w{k}") for k in range(count)]
    nodes, last = [], "x"
    for k in range(count):
        nodes += [helper.make_node("Transpose", [f"w{k}"], [f"t{k}"]), helper.make_node("MatMul", [last, f"t{k}"], [f"h{k}"])]
        last = f"h{k}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, side]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "m.onnx")
    del tensors
    done = subprocess.run(
        [sys.executable, "-c", _FOLDED, tmp_path / "m.onnx", tmp_path / "m.tcm"], capture_output=True, text=True, cwd=HERE.parent
    )
    assert done.returncode == 0, done.stderr
    weights = side * side * 4
    assert int(done.stdout) < 6 * weights + (48 << 20) < count * weights


def test_the_budget_changes_nothing_but_memory(tmp_path):
    made = model(np.random.default_rng(0).standard_normal((1024, 512)).astype(np.float32))
    onnx.save(made, tmp_path / "m.onnx")
    for memory in (0, 1 << 30):
        tcompile.compile_file(tmp_path / "m.onnx", tmp_path / f"{memory}.tcm", memory=memory)
    assert (tmp_path / "0.tcm").read_bytes() == (tmp_path / f"{1 << 30}.tcm").read_bytes()
