"""How a kernel is launched: the extents of its outermost grid and block loops, which the kernel's text does not repeat."""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.errors import InvalidModelError
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.loops import Block, For, Kernel, Let, LoopKind

MAX_THREADS = 1024  # of a block. Source: CUDA C++ Programming Guide, technical specifications per compute capability


@dataclass(frozen=True)
class LaunchShape:
    """Extents as (x, y, z): of the grid over the kernel's dims, of a block as numbers."""

    grid: tuple[DimLike, DimLike, DimLike]
    block: tuple[int, int, int]

    @property
    def threads(self) -> int:
        """Threads of one block."""
        x, y, z = self.block
        return x * y * z


def launch_shape(kernel: Kernel) -> LaunchShape:
    """The launch of a kernel whose body is one nest of grid loops, then block loops, with lets between them; x is the innermost.

    Raises InvalidModelError for a kernel of another form: a bug of whoever scheduled it.
    """
    grid: list[DimLike] = []
    block: list[DimLike] = []
    body: Block = kernel.body
    while (loop := _only_loop(body)) is not None and loop.kind in (LoopKind.GRID, LoopKind.BLOCK):
        if loop.kind is LoopKind.GRID and block:
            raise _malformed(kernel, f"the grid loop {loop.var} stands inside a block loop")
        (grid if loop.kind is LoopKind.GRID else block).append(loop.extent)
        body = loop.body
    if not grid and not block:
        raise _malformed(kernel, "its body is no nest of grid and block loops")
    if len(grid) > 3 or len(block) > 3:
        raise _malformed(kernel, "more than three grid or block loops")
    if not all(dims.symbols(extent) <= set(kernel.dims) for extent in grid):
        raise _malformed(kernel, "a grid extent needs more than the kernel's dims")
    if not all(isinstance(extent, int) for extent in block):
        raise _malformed(kernel, "a block extent is no number")
    shape = LaunchShape(_padded(grid), _padded(block))
    if not 1 <= shape.threads <= MAX_THREADS:
        raise _malformed(kernel, f"a block of {shape.threads} threads")
    return shape


def _only_loop(body: Block) -> For | None:
    """The loop that a block consists of, besides lets before it."""
    rest = [stmt for stmt in body if not isinstance(stmt, Let)]
    return rest[0] if len(rest) == 1 and isinstance(rest[0], For) and body[-1] is rest[0] else None


def _padded(extents: list) -> tuple:
    x_first = extents[::-1]
    return (*x_first, *(1,) * (3 - len(x_first)))


def _malformed(kernel: Kernel, why: str) -> InvalidModelError:
    return InvalidModelError(f"kernel {kernel.name} cannot be launched: {why}")
