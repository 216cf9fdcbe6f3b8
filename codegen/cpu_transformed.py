"""The frame of convolutions that multiply transformed values, of which there are fewer: Winograd's and Strassen's algorithms.

    parallel for (image, block of tiles, share of output blocks):
        V[value][input block][tile][B] = sums of a tile's inputs                                 ``fill``
        for each group of output blocks:
            for each value:  M[value][output block][tile][B] = V[value] * U[value]               ``cpu_transformed_products``
            results = sums of M; epilogue; store                                                 ``results``

A tile is what is transformed together: a square of outputs, or a pair of positions.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.codegen.cpu_epilogue import Epilogue, anchor
from tcompile.codegen.cpu_split import split_task
from tcompile.codegen.cpu_transformed_planes import Planes
from tcompile.codegen.cpu_transformed_products import Products
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import compare
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.graph import Node
from tcompile.ir.loops import LoopKind
from tcompile.ir.target import Target
from tcompile.ir.tiles import FMA, Step, lanes, winograd_tile


@dataclass(frozen=True)
class Work:
    """What an algorithm multiplies: ``values`` products of each of ``count`` tiles, of ``inputs`` and ``outputs`` blocks of channels;
    an input block has ``terms`` terms, each of which takes a ``step``."""

    values: int
    count: DimLike
    inputs: int
    outputs: int
    terms: int
    step: Step = FMA


@dataclass(frozen=True)
class Shares:
    """How work is cut among tasks: where there are fewer than ``tasks`` blocks of tiles, they also share the output channels, and fill
    V again. A share has at least ``few`` of them where tasks are two, ``many`` where they are more; ``group``: those of one pass over V."""

    tasks: int
    few: int
    many: int
    group: int


class TransformedConv:
    """Writes the kernel; subclasses say what is transformed, and how."""

    sections = 1  # of the output blocks, each of which has a result of every product's output block

    def __init__(self, node: Node, scope: Scope, target: Target, name: str) -> None:
        found = anchor(node)
        assert found is not None, node.op
        self.core, self.target = found, target
        self.draft = Draft(name, node, scope)
        self.nest = self.draft.nest
        self.epilogue = Epilogue(self.draft, node, self.core)
        self.x, self.u = self.core.inputs
        self.images, _, *size, self.block = self.core.output.shape
        self.size: Shape = tuple(size)
        self.dtype = self.core.output.dtype.compute
        self.lanes = min(lanes(target, self.dtype), self.block)
        self.per_block = self.block // self.lanes

    # To be given by subclasses ------------------------------------------------------------------------

    def fill(self, image: DimLike, first: DimLike, count: DimLike, v: Planes) -> None:
        """V of ``count`` tiles from the ``first``."""
        raise NotImplementedError

    def results(self, image: DimLike, m: Planes, first: DimLike, count: DimLike, lowest: DimLike, members: DimLike) -> None:
        """Results of ``members`` output blocks from the ``lowest``, for ``count`` tiles from the ``first``."""
        raise NotImplementedError

    def planes(self) -> tuple[Planes, Planes]:
        """The buffers V and M."""
        sizes = (self.together, self.block)
        v = Planes(self.nest, self.dtype, self.work.values, self.work.inputs, *sizes)
        return v, Planes(self.nest, self.dtype, self.work.values, self.group, *sizes)

    def products(self, v: Planes, m: Planes) -> Products:
        """What multiplies."""
        return Products(self, v, m)

    # The frame ----------------------------------------------------------------------------------------

    def cut(self, work: Work, together: int, shares: Shares) -> None:
        """Chooses the sizes of tasks, groups and register tiles; ``together`` tiles are wanted in a block."""
        self.work, self.count, self.inputs, self.outputs = work, work.count, work.inputs, work.outputs
        self.share = self._share(together, shares)
        self.shares = self.outputs // self.share
        channels = work.inputs * work.terms, self.share * self.block
        self.tile, self.together = winograd_tile(self.target, self.count, together, *channels, self.per_block, self.lanes, work.step)
        self.wide = self.tile.vectors // self.per_block
        self.blocks = dims.ceildiv(self.count, self.together, self.nest.ranges)
        self.group = min(max(shares.group // (self.wide * self.block), 1) * self.wide, self.share)

    def _share(self, together: int, shares: Shares) -> int:
        """Output blocks of one task: all, or where there are few blocks of tiles a part that still outweighs filling V."""
        images = self.images if isinstance(self.images, int) else 1  # a single image has to do for all threads, more may repeat a little
        tasks = dims.ceildiv(self.count, together) * images
        wanted = -(-shares.tasks // max(tasks, 1)) if isinstance(tasks, int) else 1
        few, many = shares.few // self.block, shares.many // self.block
        least = max(few, min(many, self.outputs // 2), -(-self.outputs // wanted))
        return next((share for share in range(least, self.outputs) if self.outputs % share == 0), self.outputs)

    def write(self) -> Draft:
        """The whole kernel."""
        nest = self.nest
        with nest.loop(self.images * self.blocks * self.shares, LoopKind.PARALLEL) as task:
            image, block, share = split_task(nest, task, (self.images, self.blocks, self.shares))
            first = block * self.together
            count = dims.minimum(self.together, self.count - first, nest.ranges)
            v, m = self.planes()
            self.fill(image, first, count, v)
            with nest.loop(-(-self.share // self.group)) as group:
                done = group * self.group
                lowest, members = share * self.share + done, dims.minimum(self.group, self.share - done, nest.ranges)
                self.products(v, m).write(lowest, members)
                self.results(image, m, first, count, lowest, members)
            if self.epilogue.pad is not None:
                self._border(image, block, share)
        return self.draft

    def _border(self, image: DimLike, block: DimLike, share: DimLike) -> None:
        """The border around a share's results, written with its first block."""
        with self.nest.branch(compare("eq", block, 0)), self.nest.loops((self.sections, self.share)) as (section, part):
            self.epilogue.store_border(image, section * self.outputs + share * self.share + part)
