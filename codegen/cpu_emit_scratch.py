"""Where STACK buffers live: small constant ones in the function's frame, others at offsets of the scratch area."""

from __future__ import annotations

from dataclasses import dataclass, field

from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.loops import Alloc, Block, For, If, Kernel, Space, While

ALIGNMENT = 64
FRAME_BUFFER = 1024  # a buffer up to here may be in the frame
FRAME_TOTAL = 2048  # frames stay under a page: none must be probed


@dataclass
class Scratch:
    """``offsets``: bytes from the scratch pointer by id of the Alloc; None: in the frame. ``total``: bytes needed."""

    offsets: dict[int, DimLike | None] = field(default_factory=dict)
    total: DimLike = 0
    frame: int = 0


def bytes_of(alloc: Alloc) -> DimLike:
    """The size of a buffer, rounded up so that the next one is aligned."""
    size = dims.product(alloc.shape) * alloc.dtype.bytes
    return dims.ceildiv(size, ALIGNMENT) * ALIGNMENT


def plan(kernel: Kernel) -> Scratch:
    """Places all STACK buffers; those of sibling blocks share memory."""
    scratch = Scratch()
    _block(kernel.body, 0, scratch)
    return scratch


def _block(block: Block, top: DimLike, scratch: Scratch) -> None:
    for stmt in block:
        if isinstance(stmt, Alloc) and stmt.space is Space.STACK:
            top = _place(stmt, top, scratch)
        elif isinstance(stmt, For | While):
            _block(stmt.body, top, scratch)
        elif isinstance(stmt, If):
            _block(stmt.then, top, scratch)
            _block(stmt.otherwise, top, scratch)


def _place(alloc: Alloc, top: DimLike, scratch: Scratch) -> DimLike:
    size = bytes_of(alloc)
    if isinstance(size, int) and size <= FRAME_BUFFER and scratch.frame + size <= FRAME_TOTAL:
        scratch.offsets[id(alloc)] = None
        scratch.frame += size
        return top
    scratch.offsets[id(alloc)] = top
    scratch.total = dims.maximum(scratch.total, top + size)
    return top + size
