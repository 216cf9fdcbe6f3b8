"""Choices that the compiler makes by an estimate: a tile, an algorithm, how much to do at a time.

Each is made by ``choose`` from named options, of which it takes that of the fewest cycles. So one place knows all that was
considered: ``watching`` collects it as frozen records, and ``forcing`` takes other options, to measure them. The names of
options are stable: what was measured once may be forced later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Option(Generic[T]):
    """One way to do something: ``cycles`` is what it is estimated to take, in a measure that all options of a choice share."""

    name: str
    cycles: float
    value: T


@dataclass(frozen=True)
class Choice:
    """What was chosen, by name, of which options with their estimates."""

    what: str
    chosen: str
    options: tuple[tuple[str, float], ...]

    def estimate(self, name: str) -> float:
        """The estimate of an option."""
        return dict(self.options)[name]


_forced: ContextVar[Mapping[str, str]] = ContextVar("forced", default=MappingProxyType({}))
_watcher: ContextVar[list[Choice] | None] = ContextVar("watcher", default=None)


def choose(what: str, options: Iterable[Option[T]]) -> T:
    """The value of the option of the fewest cycles, the first among equals; another where ``forcing`` names one of them."""
    listed = list(options)
    wanted = _forced.get().get(what)
    taken = next((option for option in listed if option.name == wanted), None) or min(listed, key=lambda option: option.cycles)
    watcher = _watcher.get()
    if watcher is not None:
        watcher.append(Choice(what, taken.name, tuple((option.name, option.cycles) for option in listed)))
    return taken.value


@contextmanager
def watching() -> Iterator[list[Choice]]:
    """Collects the choices made inside, in order, each of them as often as it is made."""
    found: list[Choice] = []
    token = _watcher.set(found)
    try:
        yield found
    finally:
        _watcher.reset(token)


@contextmanager
def forcing(names: Mapping[str, str]) -> Iterator[None]:
    """Makes choices take the options of these names, by what they are about, wherever there is such an option."""
    token = _forced.set({**_forced.get(), **names})
    try:
        yield
    finally:
        _forced.reset(token)
