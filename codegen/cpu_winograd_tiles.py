"""Where the tiles of a Winograd convolution lie."""

from __future__ import annotations

from tcompile.codegen.cpu_split import split_task
from tcompile.codegen.nest import Nest
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape


class Tiles:
    """The output tiles of an image: ``outputs`` positions along each axis, ``dilation`` apart.

    Tiles of neighbouring phases stand side by side, so that consecutive ones share cache lines.
    """

    def __init__(self, nest: Nest, outputs: int, size: Shape, dilation: tuple[int, ...]) -> None:
        self.nest, self.outputs, self.size, self.dilation = nest, outputs, size, dilation
        self.grid = tuple(
            count
            for extent, step in zip(size, dilation, strict=True)
            for count in (dims.ceildiv(dims.ceildiv(extent, step, nest.ranges), outputs, nest.ranges), step)
        )
        self.count = dims.product(self.grid)

    def origin(self, tile: DimLike) -> Shape:
        """The position of a tile's first output."""
        places = split_task(self.nest, tile, self.grid)
        return tuple(at * self.outputs * step + phase for at, phase, step in zip(places[::2], places[1::2], self.dilation, strict=True))

    def counts(self, axis: int) -> tuple[int, ...]:
        """What ``inside`` may be along an axis: that of whole tiles and that of the last; none where more is possible."""
        extent, step = self.size[axis], self.dilation[axis]
        if not isinstance(extent, int):
            return ()
        full, rest = divmod(extent, self.outputs * step)
        if rest and step > 1:
            return ()
        return (*((self.outputs,) if full else ()), *((rest,) if rest else ()))

    def inside(self, axis: int, origin: DimLike) -> DimLike:
        """How many of a tile's outputs along an axis are inside the output; an int where all always are."""
        extent, step = self.size[axis], self.dilation[axis]
        if self.counts(axis) == (self.outputs,):
            return self.outputs
        left = dims.ceildiv(extent - origin, step, self.nest.ranges)
        return dims.maximum(dims.minimum(self.outputs, left, self.nest.ranges), 0, self.nest.ranges)
