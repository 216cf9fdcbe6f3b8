"""The instructions of a warp: each is declared once, with the fragments its 32 lanes hold and what it computes.

A fragment is what one lane holds of an operand, consecutive elements of a REGISTER buffer. ``place(lane, element)`` is
the row and column of the operand's matrix that an element is (PTX ISA, "Matrix Fragments for mma.m16n8k8" and its
neighbours; g = lane // 4, t = lane % 4 there). ``mma_*`` and ``dot4_*`` add to their first operand.

    tile mma_m16n8k8_tf32(acc[0, 0], a[0], b[0])     acc (16 x 8) += a (16 x 8) b (8 x 8)
    tile ldmatrix_x4(a[0], tile_a[row, column])      four 8 x 16-byte matrices, one row per lane's address

The tensor cores sum the exact products of a tile in an unspecified order and with at least the bits of f32: results agree
with the meaning here to a few units of the last place of the largest partial sum, not to the bit. ``dot4`` and integer ``mma``
are exact (sums wrap).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tcompile.errors import InvalidModelError
from tcompile.ir.dtypes import BF16, F16, F32, I8, I32, U8, DType
from tcompile.ir.loops import Space
from tcompile.ir.tile_spec import LANES, Fragment, Place, TileSpec, assemble, distribute
from tcompile.ir.tileops_warpgroup import WARPGROUP_SPECS


def tile_spec(name: str) -> TileSpec:
    """The declaration of a tile operation. Raises InvalidModelError for an unknown name."""
    found = TILE_OPS.get(name)
    if found is None:
        raise InvalidModelError(f"no tile operation {name!r}", hint=f"one of {', '.join(TILE_OPS)}")
    return found


def tf32(values: np.ndarray) -> np.ndarray:
    """f32 values as a tf32 multiplier reads them: the low 13 bits of the mantissa dropped."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


# Layouts ----------------------------------------------------------------------------------------------------


def _rows_of_a(per: int) -> Place:
    """A of m16n8: registers of ``per`` elements at rows g, g + 8, and again in the right half."""

    def place(lane: int, element: int) -> tuple[int, int]:
        register, part = divmod(element, per)
        return lane // 4 + 8 * (register & 1), per * (lane % 4) + part + 4 * per * (register >> 1)

    return place


def _columns_of_b(per: int) -> Place:
    """B of m16n8: registers of ``per`` elements of column g, and again in the lower half."""

    def place(lane: int, element: int) -> tuple[int, int]:
        register, part = divmod(element, per)
        return per * (lane % 4) + part + 4 * per * register, lane // 4

    return place


def _pairs_of_c(lane: int, element: int) -> tuple[int, int]:
    """C of m16n8: pairs of columns at rows g and g + 8."""
    return lane // 4 + 8 * (element >> 1), 2 * (lane % 4) + (element & 1)


# Instructions -----------------------------------------------------------------------------------------------


def _mma(name: str, a: DType, b: DType, sums: DType, instruction: str) -> TileSpec:
    per = 4 // a.bytes
    places = _pairs_of_c, _rows_of_a(per), _columns_of_b(per)
    wide = np.float64 if sums.is_float else np.int64

    def meaning(fragments: Sequence[np.ndarray]) -> np.ndarray:
        c, x, y = (assemble(part, place) for part, place in zip(fragments, places, strict=True))
        if a == F32:
            x, y = tf32(x), tf32(y)
        with np.errstate(all="ignore"):
            total = c.astype(wide) + x.astype(wide) @ y.astype(wide)
            return distribute(total.astype(sums.numpy), 4, _pairs_of_c)

    fragments = (
        Fragment("c", (sums,), 16, places[0]),
        Fragment("a", (a,), 16, places[1]),
        Fragment("b", (b,), 8, places[2]),
    )
    return TileSpec(name, fragments, meaning, instruction, accumulates=True)


def _ldmatrix(count: int, transposed: bool) -> TileSpec:
    names = (F16, BF16) if transposed else (F16, BF16, I8, U8, F32)

    def meaning(fragments: Sequence[np.ndarray]) -> np.ndarray:
        (rows,) = fragments
        matrices = np.ascontiguousarray(rows)[: 8 * count].reshape(count, 8, -1)
        if transposed:
            matrices = matrices.transpose(0, 2, 1)
        # lane 4*g + t gets the 4 bytes t of row g of each matrix
        return np.ascontiguousarray(matrices.reshape(count, LANES, -1).transpose(1, 0, 2)).reshape(LANES, -1)

    suffix = ".trans" if transposed else ""
    fragments = (Fragment("result", names, 4 * count), Fragment("rows", names, 16, space=Space.SHARED))
    instruction = f"ldmatrix.sync.aligned.m8n8.x{count}{suffix}.shared.b16"
    return TileSpec(f"ldmatrix_x{count}{'_trans' if transposed else ''}", fragments, meaning, instruction)


def _dot4(name: str, a: DType, b: DType, instruction: str) -> TileSpec:
    def meaning(fragments: Sequence[np.ndarray]) -> np.ndarray:
        c, x, y = fragments
        total = c.astype(np.int64) + (x.astype(np.int64) * y.astype(np.int64)).sum(axis=1, keepdims=True)
        return total.astype(np.int32)

    return TileSpec(
        name, (Fragment("c", (I32,), 4), Fragment("a", (a,), 4), Fragment("b", (b,), 4)), meaning, instruction, accumulates=True
    )


def _round_tf32(fragments: Sequence[np.ndarray]) -> np.ndarray:
    (x,) = fragments
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(x), rounded, tf32(np.where(np.isnan(x), np.float32(np.nan), x)))


def _mma_int8(a: DType, b: DType) -> TileSpec:
    short = {I8: "s8", U8: "u8"}
    name = short[a] if a == b else short[a] + short[b]
    return _mma(f"mma_m16n8k32_{name}", a, b, I32, f"mma.sync.aligned.m16n8k32.row.col.s32.{short[a]}.{short[b]}.s32")


def _dot4_int8(a: DType, b: DType) -> TileSpec:
    short = {I8: "s8", U8: "u8"}
    wide = {I8: "s32", U8: "u32"}
    return _dot4(f"dot4_{short[a] if a == b else short[a] + short[b]}", a, b, f"dp4a.{wide[a]}.{wide[b]}")


_PAIRS = ((I8, I8), (U8, U8), (U8, I8), (I8, U8))
_SPECS = (
    _mma("mma_m16n8k8_tf32", F32, F32, F32, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"),
    _mma("mma_m16n8k16_f16", F16, F16, F32, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"),
    _mma("mma_m16n8k16_bf16", BF16, BF16, F32, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"),
    *(_mma_int8(a, b) for a, b in _PAIRS),
    *(_ldmatrix(count, transposed) for transposed in (False, True) for count in (1, 2, 4)),
    *(_dot4_int8(a, b) for a, b in _PAIRS),
    # to the nearest tf32, away from zero from halfway: what mma_m16n8k8_tf32's operands should go through
    TileSpec("round_tf32", (Fragment("result", (F32,), 4), Fragment("x", (F32,), 4)), _round_tf32, "cvt.rna.tf32.f32"),
)
TILE_OPS = {spec.name: spec for spec in (*_SPECS, *WARPGROUP_SPECS)}

__all__ = ["LANES", "TILE_OPS", "Fragment", "TileSpec", "assemble", "distribute", "tf32", "tile_spec"]
