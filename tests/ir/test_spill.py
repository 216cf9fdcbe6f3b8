"""Large computed weights move to files, and keep their values there."""

from __future__ import annotations

import gc
import mmap

import ml_dtypes
import numpy as np
import pytest

from tcompile.ir import spill
from tcompile.ir.spill import SMALLEST, kept, release, spilling


def array(megabytes=2, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (megabytes, SMALLEST)).astype(np.uint8)


def filed(a):
    return isinstance(spill._owner(a), mmap.mmap)


def test_nothing_moves_outside():
    a = array()
    assert kept(a) is a


def test_what_fits_the_budget_stays():
    with spilling(5 * SMALLEST):
        first, second, third = array(2), array(2), array(2)
        assert kept(first) is first and kept(second) is second
        moved = kept(third)
        assert filed(moved) and not filed(first)
        np.testing.assert_array_equal(moved, third)


def test_an_array_counts_once_and_until_it_is_gone():
    with spilling(4 * SMALLEST):
        a, b = array(2), array(2)
        for _ in range(3):
            assert kept(a) is a and kept(a[:1]).base is not None
        assert kept(b) is b and filed(kept(array(2)))
        del a
        gc.collect()
        c = array(2)
        assert kept(c) is c


def test_small_arrays_do_not_count():
    with spilling(0):
        a = np.zeros(SMALLEST - 1, np.uint8)
        assert kept(a) is a


def test_a_mapped_file_is_left_alone(tmp_path):
    array().tofile(tmp_path / "w")
    mapped = np.memmap(tmp_path / "w", np.float32, "r")
    with spilling(0):
        assert kept(mapped) is mapped and kept(mapped[1:].reshape(-1, 1)).base is not None
        assert not filed(mapped.copy()) and filed(kept(mapped.copy()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.bool_, np.int8, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize("form", [lambda a: a, lambda a: a.T, lambda a: a[:, ::2]])
def test_values_types_and_shapes_stay(dtype, form):
    a = form(np.random.default_rng(0).integers(0, 2, (1024, 2048)).astype(dtype))
    with spilling(0):
        moved = kept(a)
    assert filed(moved) and moved.dtype == a.dtype and moved.shape == a.shape and not moved.flags.writeable
    np.testing.assert_array_equal(moved.astype(np.float64), a.astype(np.float64))


def test_released_memory_is_read_again():
    a = array(4)
    with spilling(0):
        moved = kept(a)
    for part in (moved, moved[1:3], moved[:, ::3], a):
        release(part)
        np.testing.assert_array_equal(moved, a)


def test_files_end_with_their_arrays(tmp_path):
    with spilling(0, str(tmp_path)):
        moved = kept(array())
    assert filed(moved) and not list(tmp_path.iterdir())
