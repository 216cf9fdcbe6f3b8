"""Strassen's product of matrices cut into halves: seven products of quarters instead of eight.

    C = A B,  A = [[a11, a12], [a21, a22]], B and C likewise:
    M[v] = (sum of INPUTS[v, .] a) (sum of WEIGHTS[v, .] b)      v in 0 .. 6
    c    = sum of OUTPUTS[., v] M[v]                             quarters in the order 11, 12, 21, 22

after Strassen, "Gaussian elimination is not optimal" (1969). Winograd's form of it has fewer additions on paper, but those of the
weights are made once here, the others hide behind loads and stores, and its sums of sums err half as much again. A pointwise
convolution is such a product: rows are positions, cut into every other one, columns of A are input channels and those of B
output channels, cut in the middle. The error is some twice that of a direct sum; a NaN or infinity spreads over two positions.
"""

from __future__ import annotations

import numpy as np

INPUTS = np.array([[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [-1, 0, 1, 0], [0, 1, 0, -1]], np.float64)
WEIGHTS = np.array([[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]], np.float64)
OUTPUTS = np.array([[1, 0, 0, 1, -1, 0, 1], [0, 0, 1, 0, 1, 0, 0], [0, 1, 0, 1, 0, 0, 0], [1, -1, 1, 0, 0, 1, 0]], np.float64)
VALUES = 7


def transform_weights(packed: np.ndarray) -> np.ndarray:
    """[O/B, I/B, B of I, B of O], of even numbers of blocks, to [7, O/2B, 1, I/2B, B, B], computed in f64."""
    outputs, inputs = (count // 2 for count in packed.shape[:2])
    wide = packed.astype(np.float64)
    quarters = np.stack([wide[:outputs, :inputs], wide[outputs:, :inputs], wide[:outputs, inputs:], wide[outputs:, inputs:]])
    return np.tensordot(WEIGHTS, quarters, 1)[:, :, None].astype(packed.dtype)
