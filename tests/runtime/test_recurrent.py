"""Compiled recurrences against ONNX Runtime: all networks, directions and options, at several sizes and thread counts."""

from __future__ import annotations

import numpy as np
import pytest

import tcompile
from tcompile.pipeline import compile_artifact
from tests.onnx_import.test_peer_sequences import ACTIVATIONS, BATCH, GATES, HIDDEN, INPUT, LENGTHS, bias, network, states

onnxruntime = pytest.importorskip("onnxruntime")
ALL = pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
OPS = pytest.mark.parametrize("op", GATES)
FREE = {0: (0, 1), 4: (0,), 5: (1,), 6: (1,)}


def compare(single, *sizes):
    """Our outputs at 1, 2, 3 and 5 threads, which are the same, and ONNX Runtime's, for other (time, batch) too."""
    model, feeds = single.model()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    peer = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    artifact = compile_artifact(model)
    compiled = [tcompile.load(artifact, threads=threads) for threads in (1, 2, 3, 5)]
    for arrays in (feeds, *(resized(feeds, *size) for size in sizes)):
        one, *others = (exe.run(arrays) for exe in compiled)
        if arrays["x0"].size:  # ONNX Runtime refuses sequences of no steps
            for (name, ours), theirs in zip(one.items(), peer.run(None, arrays), strict=True):
                np.testing.assert_allclose(ours, theirs, 1e-4, 1e-5, err_msg=name)
        for other in others:
            for name, array in one.items():
                np.testing.assert_array_equal(other[name], array)


def resized(feeds, time, batch):
    """The same operands for another number of steps and sequences."""
    rng = np.random.default_rng(time + batch)
    found = {}
    for name, array in feeds.items():
        axis = {"x0": 1, "x4": 0}.get(name, 1)
        array = np.take(array, np.arange(batch) % array.shape[axis], axis)
        found[name] = rng.standard_normal((time, batch, INPUT)).astype(np.float32) if name == "x0" else array
    if "x4" in found:
        found["x4"] = np.minimum(found["x4"], time)
    return found


@ALL
@OPS
def test_static_sizes(op, direction):
    compare(network(op, direction, [bias(op, direction), LENGTHS, *states(op, direction)], {}))


@ALL
@OPS
def test_symbolic_sizes(op, direction):
    compare(network(op, direction, [bias(op, direction)], FREE), (1, 1), (13, 2), (0, 3), (4, 37))


@ALL
@OPS
def test_lengths_and_initial_states(op, direction):
    rest = [bias(op, direction), LENGTHS, *states(op, direction)]
    compare(network(op, direction, rest, FREE), (1, 1), (12, 5))


@ALL
def test_variants_of_gates(direction):
    compare(network("GRU", direction, [bias("GRU", direction)], FREE, linear_before_reset=1), (3, 1))
    compare(network("LSTM", direction, [bias("LSTM", direction)], FREE, input_forget=1), (3, 1))
    peepholes = np.ones((1 + (direction == "bidirectional"), 3 * HIDDEN), np.float32)
    rest = [bias("LSTM", direction), None, *states("LSTM", direction), peepholes]
    compare(network("LSTM", direction, rest, FREE), (5, BATCH + 1))


@OPS
def test_other_activations_and_clip(op):
    names = ACTIVATIONS[op] * 2
    numbers = {"activation_alpha": [0.3] * len(names), "activation_beta": [0.4] * len(names)}
    compare(network(op, "bidirectional", [bias(op, "bidirectional")], FREE, activations=names, **numbers), (6, 2))
    compare(network(op, "bidirectional", [bias(op, "bidirectional") * 3], FREE, clip=0.7), (6, 2))
