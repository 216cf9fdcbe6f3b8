"""Winograd's F(4x4, 3x3): sixteen outputs of a 3x3 convolution from 36 products instead of 144.

    Y = At [ (G g Gt) * (Bt d B) ] A        d: 6x6 inputs, g: 3x3 weights, Y: 4x4 outputs, * elementwise

after Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). The points are 0, 3/4, -3/4, 3/2, -3/2 and
infinity, not the usual 0, 1, -1, 2, -2: the error is then that of a direct convolution. A NaN or infinity in an input tile
spreads over the 16 outputs of the tile.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

OUTPUT = 4  # outputs of a tile per axis
INPUT = 6  # inputs, and transformed values
KERNEL = 3
POINTS = (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2))  # and infinity


def _without(skip: int | None) -> np.ndarray:
    """Coefficients, lowest first, of the product of (x - p) over the points but one."""
    poly = [Fraction(1)]
    for number, point in enumerate(POINTS):
        if number != skip:
            poly = [up - point * same for up, same in zip([Fraction(0), *poly], [*poly, Fraction(0)], strict=True)]
    return np.array([float(c) for c in poly] + [0.0] * (INPUT - len(poly)))


def _at(number: int) -> float:
    """The product of (p - q) over the other points q."""
    product = Fraction(1)
    for other, point in enumerate(POINTS):
        if other != number:
            product *= POINTS[number] - point
    return float(product)


INPUT_MATRIX = np.stack([*(_without(k) for k in range(len(POINTS))), _without(None)])  # Bt [6, 6]
OUTPUT_MATRIX = np.array([[float(point**i) for point in POINTS] + [1.0 if i == OUTPUT - 1 else 0.0] for i in range(OUTPUT)])  # At [4, 6]
WEIGHT_MATRIX = np.array(
    [[float(point**i) / _at(k) for i in range(KERNEL)] for k, point in enumerate(POINTS)] + [[0.0, 0.0, 1.0]]
)  # G [6, 3]


def transform_weights(weights: np.ndarray) -> np.ndarray:
    """[O, I, 3, 3] to [36, O, I], computed in f64."""
    wide = np.einsum("xi,ocij,yj->xyoc", WEIGHT_MATRIX, weights.astype(np.float64), WEIGHT_MATRIX, optimize=True)
    return wide.reshape(INPUT * INPUT, *wide.shape[2:]).astype(weights.dtype)


def transform_input(tiles: np.ndarray) -> np.ndarray:
    """Tiles [..., 6, 6] to their 36 values [..., 36]."""
    return (INPUT_MATRIX @ tiles @ INPUT_MATRIX.T).reshape(*tiles.shape[:-2], INPUT * INPUT)


def transform_output(products: np.ndarray) -> np.ndarray:
    """Sums of products [..., 36] to outputs [..., 4, 4]."""
    return OUTPUT_MATRIX @ products.reshape(*products.shape[:-1], INPUT, INPUT) @ OUTPUT_MATRIX.T
