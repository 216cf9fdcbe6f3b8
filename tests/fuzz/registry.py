"""The operations that graphs are drawn from."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.draw import GraphDraw

Operation = Callable[[GraphDraw], None]
OPERATIONS: list[Operation] = []


def operation(weight: int = 1) -> Callable[[Operation], Operation]:
    """Registers an operation, to be drawn ``weight`` times as often as others."""

    def add(function: Operation) -> Operation:
        OPERATIONS.extend([function] * weight)
        return function

    return add
