"""Estimates that decide between loops: how they order what was measured."""

import pytest

from tcompile.ir.blocking import conv_pass, depthwise_columns, pass_cycles, task_rows
from tcompile.ir.target import Target
from tcompile.ir.tiles import Tile, attention_tiles, best_tile

TARGET = Target("test", "x86_64-unknown-linux-gnu", "test", vector_bytes=32, fma_ports=2, fma_latency=4, load_ports=2)


@pytest.mark.parametrize(("blocks", "terms"), [(8, 8), (32, 8), (1, 8), (3, 72)])
def test_weights_that_fit_the_l1_cache_take_one_pass(blocks, terms):
    """Partial sums cost more than they save."""
    assert conv_pass(TARGET, Tile(6, 2, 8), blocks, terms) == blocks


def test_weights_that_fill_the_l2_cache_come_in_passes_that_fit_the_l1_cache():
    tile, blocks, terms = Tile(4, 3, 8), 64, 72
    depth = conv_pass(TARGET, tile, blocks, terms)
    assert depth < blocks
    assert depth * terms * tile.columns * 4 <= TARGET.l1_bytes // 2


def test_every_pass_costs():
    tile, few, many = Tile(6, 2, 8), 16, 4
    assert pass_cycles(TARGET, tile, 32, many, 8) > pass_cycles(TARGET, tile, 32, few, 8) > pass_cycles(TARGET, tile, 32, 32, 8)


def test_rows_that_are_read_again_stay_in_the_l2_cache():
    tile = Tile(6, 2, 8)
    assert task_rows(TARGET, tile, 1500, 4, packed=True) * 1500 * 4 < TARGET.l2_bytes


def test_tasks_that_pack_have_more_rows():
    """A task of 55 rows takes a tenth longer than two of them together."""
    assert task_rows(TARGET, Tile(6, 2, 8), 1500, 4, packed=False) == 128


@pytest.mark.parametrize("terms", [0, 1, 64, 10**6])
def test_rows_that_fit_in_any_number_or_never_are_as_many_as_wanted(terms):
    assert task_rows(TARGET, Tile(6, 2, 8), terms, 4, packed=True) == 128


@pytest.mark.parametrize("what", ["matrix tile", "convolution tile"])
def test_short_sums_take_tiles_that_leave_registers(what):
    """Twelve results wait for each other's stores, eight do not; long sums do not see that, and load less for twelve."""
    short, long = (best_tile(TARGET, 24, 64, 8, terms=terms, what=what) for terms in (64, 1024))
    assert short.rows * short.vectors == 8
    assert long.rows * long.vectors == 12


def test_attention_of_many_keys_reads_them_for_several_rows():
    """Two rows, four vectors wide, would wait for the keys from the L2 cache."""
    first, second = attention_tiles(TARGET, 1500, 1500, 64, 64)
    assert min(first.rows, second.rows) >= 4


@pytest.mark.parametrize(
    ("columns", "most", "kernel", "stride", "expected"),
    [(56, 11, 3, 1, 10), (112, 11, 3, 1, 11), (14, 9, 5, 1, 7), (28, 9, 5, 1, 7), (7, 9, 5, 1, 7), (1, 9, 5, 2, 1)],
)
def test_depthwise_tiles_leave_small_rests(columns, most, kernel, stride, expected):
    assert depthwise_columns(TARGET, columns, most, kernel, stride) == expected
