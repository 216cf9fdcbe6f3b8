"""Choices between named options: the least estimate, ties, forcing, and the record of all."""

from tcompile.ir.choices import Choice, Option, choose, forcing, watching

TILES = (Option("4x3", 6.2, (4, 3)), Option("6x2", 5.0, (6, 2)), Option("8x1", 5.0, (8, 1)))


def test_the_least_estimate_is_chosen_the_first_among_equals():
    assert choose("tile", TILES) == (6, 2)
    assert choose("tile", TILES[::-1]) == (8, 1)


def test_an_option_is_forced_where_it_is_one():
    with forcing({"tile": "4x3", "algorithm": "direct"}):
        assert choose("tile", TILES) == (4, 3)
        assert choose("tile", TILES[1:]) == (6, 2)
        with forcing({"tile": "8x1"}):
            assert choose("tile", TILES) == (8, 1)
        assert choose("width", TILES) == (6, 2)
    assert choose("tile", TILES) == (6, 2)


def test_what_was_considered_is_recorded():
    choose("tile", TILES)
    with watching() as seen, forcing({"tile": "4x3"}):
        choose("tile", TILES)
        choose("width", iter(TILES[:1]))
    choose("tile", TILES)
    assert seen == [Choice("tile", "4x3", (("4x3", 6.2), ("6x2", 5.0), ("8x1", 5.0))), Choice("width", "4x3", (("4x3", 6.2),))]
    assert seen[0].estimate("6x2") == 5.0
