"""How the outputs of a conformance case are judged: ONNX's own criterion, and the two kinds of cases it cannot judge.

``RANDOM`` cases draw numbers, which ONNX takes from NumPy's generator: they are judged by shape, element type, range
and moments. ``NOISY`` cases expect the rounding error of the program that made them; they get a tolerance of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_DEVIATIONS = 4  # standard deviations that a mean may lie from its expectation: one run in 16000 by chance
_BFLOAT16_RTOL = 2**-6  # two units in the last place, as in onnx.backend.test.runner

# Values that are 0 and that NumPy's FFT, in f32, gives as 1.9e-7; ours gives 3e-15, which is the better answer.
NOISY = {"node/test_dft_inverse": 1e-6, "node/test_dft_inverse_opset19": 1e-6}


@dataclass(frozen=True)
class Case:
    """One test: a model with data sets of inputs and expected outputs."""

    name: str
    kind: str
    rtol: float
    atol: float

    @property
    def key(self) -> str:
        """Names repeat between kinds."""
        return f"{self.kind}/{self.name}"


def judge(case: Case, inputs: Sequence[Any], got: Sequence[Any], expected: Sequence[Any]) -> None:
    """Raises AssertionError where outputs are wrong."""
    assert len(got) == len(expected), f"{len(got)} outputs, expected {len(expected)}"
    check = RANDOM.get(case.key)
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        _same_kind(f"output {k}", a, b)
        if check is None:
            _close(f"output {k}", a, b, case.rtol, NOISY.get(case.key, case.atol))
    if check is not None:
        check(inputs, got)


def _same_kind(what: str, a: Any, b: Any) -> None:
    """Tensors of one element type and shape, sequences of one length, or two absent optionals."""
    if b is None:
        assert a is None, f"{what} is there, expected none"
    elif isinstance(b, list | tuple):
        assert isinstance(a, list | tuple) and len(a) == len(b), f"{what} is {a!r}, expected a sequence of {len(b)}"
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            _same_kind(f"{what}[{k}]", x, y)
    else:
        assert isinstance(a, np.ndarray), f"{what} is a {type(a).__name__}, expected a tensor"
        b = np.asarray(b)
        strings = b.dtype.kind in "OU"
        assert a.dtype == (object if strings else b.dtype), f"{what} has dtype {a.dtype}, expected {b.dtype}"
        assert a.shape == b.shape, f"{what} has shape {a.shape}, expected {b.shape}"


def _close(what: str, a: Any, b: Any, rtol: float, atol: float) -> None:
    if b is None:
        return
    if isinstance(b, list | tuple):
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            _close(f"{what}[{k}]", x, y, rtol, atol)
        return
    b = np.asarray(b)
    if b.dtype.kind in "OU":
        np.testing.assert_array_equal(a, b.astype(object), err_msg=what)
        return
    if b.dtype.name == "bfloat16":
        rtol = max(rtol, _BFLOAT16_RTOL)
    if b.dtype.kind in "fV" or b.dtype.name.startswith(("bfloat", "float")):
        a, b = a.astype(np.float64), b.astype(np.float64)
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=what)


# Random operators -----------------------------------------------------------------------------------------------


def _mean_is(values: np.ndarray, probabilities: np.ndarray) -> None:
    """The mean of draws of 0 and 1 against their probabilities."""
    deviation = math.sqrt(float((probabilities * (1 - probabilities)).sum())) / values.size
    error = abs(float(values.mean()) - float(probabilities.mean()))
    assert error <= _DEVIATIONS * deviation, f"the mean is {error:.3g} from its expectation, {_DEVIATIONS} deviations are {deviation:.3g}"


def _bernoulli(inputs: Sequence[Any], got: Sequence[np.ndarray]) -> None:
    """Ones with the probabilities given."""
    draws, probabilities = got[0].astype(np.float64), np.asarray(inputs[0], np.float64)
    assert np.isin(draws, (0, 1)).all(), f"draws of a Bernoulli variable are {draws}"
    assert draws[probabilities == 0].sum() == 0 and draws[probabilities == 1].all()
    _mean_is(draws, probabilities)


def _dropout(inputs: Sequence[Any], got: Sequence[np.ndarray]) -> None:
    """Elements are dropped with the ratio given, the others scaled by 1 / (1 - ratio); the mask says which."""
    x, ratio = inputs[0], float(inputs[1])
    kept = got[0] != 0 if len(got) == 1 else got[1]
    np.testing.assert_allclose(got[0], np.where(kept, x / (1 - ratio), 0), rtol=1e-6)
    _mean_is(kept, np.full(x.shape, 1 - ratio))


RANDOM: dict[str, Callable[[Sequence[Any], Sequence[np.ndarray]], None]] = {
    **dict.fromkeys(
        (f"node/test_bernoulli{form}{suffix}" for form in ("", "_double", "_seed") for suffix in ("", "_expanded")), _bernoulli
    ),
    **dict.fromkeys((f"node/test_training_dropout{form}" for form in ("", "_default", "_mask", "_default_mask")), _dropout),
}
