"""Turns and ratios, on engines whose times are given."""

import numpy as np
import pytest

from tcompile.benchmarks import rounds
from tcompile.benchmarks.rounds import Times, best_ratio, geometric_mean, take_turns


class Given:
    """An engine that takes what it is told to; notes the order of turns."""

    def __init__(self, name, times, log):
        self.name, self.times, self.log = name, iter(times), log
        self.last = None

    def run(self, runs, batch=1, clock="wall"):
        self.last = next(self.times, self.last)
        self.log.append((self.name, runs, batch, clock))
        return [self.last] * runs


def test_rounds_differ_in_who_begins_and_end_with_the_time():
    log = []
    engines = {name: Given(name, [10.0], log) for name in ("tcompile", "a", "b")}
    times = take_turns(engines, 0.0, "cpu")
    turns = [name for name, *_ in log[3:]]
    assert turns == ["tcompile", "a", "b", "a", "b", "tcompile", "b", "tcompile", "a", "tcompile", "a", "b", "a", "b", "tcompile"]
    assert times.rounds == rounds.LEAST_ROUNDS and {clock for *_, clock in log[3:]} == {"cpu"}


def test_short_runs_are_timed_together():
    """A sample of 0.1 ms of runs of 1 us has 100 of them; a run of 200 ms is a turn on its own."""
    log = []
    take_turns({"tcompile": Given("tcompile", [0.001], log), "a": Given("a", [200.0], log)}, 0.0)
    assert {(name, runs, batch) for name, runs, batch, _ in log[2:]} == {("tcompile", 50, 100), ("a", 1, 1)}


def test_rounds_end_when_the_ratio_is_known():
    log = []
    times = take_turns({"tcompile": Given("tcompile", [1.0], log), "a": Given("a", [2.0], log)}, 1e9)
    assert times.rounds == 2 * rounds.LEAST_ROUNDS and best_ratio(times) == (2.0, 2.0)


def test_the_best_peer_decides():
    times = Times({"tcompile": [2.0] * 5, "a": [3.0] * 5, "b": [2.5] * 5}, {})
    assert best_ratio(times) == (1.25, 1.25)
    assert best_ratio(Times({"tcompile": [2.0]}, {})) is None


def test_pairing_cancels_what_all_saw():
    """A machine that becomes slower within the rounds leaves the ratio as it is."""
    drift = np.linspace(1, 3, 9)
    ratio, lower = best_ratio(Times({"tcompile": list(drift), "a": list(1.5 * drift)}, {}))
    assert ratio == pytest.approx(1.5) and lower == pytest.approx(1.5)


@pytest.mark.parametrize("noise", [0.02, 0.2])
def test_the_bound_holds_in_95_of_100_cases(noise):
    """Of repeated benchmarks with the true ratio 1.2, about five in a hundred have a bound above it."""
    rng = np.random.default_rng(3)
    above = 0
    for _ in range(200):
        ours, theirs = rng.lognormal(0, noise, 15), 1.2 * rng.lognormal(0, noise, 15)
        above += best_ratio(Times({"tcompile": list(ours), "a": list(theirs)}, {}))[1] > 1.2
    assert above <= 30  # 10 expected; the bootstrap of 15 rounds is a little eager


def test_the_geometric_mean():
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0) and geometric_mean([]) is None
