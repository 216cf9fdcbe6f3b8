"""Outputs in the memory of earlier outputs: only once nobody refers to those any more."""

import sys

import numpy as np
import pytest

from tcompile import runtime
from tcompile.runtime import outputs
from tcompile.runtime.outputs import OutputMemory
from tests.runtime import native_models as models
from tests.runtime.native_models import WEIGHT

ROWS = 20_000  # 240 kB of output
LARGE = (300, 101)
F32 = np.dtype(np.float32)

pytestmark = pytest.mark.skipif(not outputs._COUNTED, reason="references are counted under CPython's interpreter lock only")


def _memory(count=1, shape=LARGE):
    memory = OutputMemory()
    memory.prepare([int(np.prod(shape)) * 4] * count)
    return memory


def _address(array):
    return array.__array_interface__["data"][0]


def test_a_dropped_output_serves_the_next():
    memory = _memory()
    first = memory.empty(LARGE, F32)
    place = _address(first)
    del first
    again = memory.empty(LARGE, F32)
    assert _address(again) == place and again.shape == LARGE and again.dtype == F32
    assert again.flags.writeable and again.flags.c_contiguous and place % 64 == 0


HOLDERS = {
    "itself": lambda array: array,
    "a view": lambda array: array[3:, ::2],
    "a view of a view": lambda array: array.T[5:][:, 3:9],
    "another type": lambda array: array.view(np.int32)[:1],
    "a memoryview": memoryview,
    "a capsule": lambda array: array.__dlpack__(),
    "an iterator": lambda array: array.flat,
    "a row of a list": lambda array: list(array)[2],
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_memory_that_anything_refers_to_is_left_alone(holder):
    memory = _memory()
    first = memory.empty(LARGE, F32)
    place, held = _address(first), HOLDERS[holder](first)
    del first
    assert _address(memory.empty(LARGE, F32)) != place
    del held


def test_a_loop_that_feeds_outputs_back_takes_two_generations():
    """The outputs of a run are held until the next has made its own."""
    memory, held, places = _memory(3), None, []
    for _ in range(9):
        held = [memory.empty(LARGE, F32) for _ in range(3)]
        places.append(tuple(map(_address, held)))
    assert places[0::2] == [places[0]] * 5 and places[1::2] == [places[1]] * 4
    assert len({*places[0], *places[1]}) == 6


def test_what_callers_keep_is_not_remembered():
    memory = _memory(2)
    kept = [memory.empty(LARGE, F32) for _ in range(50)]
    assert len({_address(array) for array in kept}) == 50
    assert memory.bytes <= 4 * (kept[0].nbytes * 9 // 8 + 64)


def test_growing_sizes_find_room_and_other_sizes_are_forgotten():
    memory, places = OutputMemory(), set()
    for length in range(1000, 1100):
        memory.prepare([length * 400])
        places.add(_address(memory.empty((length, 100), F32)))
    assert len(places) <= 3
    memory.prepare([4])
    assert memory.bytes == 0


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1023, 1 << 16, (1 << 16) + 1, 123_456_789])
def test_blocks_hold_their_size_and_an_eighth_more_at_most(size):
    assert size <= outputs._capacity(size) <= size * 9 / 8


def test_small_outputs_and_unannounced_ones_are_numpys():
    memory = _memory()
    assert memory.empty((3,), F32).base is None
    assert memory.empty((999, 999), F32).base is None
    assert OutputMemory().maker is np.empty


def _pair(seed):
    return list(np.random.default_rng(seed).standard_normal((2, ROWS, 3), dtype=np.float32))


@pytest.mark.parametrize("by_name", [True, False])
def test_results_of_earlier_runs_keep_their_values(by_name):
    adder = runtime.load(models.add_artifact(), threads=1)
    made = []
    for seed in range(6):
        x, y = _pair(seed)
        made.append(adder.run({"x": x, "y": y} if by_name else [x, y])["sum"][1:])
    for seed, tail in enumerate(made):
        x, y = _pair(seed)
        assert np.array_equal(tail, (x + y + WEIGHT)[1:])
    adder.close()
    assert np.array_equal(made[0], (lambda x, y: x + y + WEIGHT)(*_pair(0))[1:])


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted by Linux")
def test_runs_in_a_loop_touch_no_new_page():
    resource = pytest.importorskip("resource")
    adder = runtime.load(models.add_artifact(), threads=1)
    x, y = _pair(1)
    inputs = {"x": x, "y": y}
    for _ in range(5):
        result = adder.run(inputs)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        result = adder.run(inputs)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 50  # 59 pages of output in each run
    assert adder.memory().outputs >= result["sum"].nbytes
