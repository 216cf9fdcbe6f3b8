"""Tiles of matrix products on a GPU: which sizes there are, and which suits a product."""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.ir.dims import DimLike
from tcompile.ir.target import GpuTarget

MANY = 1024  # what a symbolic extent is planned for
_SPLIT_TERMS = 128  # terms that a part of a split sum has at least
_MOST_PARTS = 16
_TOGETHER = 2  # blocks of a multiprocessor, which hide each other's waiting
_ENOUGH_THREADS = 256  # of a multiprocessor
LAUNCH_SECONDS = 2e-6  # of a kernel behind another one in a graph
MEETING_SECONDS = 1e-6  # of the blocks of a cluster, until each reads what the others wrote


@dataclass(frozen=True)
class BlockTile:
    """The results of a block, rows x columns, those of a thread, and the terms that are in shared memory at once."""

    rows: int
    columns: int
    thread_rows: int
    thread_columns: int
    terms: int = 16
    efficiency: float = 1.0  # of its multiplications, against the largest tile

    @property
    def threads(self) -> int:
        return (self.rows // self.thread_rows) * (self.columns // self.thread_columns)


TILES = (
    BlockTile(128, 128, 8, 8, efficiency=1.0),
    BlockTile(128, 64, 8, 8, efficiency=0.95),
    BlockTile(64, 128, 8, 8, efficiency=0.95),
    BlockTile(64, 64, 8, 4, efficiency=0.85),
    BlockTile(32, 128, 4, 8, efficiency=0.8),
    BlockTile(32, 64, 4, 4, efficiency=0.7),
    BlockTile(64, 32, 4, 4, efficiency=0.7),
    BlockTile(32, 32, 4, 4, efficiency=0.55),
    BlockTile(16, 64, 4, 4, efficiency=0.5),
)


def choose(target: GpuTarget, rows: DimLike, columns: DimLike, terms: DimLike, batch: DimLike) -> tuple[BlockTile, int]:
    """The tile with the least estimated time, and into how many parts the sum is split where the grid is small."""
    m, n, k, repeats = (extent if isinstance(extent, int) else MANY for extent in (rows, columns, terms, batch))
    if not isinstance(batch, int):
        repeats = 8
    best: tuple[float, BlockTile, int] | None = None
    for tile in TILES:
        blocks = max(-(-m // tile.rows) * -(-n // tile.columns) * repeats, 1)
        for parts in split_parts(target, blocks, k, split=all(isinstance(extent, int) for extent in (rows, columns, terms, batch))):
            share = -(-k // parts)
            waves = -(-blocks * parts // target.sms)
            extra = split_seconds(target, parts, m * n * repeats) * target.f32_flops / target.sms / 2
            time = waves * tile.rows * tile.columns * (share + 24) / (tile.efficiency * busy(waves * tile.threads)) + extra
            if best is None or time < best[0]:
                best = time, tile, parts
    assert best is not None
    return best[1], best[2]


def busy(threads: int) -> float:
    """The share of its speed that a multiprocessor reaches with this many threads: few cannot hide each other's waiting."""
    return min(1.0, 0.5 + threads / (2 * _ENOUGH_THREADS))


def split_seconds(target: GpuTarget, parts: int, results: int) -> float:
    """What splitting sums costs: results of parts are written and read once more, after a meeting or by a second kernel."""
    if parts == 1:
        return 0.0
    return (MEETING_SECONDS if parts <= target.cluster else LAUNCH_SECONDS) + 2 * parts * results * 4 / target.bandwidth


def split_parts(target: GpuTarget, blocks: int, terms: int, *, split: bool) -> list[int]:
    """Into how many parts a sum may be split, up to two blocks for each multiprocessor; one where the blocks fill the machine anyway."""
    most = min(_TOGETHER * target.sms // blocks, terms // _SPLIT_TERMS, _MOST_PARTS) if split and blocks < target.sms else 1
    return [1, *range(2, most + 1)]
