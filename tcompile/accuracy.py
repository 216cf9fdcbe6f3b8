"""Random inputs for a signature, and how far outputs are from a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcompile.errors import InputError

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Draw:
    """How to draw one input: integers uniform in [lo, hi), floats uniform in [lo, hi) too, of ``shape`` where given."""

    lo: float
    hi: float
    shape: tuple[int, ...] | None = None


def random_inputs(inputs: Sequence[Any], sizes: Sizes, draws: Mapping[str, Draw] | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """One array per input (anything with ``name``, ``dtype`` and ``shape``); symbols take ``sizes``, else 2.

    Floats are standard normal and integers 0 or 1 (valid as tokens, masks and indices) unless ``draws`` says more.
    """
    rng = np.random.default_rng(seed)
    return {spec.name: _draw(rng, spec, sizes, (draws or {}).get(spec.name)) for spec in inputs}


def _draw(rng: np.random.Generator, spec: Any, sizes: Sizes, draw: Draw | None) -> np.ndarray:
    dtype = getattr(spec.dtype, "numpy", spec.dtype)
    if dtype is None or np.dtype(dtype).kind == "O":
        raise InputError(f"input {spec.name!r} is no tensor of numbers, and cannot be drawn: {spec}", hint="give its value")
    shape = (
        draw.shape
        if draw and draw.shape is not None
        else tuple(extent if isinstance(extent, int) else sizes.get(str(extent), 2) for extent in spec.shape)
    )
    if np.dtype(dtype).kind in "iu":
        return rng.integers(int(draw.lo) if draw else 0, int(draw.hi) if draw else 2, shape).astype(dtype)
    if np.dtype(dtype).kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    values = rng.uniform(draw.lo, draw.hi, shape) if draw else rng.standard_normal(shape)
    return np.asarray(values).astype(dtype)


def largest_error(got: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """(largest absolute difference, largest finite magnitude of ``expected``). Infinite where shapes, NaNs or infinities differ."""
    if got.shape != expected.shape:
        return float("inf"), 0.0
    a, b = got.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    largest = float(np.abs(b[finite]).max(initial=0.0))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if not np.all(same | (finite & np.isfinite(a))):
        return float("inf"), largest
    with np.errstate(invalid="ignore"):
        return float(np.where(same, 0.0, np.abs(a - b)).max(initial=0.0)), largest


@dataclass(frozen=True)
class Comparison:
    """One output against the float64 interpreter, beside a peer's error where there is one.

    ``unit``: the unit roundoff of a precision that factors of products are rounded to on purpose; 0 for none.
    """

    output: str
    largest: float
    error: float
    peer_error: float | None
    unit: float = 0.0

    @property
    def agrees(self) -> bool:
        """Within 4x the peer's own error plus 1e-6 of the largest magnitude; without a peer, 1e-4 of it.

        A precision adds 16 of its roundings of the largest magnitude: a few layers' worth, as they mostly cancel.
        """
        chosen = 16 * self.unit * self.largest
        if self.peer_error is None:
            return self.error <= 1e-4 * max(self.largest, 1e-30) + chosen
        return self.error <= 4 * self.peer_error + 1e-6 * self.largest + chosen


def compare(
    got: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray], peer: Mapping[str, np.ndarray] | None = None, unit: float = 0.0
) -> list[Comparison]:
    """Every output of a run against the exact one, beside the peer's. ``unit``: see ``Comparison``."""
    rows = []
    for name, expected in exact.items():
        error, largest = largest_error(got[name], expected)
        rows.append(Comparison(name, largest, error, largest_error(peer[name], expected)[0] if peer else None, unit))
    return rows
