"""What a tile operation is: fragments that lanes hold, where their elements lie in a matrix, and the meaning on all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tcompile.ir.dtypes import DType
from tcompile.ir.loops import Space

LANES = 32
WARPGROUP = 128  # lanes of four warps that multiply together
Place = Callable[[int, int], tuple[int, int]]
Meaning = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Fragment:
    """One operand. ``bytes`` are those of a lane; a SHARED one is the address of a row of 16 bytes that each lane gives,
    or, for four warps, of a matrix, the same for all of them; ``bytes`` is then how far it reaches."""

    name: str
    dtypes: tuple[DType, ...]
    bytes: int
    place: Place | None = None
    space: Space = Space.REGISTER

    def elements(self, dtype: DType) -> int:
        """How many elements of a dtype a lane holds."""
        return self.bytes // dtype.bytes


@dataclass(frozen=True)
class TileSpec:
    """One instruction. The first fragment is the result; with ``accumulates`` it is read too.

    ``meaning`` maps arrays [32, elements] (the result's old content included where it is read) to the new result.
    ``instruction`` is its PTX, ``sm`` the oldest architecture that has it; ``lanes`` take part in it, 32 or 128.
    """

    name: str
    fragments: tuple[Fragment, ...]
    meaning: Meaning
    instruction: str
    accumulates: bool = False
    sm: int = 80
    lanes: int = LANES


def assemble(fragments: np.ndarray, place: Place) -> np.ndarray:
    """The matrix of an operand from the [lanes, elements] that the lanes hold."""
    places = [[place(lane, element) for element in range(fragments.shape[1])] for lane in range(len(fragments))]
    shape = tuple(1 + max(at[axis] for row in places for at in row) for axis in range(2))
    matrix = np.zeros(shape, fragments.dtype)
    for lane, row in enumerate(places):
        for element, at in enumerate(row):
            matrix[at] = fragments[lane, element]
    return matrix


def distribute(matrix: np.ndarray, elements: int, place: Place, lanes: int = LANES) -> np.ndarray:
    """The [lanes, elements] that the lanes hold of a matrix."""
    return np.array([[matrix[place(lane, element)] for element in range(elements)] for lane in range(lanes)], matrix.dtype)
