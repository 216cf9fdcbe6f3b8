"""Engines taking turns, and what their paired times say.

In a round each engine has one turn; rounds differ in who begins. A ratio pairs the turns of one round, which saw the same
machine. Rounds go on until the ratio is known well enough, or the time is over.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

OURS = "tcompile"
LEAST_ROUNDS, MOST_ROUNDS = 5, 60
ENOUGH = 0.01  # the lower bound's distance from the ratio at which more rounds are not worth their time
SAMPLE_MS = {"wall": 0.1, "cpu": 0.5}  # shorter runs are timed several at once: reading the clock takes time too
TURN_MS = 200.0  # several runs of most models: their median passes over what disturbs one
_RESAMPLES = 2000
_LEVEL = 5.0  # percentile of the resampled ratios: what the ratio exceeds with 95%


class Timed(Protocol):
    """What takes turns: ``runs`` samples of ``batch`` runs, in ms."""

    def run(self, runs: int, batch: int = 1, clock: str = "wall") -> list[float]: ...


@dataclass
class Times:
    """Milliseconds by engine: ``turns`` the median of each round's turn, ``samples`` all."""

    turns: dict[str, list[float]] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """How many rounds there were."""
        return len(next(iter(self.turns.values()), ()))

    def add(self, name: str, samples: Sequence[float]) -> None:
        """One engine's turn."""
        self.turns.setdefault(name, []).append(statistics.median(samples))
        self.samples.setdefault(name, []).extend(samples)


def take_turns(engines: Mapping[str, Timed], seconds: float, clock: str = "wall") -> Times:
    """Times of all engines. ``seconds`` is for all rounds together; five there are in any case."""
    plans = {name: _plan(engine, clock) for name, engine in engines.items()}
    times, names, start = Times(), list(engines), time.perf_counter()
    while times.rounds < MOST_ROUNDS:
        first = times.rounds % len(names)
        for name in (*names[first:], *names[:first]):
            times.add(name, engines[name].run(*plans[name], clock))
        if times.rounds >= LEAST_ROUNDS and (time.perf_counter() - start > seconds or _settled(times)):
            break
    return times


def _plan(engine: Timed, clock: str) -> tuple[int, int]:
    """(samples, runs of a sample) of a turn."""
    once = max(min(engine.run(2, 1, "wall")), 1e-3)
    batch = max(round(SAMPLE_MS[clock] / once), 1)
    return max(min(round(TURN_MS / (once * batch)), 50), 1), batch


def _settled(times: Times) -> bool:
    found = best_ratio(times)
    return times.rounds >= 2 * LEAST_ROUNDS and (found is None or found[0] - found[1] < ENOUGH * found[0])


def best_ratio(times: Times) -> tuple[float, float] | None:
    """(ratio, lower 95% bound) of the best peer's time over ours: medians over the rounds; None without peers.

    The bound is a bootstrap over rounds: the 5th percentile of the ratio in resampled rounds, the best peer chosen in each.
    """
    ours = np.array(times.turns[OURS])
    peers = [np.array(turns) / ours for name, turns in times.turns.items() if name != OURS]
    if not peers:
        return None
    ratios = np.array(peers)  # [peer, round]
    picks = np.random.default_rng(0).integers(0, ratios.shape[1], (_RESAMPLES, ratios.shape[1]))
    resampled = np.median(ratios[:, picks], axis=2).min(axis=0)
    return float(np.median(ratios, axis=1).min()), float(np.percentile(resampled, _LEVEL))


def geometric_mean(values: Sequence[float]) -> float | None:
    """The geometric mean; None of nothing."""
    return float(np.exp(np.mean(np.log(values)))) if values else None
