"""Recurrent networks against ONNX Runtime."""

import numpy as np
import pytest

from tests.onnx_import.peer import Single, check

onnxruntime = pytest.importorskip("onnxruntime")
TIME, BATCH, INPUT, HIDDEN = 7, 3, 5, 4
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
ALL = pytest.mark.parametrize("direction", DIRECTIONS)
OPS = pytest.mark.parametrize("op", GATES)
FREE = pytest.mark.parametrize("free", [{}, {0: (0, 1), 4: (0,), 5: (1,), 6: (1,)}], ids=["static", "symbolic"])


def normal(*shape):
    return np.random.default_rng(len(shape) + shape[0]).standard_normal(shape).astype(np.float32)


def network(op, direction, rest, free, time=TIME, **attrs):
    """Operands X, W, R, then ``rest`` from B on."""
    count, rows = DIRECTIONS[direction], GATES[op] * HIDDEN
    weights = [normal(count, rows, INPUT), normal(count, rows, HIDDEN)]
    constants = [k for k in (1, 2, 3, 7) if k < 3 + len(rest) and (k < 3 or rest[k - 3] is not None)]
    attrs = {"hidden_size": HIDDEN, "direction": direction, **attrs}
    return Single(op, [normal(time, BATCH, INPUT), *weights, *rest], attrs, constants, 3 if op == "LSTM" else 2, free=free)


def bias(op, direction):
    return normal(DIRECTIONS[direction], 2 * GATES[op] * HIDDEN)


def states(op, direction):
    return [normal(DIRECTIONS[direction], BATCH, HIDDEN) for _ in range(2 if op == "LSTM" else 1)]


LENGTHS = np.array([7, 3, 5], np.int32)


@FREE
@ALL
@OPS
def test_plain(op, direction, free):
    check(network(op, direction, [bias(op, direction)], free))


@FREE
@ALL
@OPS
def test_lengths_and_initial_states(op, direction, free):
    check(network(op, direction, [bias(op, direction), LENGTHS, *states(op, direction)], free))


@ALL
@OPS
def test_without_bias(op, direction):
    check(network(op, direction, [None, LENGTHS], {}))


@ALL
def test_linear_before_reset(direction):
    check(network("GRU", direction, [bias("GRU", direction), LENGTHS, *states("GRU", direction)], {}, linear_before_reset=1))


@ALL
def test_peepholes(direction):
    rest = [bias("LSTM", direction), LENGTHS, *states("LSTM", direction), normal(DIRECTIONS[direction], 3 * HIDDEN)]
    check(network("LSTM", direction, rest, {}))


@ALL
def test_coupled_gates(direction):
    check(network("LSTM", direction, [bias("LSTM", direction)], {}, input_forget=1))


@OPS
def test_clip(op):
    check(network(op, "forward", [bias(op, "forward") * 3], {}, clip=0.7))


ACTIVATIONS = {"RNN": ["HardSigmoid"], "GRU": ["HardSigmoid", "Softsign"], "LSTM": ["HardSigmoid", "Affine", "Softplus"]}


@ALL
@OPS
def test_activations(op, direction):
    names = ACTIVATIONS[op] * DIRECTIONS[direction]
    numbers = {"activation_alpha": [0.3] * len(names), "activation_beta": [0.4] * len(names)}
    check(network(op, direction, [bias(op, direction)], {}, activations=names, **numbers))


@OPS
def test_one_step_needs_no_loop(op):
    check(network(op, "forward", [bias(op, "forward")], {}, time=1))
