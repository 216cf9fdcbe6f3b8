"""Compiled models at several thread counts: the same bits, no more threads than asked for, none for small work."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import tcompile
from tcompile import runtime
from tcompile.accuracy import random_inputs
from tcompile.benchmarks.single_ops import Ask, build
from tcompile.pipeline import compile_artifact

DEMO = Path(tcompile.__file__).parent / "demo" / "digits.onnx"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
COUNTS = (1, 2, 3, 5)

OPERATIONS = {  # sizes that several threads share, with rests that fill no tile
    "conv2d": Ask((1, 33, 45, 39), channels=47),
    "conv2d strided": Ask((2, 20, 41, 41), channels=40, kernel=(5,), stride=2),
    "conv2d pointwise": Ask((1, 50, 37, 29), channels=70, kernel=(1,)),
    "conv1d": Ask((1, 24, 1001), channels=40),
    "conv_transpose2d": Ask((1, 17, 23, 23), channels=19, kernel=(4,), stride=2, pad=1),
    "depthwise": Ask((1, 70, 51, 47)),
    "matmul": Ask((131, 257), channels=311),
    "matmul activations": Ask((3, 65, 127), channels=129, constant=False),
    "matmul vector": Ask((1, 1021), channels=2053),
    "attention": Ask((1, 5, 131, 32)),
    "softmax": Ask((127, 1031)),
    "layernorm": Ask((255, 769)),
    "gelu": Ask((301, 1027)),
    "reduce rows": Ask((517, 1013), axes=(1,)),
    "reduce columns": Ask((1013, 517), axes=(0,)),
    "reduce all": Ask((1009, 517), axes=(0, 1)),
    "pool": Ask((1, 65, 63, 61)),
    "transpose": Ask((601, 509)),
    "resize": Ask((1, 33, 41, 43), stride=2),
    "lstm": Ask((9, 3, 65), channels=131),
}


def outputs_at(artifact, inputs, threads):
    with runtime.load(artifact, threads=threads) as executable:
        assert executable.threads == threads
        return [array.tobytes() for array in executable.run(inputs).values()]


def check_same_bits(artifact, sizes=None):
    with runtime.load(artifact) as executable:
        inputs = random_inputs(executable.inputs, sizes or {})
    first, *others = (outputs_at(artifact, inputs, threads) for threads in COUNTS)
    assert first and all(other == first for other in others)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_have_the_same_bits(name):
    check_same_bits(compile_artifact(build(name.split()[0], OPERATIONS[name])))


@pytest.mark.parametrize("batch", [1, 37])
def test_the_demo_has_the_same_bits(batch):
    check_same_bits(compile_artifact(str(DEMO)), {"batch": batch})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "resnet50"])
def test_real_networks_have_the_same_bits(name):
    check_same_bits(compile_artifact(str(LIGHT / f"light_{name}.onnx")))


COUNT_THREADS = r"""
import json, sys, threading, time
from pathlib import Path
import numpy as np
from tcompile import runtime

def threads():
    return len(list(Path("/proc/self/task").iterdir()))

request = json.loads(sys.stdin.read())
models = [runtime.load(path, threads=request["threads"]) for path in request["models"]]
inputs = [{spec.name: np.ones(spec.shape, spec.dtype) for spec in model.inputs} for model in models]
start, most = threads(), 0

def work(model, arrays):
    global most
    for _ in range(request["runs"]):
        model.run(arrays)
        most = max(most, threads())

pairs = list(zip(models, inputs)) * request["callers"]
if len(pairs) == 1:
    work(*pairs[0])
else:
    callers = [threading.Thread(target=work, args=pair) for pair in pairs]
    [caller.start() for caller in callers]
    [caller.join() for caller in callers]
    deadline = time.monotonic() + 60
    while threads() - start >= request["threads"] and time.monotonic() < deadline:
        time.sleep(0.01)  # a thread that was joined may still be on its way out
print(json.dumps({"started": threads() - start, "most": most - start}))
"""


def count_threads(tmp_path, models, threads, runs=5, callers=1):
    """(threads that runs left behind, the most at a time), in a process of its own."""
    paths = []
    for number, (name, ask) in enumerate(models):
        paths.append(str(tmp_path / f"{number}.tcm"))
        Path(paths[-1]).write_bytes(compile_artifact(build(name, ask)))
    request = json.dumps({"models": paths, "threads": threads, "runs": runs, "callers": callers})
    done = subprocess.run([sys.executable, "-c", COUNT_THREADS], input=request, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return found["started"], found["most"]


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
SMALL, LARGE = ("softmax", Ask((4, 64))), ("matmul", Ask((131, 257), channels=311))


@needs_proc
def test_small_work_starts_no_thread(tmp_path):
    assert count_threads(tmp_path, [SMALL], threads=4) == (0, 0)
    assert count_threads(tmp_path, [LARGE], threads=4) == (3, 3)


@needs_proc
def test_sessions_share_their_threads(tmp_path):
    """Two models, run by six callers at once: the workers of one pool, and the callers themselves."""
    started, most = count_threads(tmp_path, [LARGE, ("conv2d", Ask((1, 33, 45, 39)))], threads=3, runs=20, callers=3)
    assert started == 2 and most <= 2 + 6


def test_a_small_model_gives_the_same_bits_from_several_callers():
    """Runs at once leave threads to each other: how many work on a kernel changes from run to run."""
    import threading

    artifact = compile_artifact(build("matmul", LARGE[1]))
    x = np.random.default_rng(0).standard_normal((131, 257)).astype(np.float32)
    executable, found = runtime.load(artifact, threads=4), []
    expected = executable.run([x])["y"].tobytes()
    callers = [threading.Thread(target=lambda: found.extend(executable.run([x])["y"].tobytes() for _ in range(20))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 80 and set(found) == {expected}
