"""Where the time of a run goes: one record for each kernel call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tcompile.runtime.session import Measured, Session, Work
from tcompile.runtime.specs import SiteSpec


@dataclass(frozen=True)
class CallProfile:
    """What one kernel call took in one run, and the ONNX nodes it computes.

    ``seconds``: the median over the runs, ``fastest`` the least. ``turns``: how often it ran in one run. In one run, None where
    unknown: ``flops`` floating-point operations, ``bytes`` of its tensors (each counted once a turn), and ``cycles``, what the
    cost model expects its arithmetic to take on one core. ``record``: the choices of its schedule.

    ``busy``: seconds of the parts that threads shared, together, and ``span``: on the thread with the most, of the fastest run that
    way; 0 where the calling thread did all. So ``busy / span`` is the speed-up that the partition allows.
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
    busy: float = 0.0
    span: float = 0.0


@dataclass(frozen=True)
class Profile:
    """One run: ``seconds`` from Python, the median over the runs, ``fastest`` the least; and each kernel call."""

    seconds: float
    fastest: float
    calls: tuple[CallProfile, ...]


_NOW = {"wall": time.perf_counter, "cpu": time.thread_time}


def measured_profile(
    session: Session,
    arrays: list[np.ndarray],
    sites: Sequence[SiteSpec],
    runs: int,
    clock: str,
    before: Callable[[], object] | None = None,
) -> Profile:
    """Runs once, then ``runs`` times measured, each run's readings of the clock ("wall", "cpu") on their own.

    ``before`` is called ahead of each measured run.
    """
    whole: list[float] = []
    each: list[list[Measured]] = []
    session.run_all(arrays)
    for _ in range(runs):
        if before is not None:
            before()
        session.profile(clock)
        start = _NOW[clock]()
        session.run_all(arrays)
        whole.append(_NOW[clock]() - start)
        each.append(session.measured())
    work = session.work()
    session.profile(None)
    calls = (_call(*row) for row in zip(sites, zip(*each, strict=True), work, strict=True)) if sites else ()
    return Profile(float(np.median(whole)), min(whole), tuple(calls))


def _call(site: SiteSpec, measured: Sequence[Measured], work: Work) -> CallProfile:
    turns, seconds = measured[-1].turns, [one.nanoseconds / 1e9 for one in measured]
    flops, moved, cycles = (None if one is None else one * turns for one in (work.flops, work.bytes, work.cycles))
    known = (site.kernel, site.nodes, float(np.median(seconds)), min(seconds), turns, flops, moved, cycles, site.record)
    best = min(measured, key=lambda one: one.span)
    return CallProfile(*known, best.busy / 1e9, best.span / 1e9)
