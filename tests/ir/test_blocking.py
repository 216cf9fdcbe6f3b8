"""Estimates that decide between loops: how they order what was measured."""

import pytest

from tcompile.ir.blocking import conv_pass, even_parts, pass_cycles, row_tile, task_rows
from tcompile.ir.target import Target
from tcompile.ir.tiles import Tile, attention_tiles, best_tile, direct_cycles, winograd_cycles, winograd_together
from tcompile.ir.winograd import form_of

TARGET = Target("test", "x86_64-unknown-linux-gnu", "test", vector_bytes=32, fma_ports=2, fma_latency=4, load_ports=2)
F4 = form_of(3, 2, 4, 1)


@pytest.mark.parametrize(("blocks", "terms"), [(8, 8), (32, 8), (1, 8), (3, 72)])
def test_weights_that_fit_the_l1_cache_take_one_pass(blocks, terms):
    """Partial sums cost more than they save."""
    assert conv_pass(TARGET, Tile(6, 2, 8), blocks, terms, 100) == blocks


def test_weights_that_fill_the_l2_cache_come_in_passes_that_fit_the_l1_cache():
    tile, blocks, terms = Tile(4, 3, 8), 64, 72
    depth = conv_pass(TARGET, tile, blocks, terms, 16)
    assert depth < blocks
    assert depth * terms * tile.columns * 4 <= TARGET.l1_bytes // 2


def test_weights_that_a_single_tile_reads_take_one_pass():
    """They come from afar anyway, and once."""
    assert conv_pass(TARGET, Tile(4, 3, 8), 64, 72, 1) == 64


def test_every_pass_costs():
    tile, few, many = Tile(6, 2, 8), 16, 4
    assert pass_cycles(TARGET, tile, 32, many, 8, 9) > pass_cycles(TARGET, tile, 32, few, 8, 9) > pass_cycles(TARGET, tile, 32, 32, 8, 9)


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


@pytest.mark.parametrize(("columns", "kernel", "stride"), [(56, 3, 1), (112, 3, 2), (28, 5, 1), (28, 31, 1), (33, 9, 1), (96, 1, 1)])
def test_depthwise_tiles_hide_the_latency_of_additions(columns, kernel, stride):
    """And stay in registers, beside the weights and one input."""
    tile = row_tile(TARGET, columns, kernel, kernel, stride, 1)
    smallest = min(size for _, _, size in even_parts(columns, tile.columns))
    assert smallest >= TARGET.fma_ports * TARGET.fma_latency
    assert tile.columns + tile.taps + 1 <= TARGET.vector_registers


@pytest.mark.parametrize(("columns", "kernel"), [(1, 1), (7, 5), (14, 3), (0, 3)])
def test_few_columns_are_one_row_or_equal_parts(columns, kernel):
    tile = row_tile(TARGET, max(columns, 1), kernel, kernel, 1, 1)
    assert tile.columns <= max(columns, 1)
    assert tile.columns + tile.taps + 1 <= TARGET.vector_registers


def test_a_single_row_of_a_kernel_is_cut_into_equal_parts():
    """Two unequal ones would be one loop, whose common inputs take registers."""
    assert 14 % row_tile(TARGET, 64, 1, 14, 1, 1).taps == 0


@pytest.mark.parametrize(("total", "most"), [(0, 3), (1, 3), (28, 10), (14, 13), (56, 12), (7, 7), (31, 6)])
def test_even_parts_cover_all_once(total, most):
    covered = [start + k * size + j for start, number, size in even_parts(total, most) for k in range(number) for j in range(size)]
    assert covered == list(range(total))
    assert all(size <= most for _, _, size in even_parts(total, most))


@pytest.mark.parametrize(("tiles", "inputs", "outputs"), [(196, 64, 64), (784, 64, 64), (4096, 24, 24)])
def test_transformed_values_stay_in_the_l2_cache(tiles, inputs, outputs):
    """Those of few channels: blocks of 49 tiles of 64 channels took a twentieth longer than blocks of 14."""
    together = winograd_together(TARGET, F4, tiles, inputs, outputs, 1, 8)
    assert F4.values * 4 * together * (inputs + outputs) < TARGET.l2_bytes * 2 // 3


@pytest.mark.parametrize(("tiles", "inputs", "outputs"), [(49, 32, 128), (60, 64, 128)])
def test_few_tiles_of_many_weights_are_one_block(tiles, inputs, outputs):
    """Two would read the weights twice."""
    assert winograd_together(TARGET, F4, tiles, inputs, outputs, 1, 8) == tiles


@pytest.mark.parametrize(("tiles", "channels", "taken"), [(4, 16, True), (16, 8, True), (1, 8, False)])
def test_winograd_pays_for_few_channels_but_not_for_few_results(tiles, channels, taken):
    """``tiles`` of 16 results; a single one of 7 positions wastes most of what it computes."""
    positions = 16 * tiles if taken else 7
    assert (winograd_cycles(TARGET, F4, tiles, channels, channels) < direct_cycles(TARGET, positions, 9, channels, channels)) == taken
