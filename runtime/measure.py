"""Where the time of a run goes: one record for each kernel call."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tcompile.runtime.session import Session, Work
from tcompile.runtime.specs import SiteSpec


@dataclass(frozen=True)
class CallProfile:
    """What one kernel call took in one run, and the ONNX nodes it computes.

    ``seconds``: the median over the runs, ``fastest`` the least. ``turns``: how often it ran in one run. In one run, None where
    unknown: ``flops`` floating-point operations, ``bytes`` of its tensors (each counted once a turn), and ``cycles``, what the
    cost model expects its arithmetic to take on one core. ``record``: the choices of its schedule.
    """

    kernel: str
    nodes: tuple[str, ...]
    seconds: float
    fastest: float
    turns: float
    flops: float | None
    bytes: float | None = None
    cycles: float | None = None
    record: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """One run: ``seconds`` from Python, the median over the runs, ``fastest`` the least; and each kernel call."""

    seconds: float
    fastest: float
    calls: tuple[CallProfile, ...]


def measured_profile(session: Session, arrays: list[np.ndarray], sites: Sequence[SiteSpec], runs: int) -> Profile:
    """Runs once, then ``runs`` times measured, each run's clock readings on their own."""
    whole: list[float] = []
    each = np.zeros((runs, len(sites)))
    turns = [0] * len(sites)
    session.run_all(arrays)
    for run in range(runs):
        session.profile(True)
        start = time.perf_counter()
        session.run_all(arrays)
        whole.append(time.perf_counter() - start)
        measured = session.measured()
        each[run] = [one.nanoseconds / 1e9 for one in measured]
        turns = [one.turns for one in measured]
    work = session.work()
    session.profile(False)
    calls = (_call(*row) for row in zip(sites, each.T, turns, work, strict=True))
    return Profile(float(np.median(whole)), min(whole), tuple(calls))


def _call(site: SiteSpec, seconds: np.ndarray, turns: int, work: Work) -> CallProfile:
    flops, moved, cycles = (None if one is None else one * turns for one in (work.flops, work.bytes, work.cycles))
    return CallProfile(site.kernel, site.nodes, float(np.median(seconds)), float(seconds.min()), turns, flops, moved, cycles, site.record)
