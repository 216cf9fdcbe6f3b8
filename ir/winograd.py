"""Winograd's F(m x m, r x r): m * m outputs of a convolution from (m + r - 1)**2 products instead of (m * r)**2.

    Y = At [ (G g Gt) * (Bt d B) ] A        d: n x n inputs (n = m + r - 1), g: r x r weights, Y: m x m outputs, * elementwise

after Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). The points are symmetric: 0, pairs of +-p, and
infinity. For F(4 x 4, 3 x 3) they are 0, +-3/4, +-3/2, not the usual 0, +-1, +-2: the error is then that of a direct convolution,
as it is with 0, +-1 for F(2 x 2, 3 x 3); for larger kernels, 0, +-1/2, +-1, +-2 err some four times as much, and the four pairs
of F(6, 5) along a line five times. A NaN or infinity in an input tile spreads over the outputs of the tile. The same along a single
axis, y = At [ (G g) * (Bt d) ]: m outputs from n products instead of m * r.

A kernel of more taps than r is a sum of pieces: piece k of an axis has the taps from k * r on, and reads inputs so far ahead.

At stride s, the inputs whose position leaves the same rest by s meet the taps of that rest only: a convolution is a sum of s at
stride 1, its phases. F(m, 3) at stride 2 is F(m, 2) of the even inputs and m products of the odd ones: 2 m + 1 products instead of
3 m, as many as the tile has inputs. The points of F(2, 2) are 0, 1 and infinity, those of F(4, 2) 0, +-3/4, 3/2 and infinity: errors of
once and twice those of a direct convolution.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, cached_property

import numpy as np

_WHOLE = {4: (Fraction(1),), 6: (Fraction(1), Fraction(2))}
_PAIRS = {
    4: (Fraction(1),),
    6: (Fraction(3, 4), Fraction(3, 2)),
    8: (Fraction(1, 2), Fraction(1), Fraction(2)),
    10: (Fraction(3, 8), Fraction(7, 8), Fraction(9, 8), Fraction(5, 2)),
}
# where the number of values is odd: a last point without its negative
_ODD_PAIRS = {3: (), 5: (Fraction(3, 4),)}
_LAST = {3: Fraction(1), 5: Fraction(3, 2)}


@dataclass(frozen=True)
class Winograd:
    """One algorithm: ``outputs`` of a tile along each of one or two ``axes``, by ``pieces`` kernels of ``taps`` taps."""

    outputs: int
    taps: int
    axes: int = 2
    pieces: int = 1
    whole: bool = False  # integer points, and integer matrices for inputs and weights: what these lack the outputs' makes up for
    stride: int = 1

    @property
    def inputs(self) -> int:
        """Inputs of a tile per axis, and transformed values."""
        return (self.outputs - 1) * self.stride + self.taps

    @cached_property
    def phases(self) -> tuple[Winograd, ...]:
        """The algorithms along one axis whose sum this one is: that of phase k takes the inputs and the taps k, k + stride, ..."""
        taps = range(self.taps, self.taps - self.stride, -1)
        return tuple(Winograd(self.outputs, -(-count // self.stride), axes=1) for count in taps)

    @property
    def values(self) -> int:
        """Products per tile, piece, input channel and output channel."""
        return self.inputs**self.axes

    @property
    def offsets(self) -> tuple[tuple[int, ...], ...]:
        """The first tap of each piece, along every axis."""
        return tuple(itertools.product(range(0, self.pieces * self.taps, self.taps), repeat=self.axes))

    @property
    def pairs(self) -> tuple[Fraction, ...]:
        """The positive points; their negatives, 0 and infinity are the others."""
        return _WHOLE[self.inputs] if self.whole else {**_PAIRS, **_ODD_PAIRS}[self.inputs]

    @cached_property
    def points(self) -> tuple[Fraction, ...]:
        """The finite points: 0, then each pair, then one alone."""
        alone = (_LAST[self.inputs],) if self.inputs in _LAST else ()
        return (Fraction(0), *(sign * point for point in self.pairs for sign in (1, -1)), *alone)

    @cached_property
    def input_matrix(self) -> np.ndarray:
        """Bt [n, n]."""
        if self.taps == 1:
            return np.eye(self.inputs)  # each output is a product
        if self.stride > 1:
            return self._of_phases([phase.input_matrix for phase in self.phases])
        return np.stack([*(self._without(k) for k in range(len(self.points))), self._without(None)])

    @cached_property
    def output_matrix(self) -> np.ndarray:
        """At [m, n]."""
        if self.taps == 1:
            return np.eye(self.outputs)
        if self.stride > 1:
            return np.concatenate([phase.output_matrix for phase in self.phases], axis=1)
        rows = range(self.outputs)
        finite = [[float(point**i) * self.factor(k) for k, point in enumerate(self.points)] for i in rows]
        return np.array([[*row, 1.0 if i == self.outputs - 1 else 0.0] for i, row in enumerate(finite)])

    @cached_property
    def weight_matrix(self) -> np.ndarray:
        """G [n, r]."""
        if self.taps == 1:
            return np.ones((self.inputs, 1))
        if self.stride > 1:
            return self._of_phases([phase.weight_matrix for phase in self.phases])
        taps = range(self.taps)
        finite = [[float(point**i) / (1 if self.whole else self._at(k)) for i in taps] for k, point in enumerate(self.points)]
        return np.array([*finite, [0.0] * (self.taps - 1) + [1.0]])

    def _of_phases(self, parts: list[np.ndarray]) -> np.ndarray:
        """The matrices of the phases below each other, their columns ``stride`` apart."""
        joined = np.zeros((sum(len(part) for part in parts), sum(part.shape[1] for part in parts)))
        start = 0
        for phase, part in enumerate(parts):
            joined[start : start + len(part), phase :: self.stride] = part
            start += len(part)
        return joined

    def _without(self, skip: int | None) -> np.ndarray:
        """Coefficients, lowest first, of the product of (x - p) over the points but one."""
        poly = [Fraction(1)]
        for number, point in enumerate(self.points):
            if number != skip:
                poly = [up - point * same for up, same in zip([Fraction(0), *poly], [*poly, Fraction(0)], strict=True)]
        return np.array([float(c) for c in poly] + [0.0] * (self.inputs - len(poly)))

    def factor(self, number: int) -> float:
        """What the outputs multiply the sums of a finite point by."""
        return 1 / self._at(number) if self.whole else 1.0

    def _at(self, number: int) -> float:
        """The product of (p - q) over the other points q."""
        product = Fraction(1)
        for other, point in enumerate(self.points):
            if other != number:
                product *= self.points[number] - point
        return float(product)

    def transform_weights(self, weights: np.ndarray) -> np.ndarray:
        """[O, I, k, k] to [n * n, O, pieces, I], or [O, I, k] to [n, O, pieces, I], computed in f64; taps behind the last are zero."""
        missing = self.pieces * self.taps - weights.shape[-1]
        full = np.pad(weights.astype(np.float64), ((0, 0), (0, 0), *((0, missing),) * self.axes))
        places = ((slice(None), slice(None), *(slice(at, at + self.taps) for at in offset)) for offset in self.offsets)
        g, parts = self.weight_matrix, np.stack([full[place] for place in places], axis=1)
        taps = np.ascontiguousarray(parts.reshape(-1, self.taps**self.axes).T)
        wide = (g if self.axes == 1 else np.kron(g, g)) @ taps
        return wide.reshape(self.values, *parts.shape[:3]).astype(weights.dtype)

    def transform_input(self, tiles: np.ndarray) -> np.ndarray:
        """Tiles [..., n, n] to their values [..., n * n], or [..., n] to [..., n]."""
        bt = self.input_matrix
        if self.axes == 1:
            return tiles @ bt.T
        return (bt @ tiles @ bt.T).reshape(*tiles.shape[:-2], self.values)

    def transform_output(self, products: np.ndarray) -> np.ndarray:
        """Sums of products [..., n * n] to outputs [..., m, m], or [..., n] to [..., m]."""
        at = self.output_matrix
        if self.axes == 1:
            return products @ at.T
        return at @ products.reshape(*products.shape[:-1], self.inputs, self.inputs) @ at.T


# What a kernel of this many taps per axis is computed by: large tiles, and small ones, which have fewer weights and fit small outputs.
BY_KERNEL = {3: (Winograd(4, 3), Winograd(2, 3)), 5: (Winograd(4, 5),), 7: (Winograd(5, 4, pieces=2),)}
LINES = {5: (Winograd(6, 5),)}  # along a single axis besides
STRIDED = {(3, 2): (Winograd(4, 3, stride=2), Winograd(2, 3, stride=2))}  # by taps and stride

# of 3x3 kernels on codes, by the number of values: of 16 bits, sums of 32
WHOLE = {form.values: form for form in (Winograd(4, 3, whole=True), Winograd(2, 3, whole=True))}


@cache
def forms_of(kernel: int, axes: int, stride: int = 1) -> tuple[Winograd, ...]:
    """The algorithms for a kernel of so many taps along one or two axes; none where nothing is known to be faster."""
    strided = STRIDED.get((kernel, stride), ())
    forms = BY_KERNEL.get(kernel, ()) + (LINES.get(kernel, ()) if axes == 1 else ()) if stride == 1 else strided
    return tuple(replace(form, axes=axes) for form in forms)


def form_of(kernel: int, axes: int, outputs: int, stride: int = 1) -> Winograd | None:
    """The one of ``forms_of`` with tiles of ``outputs`` outputs per axis; None where there is none."""
    return next((form for form in forms_of(kernel, axes, stride) if form.outputs == outputs), None)
