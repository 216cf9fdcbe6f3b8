"""What a run of the suite shows as it goes: a live line on a terminal, else a line now and then; failures at once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY_CASES, EVERY_SECONDS = 100, 10.0  # between lines, where there is no terminal: whichever comes first


@dataclass(frozen=True)
class Result:
    """One case: ``reason`` is why it failed, empty where it passed; ``ulp`` the largest error, where it was asked for and is one."""

    key: str
    reason: str
    seconds: float
    ulp: float | None = None


def shown(results: Iterable[Result], total: int) -> Iterator[Result]:
    """Passes results on, and shows them."""
    console = Console(soft_wrap=True, highlight=False)
    return _live(results, total, console) if console.is_terminal else _lines(results, total, console)


def _failure(console: Console, result: Result) -> None:
    console.print(f"failed: {result.key}: {result.reason} ({result.seconds:.1f} s)", markup=False)


def _live(results: Iterable[Result], total: int, console: Console) -> Iterator[Result]:
    counts = TextColumn("[green]{task.fields[passed]} passed[/] [red]{task.fields[failed]} failed[/]")
    last = TextColumn("[dim]{task.fields[last]}")
    columns = (BarColumn(), MofNCompleteColumn(), counts, TimeElapsedColumn(), TimeRemainingColumn(), last)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total, passed=0, failed=0, last="")
        passed = failed = 0
        for result in results:
            failed, passed = failed + bool(result.reason), passed + (not result.reason)
            if result.reason:
                _failure(progress.console, result)
            progress.update(task, advance=1, passed=passed, failed=failed, last=result.key)
            yield result


def _lines(results: Iterable[Result], total: int, console: Console) -> Iterator[Result]:
    start = said = time.monotonic()
    passed = failed = 0
    for result in results:
        failed, passed = failed + bool(result.reason), passed + (not result.reason)
        if result.reason:
            _failure(console, result)
        now, done = time.monotonic(), passed + failed
        if done % EVERY_CASES == 0 or now - said >= EVERY_SECONDS or done == total:
            console.print(f"{done} of {total}: {passed} passed, {failed} failed, {now - start:.0f} s, last {result.key}", markup=False)
            said = now
        yield result
