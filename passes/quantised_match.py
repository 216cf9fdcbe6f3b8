"""What quantised values look like: (codes - zero) * scale, under reshapes and transposes; part of ``passes/quantised.py``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcompile.ir.build import Builder
from tcompile.ir.graph import Node, Value
from tcompile.passes.rewrite import Context

MOVES = ("reshape", "transpose")


@dataclass(frozen=True)
class Quantised:
    """An activation (codes - zero) * scale, with 8-bit codes. ``zero`` is known, or an integer scalar of the run."""

    codes: Value
    zero: int | Value
    scale: float


@dataclass(frozen=True)
class Weights:
    """Constant weights codes * scale: integers of which the zero points were subtracted, and factors that broadcast over them."""

    codes: np.ndarray
    scale: np.ndarray


def quantised(value: Value, context: Context, b: Builder) -> Quantised | None:
    """The quantised value that a float (or i32: of scale 1) is the meaning of; codes are moved where the value is."""
    moved = context.producer(value, *MOVES)
    if moved is not None:
        inner = quantised(moved.inputs[0], context, b)
        return inner and Quantised(b.emit(moved.op, inner.codes, **moved.attrs), inner.zero, inner.scale)
    scale = 1.0
    if value.dtype.is_float:
        product = _map(value, "mul", context)
        if product is not None:
            known = context.scalar(product.inputs[1])
            if known is None or not np.isfinite(known) or known <= 0:
                return None
            value, scale = product.inputs[0], float(known)
    value, zero = _without_zero(value, context)
    made = context.producer(value, "convert")
    if made is None or zero is None or not is_code(made.inputs[0]):
        return None
    return Quantised(made.inputs[0], zero, scale)


def is_code(value: Value) -> bool:
    """Whether a value is of 8-bit integers."""
    return value.dtype.is_integer and value.dtype.bits == 8


def _map(value: Value, fn: str, context: Context) -> Node | None:
    made = context.producer(value, "map")
    return made if made is not None and made.attrs["fn"] == fn else None


def _without_zero(value: Value, context: Context) -> tuple[Value, int | Value | None]:
    """The operand of a subtracted zero point, and the zero point; None where something else is subtracted."""
    added = _map(value, "add", context)
    if added is not None:
        known = context.scalar(added.inputs[1])
        return added.inputs[0], None if known is None or known != int(known) else -int(known)
    taken = _map(value, "sub", context)
    if taken is None:
        return value, 0
    known = context.scalar(taken.inputs[1])
    if known is not None:
        return taken.inputs[0], int(known) if known == int(known) else None
    spread = context.producer(taken.inputs[1], "broadcast")
    wide = context.producer(spread.inputs[0], "convert") if spread is not None and spread.inputs[0].rank == 0 else None
    return taken.inputs[0], wide.inputs[0] if wide is not None and is_code(wide.inputs[0]) else None


def constant_weights(value: Value, context: Context) -> Weights | None:
    """The weights that a value of constants stands for."""
    moved = context.producer(value, *MOVES)
    if moved is not None:
        inner = constant_weights(moved.inputs[0], context)
        return inner and Weights(_moved(moved, inner.codes), _moved(moved, np.broadcast_to(inner.scale, inner.codes.shape)))
    scale: np.ndarray | None = np.ones((), np.float32)
    product = _map(value, "mul", context) if value.dtype.is_float else None
    if product is not None:
        value, scale = product.inputs[0], context.constant(product.inputs[1])
    added = _map(value, "add", context)
    offset: np.ndarray | None = np.zeros((), np.float32)
    if added is not None:
        value, offset = added.inputs[0], context.constant(added.inputs[1])
    elif (taken := _map(value, "sub", context)) is not None:
        value, offset = taken.inputs[0], context.constant(taken.inputs[1])
        offset = None if offset is None else -offset
    made = context.producer(value, "convert")
    codes = context.constant(made.inputs[0]) if made is not None and is_code(made.inputs[0]) else None
    if codes is None or scale is None or offset is None or not np.isfinite(scale.astype(np.float64)).all():
        return None
    whole = np.rint(offset)
    if not np.array_equal(whole, offset) or (offset.size and np.abs(whole).max() > 255):
        return None
    return Weights((codes.astype(np.int16) + whole.astype(np.int16)), scale)


def _moved(node: Node, array: np.ndarray) -> np.ndarray:
    return array.transpose(node.attrs["perm"]) if node.op == "transpose" else array.reshape(node.attrs["shape"])


def scale_along(weights: Weights, axes: tuple[int, ...]) -> np.ndarray | None:
    """The scales by index of some axes, of which they depend alone; None where they depend on others."""
    full = np.broadcast_to(weights.scale, weights.codes.shape)
    picked = full[tuple(slice(None) if axis in axes else slice(0, 1) for axis in range(full.ndim))]
    if weights.scale.size > 1 and not np.array_equal(np.broadcast_to(picked, full.shape), full):
        return None
    return picked.reshape([full.shape[axis] for axis in axes])
