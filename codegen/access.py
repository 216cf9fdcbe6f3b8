"""Index arithmetic of row-major tensors: flat indices and back, and reshapes without needless divisions."""

from __future__ import annotations

from collections.abc import Sequence

from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Ranges, Shape, floordiv, mod, product


def ravel(indices: Sequence[DimLike], shape: Sequence[DimLike]) -> DimLike:
    """The row-major position of an element."""
    flat: DimLike = 0
    for index, extent in zip(indices, shape, strict=True):
        flat = flat * extent + index
    return flat


def unravel(flat: DimLike, shape: Sequence[DimLike], ranges: Ranges) -> Shape:
    """The indices of the element at a row-major position, which must be in range."""
    if 0 in shape:
        return (0,) * len(shape)  # there is no element: code that never runs
    indices: list[DimLike] = []
    for k, extent in enumerate(shape):
        inner = product(shape[k + 1 :])
        upper = flat if inner == 1 else floordiv(flat, inner, ranges)
        first = all(outer == 1 for outer in shape[:k])
        indices.append(0 if extent == 1 else upper if first else mod(upper, extent, ranges))
    return tuple(indices)


def strides(shape: Sequence[DimLike]) -> Shape:
    """Elements between neighbours along each axis."""
    return tuple(product(shape[k + 1 :]) for k in range(len(shape)))


def reshaped(indices: Shape, shape: Shape, source: Shape, ranges: Ranges) -> Shape:
    """The indices in ``source`` of the element at ``indices`` of ``shape``, two shapes of one size.

    Runs of axes with equal products are translated on their own: [n, a, b] -> [n, a*b] divides j alone, and n
    passes through.
    """
    result: list[DimLike] = []
    for mine, theirs in groups(shape, source):
        flat = ravel([indices[k] for k in mine], [shape[k] for k in mine])
        result += unravel(flat, [source[k] for k in theirs], ranges)
    return tuple(result)


def groups(a: Shape, b: Shape) -> list[tuple[range, range]]:
    """The finest common partition of the axes of two shapes of one size into runs of equal product."""
    found: list[tuple[range, range]] = []
    i = j = start_i = start_j = 0
    left: DimLike = 1
    right: DimLike = 1
    while i < len(a) or j < len(b):
        if i > start_i and j > start_j and left == right and not (i < len(a) and a[i] == 1):
            found.append((range(start_i, i), range(start_j, j)))
            start_i, start_j, left, right = i, j, 1, 1
        elif j < len(b) and (i == len(a) or _behind(right, left) or (left == right and j == start_j)):
            right = right * b[j]
            j += 1
        elif i < len(a):
            left = left * a[i]
            i += 1
        else:
            break
    found.append((range(start_i, len(a)), range(start_j, len(b))))
    return found


def _behind(a: DimLike, b: DimLike) -> bool:
    """Whether product a should take its next factor before b does."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    if a == b:
        return False
    return _divides(a, b)


def _divides(a: DimLike, b: DimLike) -> bool:
    return dims.mod(b, a) == 0 if a != 0 else False
