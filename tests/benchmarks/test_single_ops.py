"""One-operation models: what they compute, what they count, and the command that times them."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from tcompile.benchmarks.model_flops import model_flops
from tcompile.benchmarks.single_ops import OPERATIONS, Ask, build
from tcompile.cli import main
from tcompile.cli_bench_op import NAMES, moved_bytes
from tcompile.errors import InputError
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model

ASKED = {  # what is asked for, the output's shape, and the operations that count
    "conv1d": (Ask((2, 3, 10), channels=5, kernel=(3,)), (2, 5, 10), 2 * 2 * 5 * 10 * 9),
    "conv2d": (Ask((1, 4, 8, 8), channels=6, stride=2, groups=2), (1, 6, 4, 4), 2 * 6 * 16 * 2 * 9),
    "conv_transpose2d": (Ask((1, 4, 5, 5), channels=2, kernel=(2,), stride=2, pad=0), (1, 2, 10, 10), 2 * 4 * 25 * 2 * 4),
    "depthwise": (Ask((1, 4, 8, 8), kernel=(5, 3)), (1, 4, 8, 8), 2 * 4 * 64 * 15),
    "matmul": (Ask((3, 4), channels=5), (3, 5), 2 * 3 * 4 * 5),
    "attention": (Ask((1, 2, 4, 8)), (1, 2, 4, 8), 2 * 2 * 2 * 4 * 4 * 8),
    "softmax": (Ask((3, 7)), (3, 7), 0),
    "layernorm": (Ask((3, 7)), (3, 7), 0),
    "elementwise": (Ask((3, 7), function="Add", other=(7,)), (3, 7), 0),
    "gelu": (Ask((3, 7)), (3, 7), 0),
    "reduce": (Ask((3, 7), axes=(0,)), (1, 7), 0),
    "pool": (Ask((1, 2, 6, 6), kernel=(2,), stride=2, pad=0), (1, 2, 3, 3), 0),
    "transpose": (Ask((2, 3, 5), perm=(1, 2, 0)), (3, 5, 2), 0),
    "resize": (Ask((1, 2, 3, 3), stride=2), (1, 2, 6, 6), 0),
    "lstm": (Ask((4, 1, 6), channels=8), (4, 1, 1, 8), 2 * 4 * 32 * (6 + 8)),
}


def test_every_operation_is_offered_and_tested():
    assert set(ASKED) == set(OPERATIONS) == set(NAMES)


@pytest.mark.parametrize("name", ASKED)
def test_an_operation_alone(name):
    ask, shape, flops = ASKED[name]
    graph = import_model(build(name, ask).SerializeToString())
    inputs = {value.name: np.ones(value.shape, np.float32) for value in graph.inputs}
    (output,) = interpret(graph, inputs).values()
    assert output.shape == shape and model_flops(graph, inputs) == flops


def test_gelu_and_attention_are_what_their_names_say():
    x = np.linspace(-3, 3, 7, dtype=np.float32)
    (y,) = interpret(import_model(build("gelu", Ask((7,))).SerializeToString()), {"x": x}).values()
    np.testing.assert_allclose(y[[0, 3, 6]], [-0.00404969, 0, 2.9959503], rtol=1e-4, atol=1e-6)
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 1, 5, 4)).astype(np.float32)
    (y,) = interpret(import_model(build("attention", Ask((1, 1, 5, 4))).SerializeToString()), {"q": q, "k": k, "v": v}).values()
    scores = np.exp(q[0, 0] @ k[0, 0].T / 2)
    np.testing.assert_allclose(y[0, 0], scores / scores.sum(1, keepdims=True) @ v[0, 0], rtol=1e-5)


def test_bytes_count_inputs_weights_and_output_once():
    assert moved_bytes(build("matmul", Ask((3, 4), channels=5))) == 4 * (12 + 20 + 15)


@pytest.mark.parametrize(
    ("name", "ask"), [("conv2d", Ask((4, 4))), ("matmul", Ask((2, 3), other=(4, 5))), ("conv2d", Ask((1, 3, 4, 4), groups=2))]
)
def test_shapes_that_do_not_fit_are_refused(name, ask):
    with pytest.raises(InputError):
        build(name, ask)


def test_the_command(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("TCOMPILE_BENCH_DIR", str(tmp_path))
    command = ["bench-op", "matmul", "--shape", "8,16", "--channels", "32", "--peer", "onnxruntime", "--seconds", "0"]
    done = CliRunner().invoke(main, [*command, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    ours, theirs = found["rows"]
    assert (ours["engine"], theirs["engine"], found["device"], found["bytes"]) == ("tcompile", "onnxruntime", "cpu", 4 * (128 + 512 + 256))
    assert ours["gflops"] == pytest.approx(2 * 8 * 16 * 32 / ours["ms"] / 1e6) and ours["limit"] > 0 and ours["ratio_to_best_peer"] > 0
    shown = CliRunner().invoke(main, [*command, "--clock", "cpu"], catch_exceptions=False)
    assert "of limit" in shown.output and "CPU time" in shown.output
    refused = CliRunner().invoke(main, ["bench-op", "conv2d", "--shape", "8,16"])
    assert refused.exit_code == 1 and "--shape batch,channels,height,width" in refused.stderr
