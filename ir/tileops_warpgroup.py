"""The instructions of four warps together (sm_90): products of matrices that lie in shared memory, while the warps go on.

    tile wgmma_fence_n256(acc[0])                                  the registers are the multiplier's from here on
    tile wgmma_m64n256k16_bf16_tf(acc[0], a[slot, row, term], b[slot, 0, term, 0])
    tile wgmma_commit()                                            ends a group of products
    tile wgmma_wait1_n256(acc[0])                                  all groups but the newest are done

``acc`` is a part of 64 x n: lane 32 w + l of the four warps holds, of each 8 columns, what ``mma_m16n8k16`` puts into lane l for the
rows 16 w .. 16 w + 15. The last letters of a name say how A and B lie, 16 terms deep, in rows of 128 bytes: ``t``, terms are
neighbours (row r of the matrix is row r of the memory); ``f``, free positions are (64 of them a row, one row for each of 64
terms, then the next 64 positions). Addresses are those of an unswizzled memory; in memory, the 16-byte part c of row r is part
c xor (r mod 8), and buffers begin at multiples of 1024 bytes. Until a group is awaited, its operands may not be written and its
results not be read. What threads wrote to shared memory is seen by the multiplier after ``fence_async`` of the writer and a barrier.

Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions": register fragments, matrix descriptor, 128-byte swizzle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tcompile.ir.dtypes import BF16, F16, F32, DType
from tcompile.ir.loops import Space
from tcompile.ir.tile_spec import WARPGROUP, Fragment, TileSpec, assemble, distribute

ROWS, DEPTH = 64, 16  # of A
ROW_BYTES = 128
ATOM = 64  # positions of a row of memory, and terms that a group of 64 positions has, where these are neighbours
WIDTHS = (64, 128, 256)  # columns of one instruction


def reach(positions: int, *, by_terms: bool) -> int:
    """Bytes from the address of an operand to its end."""
    if by_terms:
        return (positions - 1) * ROW_BYTES + 2 * DEPTH
    return (positions // ATOM - 1) * ATOM * ROW_BYTES + DEPTH * ROW_BYTES


def operand(memory: np.ndarray, start: int, positions: int, *, by_terms: bool) -> np.ndarray:
    """The matrix [positions, 16] at an address, an element of ``memory``, whose first one is at a multiple of 1024 bytes."""
    position, term = np.indices((positions, DEPTH))
    per_row = ROW_BYTES // 2
    row, column = (position, term) if by_terms else (position // ATOM * ATOM + term, position % ATOM)
    return memory.reshape(-1)[swizzled(start + row * per_row + column)]


def swizzled(place: np.ndarray) -> np.ndarray:
    """Where the 2-byte element of an address is: 16-byte parts of each row of 128 bytes change places by the row's number."""
    return place ^ (place // 64 % 8 * 8)


def _place(lane: int, element: int) -> tuple[int, int]:
    return 16 * (lane // 32) + lane % 32 // 4 + 8 * (element >> 1 & 1), 8 * (element >> 2) + 2 * (lane % 4) + (element & 1)


def _product(columns: int, dtype: DType, layouts: str) -> TileSpec:
    by_terms = [letter == "t" for letter in layouts]

    def meaning(fragments: Sequence[np.ndarray]) -> np.ndarray:
        held, *memories = fragments
        a, b = (
            operand(memory, 0, count, by_terms=along).astype(np.float64)
            for memory, count, along in zip(memories, (ROWS, columns), by_terms, strict=True)
        )
        with np.errstate(all="ignore"):
            total = assemble(held, _place).astype(np.float64) + a @ b.T
            return distribute(total.astype(np.float32), columns // 2, _place, WARPGROUP)

    fragments = (
        _sums(columns),
        Fragment("a", (dtype,), reach(ROWS, by_terms=by_terms[0]), space=Space.SHARED),
        Fragment("b", (dtype,), reach(columns, by_terms=by_terms[1]), space=Space.SHARED),
    )
    instruction = f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{dtype.name}.{dtype.name}"
    name = f"wgmma_m64n{columns}k16_{dtype.name}_{layouts}"
    return TileSpec(name, fragments, meaning, instruction, accumulates=True, sm=90, lanes=WARPGROUP)


def _sums(columns: int) -> Fragment:
    return Fragment("c", (F32,), 2 * columns, _place)


def _same(fragments: Sequence[np.ndarray]) -> np.ndarray:
    return fragments[0]


def _order(name: str, columns: int, instruction: str) -> TileSpec:
    """An operation that leaves values as they are: what is done when."""
    return TileSpec(f"{name}_n{columns}", (_sums(columns),), _same, instruction, accumulates=True, sm=90, lanes=WARPGROUP)


def _plain(name: str, instruction: str) -> TileSpec:
    return TileSpec(name, (), _same, instruction, sm=90, lanes=WARPGROUP)


WARPGROUP_SPECS = (
    *(_product(n, dtype, a + b) for dtype in (F16, BF16) for n in WIDTHS for a in "tf" for b in "tf"),
    *(_order("wgmma_fence", n, "wgmma.fence.sync.aligned") for n in WIDTHS),
    *(_order(f"wgmma_wait{left}", n, f"wgmma.wait_group.sync.aligned {left}") for n in WIDTHS for left in (0, 1)),
    _plain("wgmma_commit", "wgmma.commit_group.sync.aligned"),
    _plain("fence_async", "fence.proxy.async.shared::cta"),
)
