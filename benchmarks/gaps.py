"""Our kernels beside a peer's operations, joined by the ONNX nodes that both compute, so that the biggest gap is named.

Fusion differs between engines. An operation is compared with the kernels that compute the nodes whose results it makes; where
it computes heavy nodes of several kernels these are compared together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tcompile.benchmarks.peer_times import PeerOp
from tcompile.runtime import CallProfile


@dataclass
class Group:
    """Kernel calls and the peer's operations that do the same; seconds are the least over the runs."""

    calls: list[CallProfile] = field(default_factory=list)
    operations: list[PeerOp] = field(default_factory=list)

    @property
    def ours(self) -> float:
        """Seconds of the calls."""
        return sum(call.fastest for call in self.calls)

    @property
    def theirs(self) -> float:
        """Seconds of the operations."""
        return sum(op.fastest for op in self.operations)

    @property
    def gap(self) -> float:
        """Seconds that ours take longer."""
        return self.ours - self.theirs

    @property
    def name(self) -> str:
        """The longest call, else the longest operation."""
        if self.calls:
            return max(self.calls, key=lambda call: call.fastest).kernel
        return max(self.operations, key=lambda op: op.fastest).kind

    @property
    def nodes(self) -> list[str]:
        """The ONNX nodes of the calls; without calls, those of the operations."""
        found = [node for call in self.calls for node in call.nodes] or [node for op in self.operations for node in op.anchors]
        return list(dict.fromkeys(found))


def join(calls: Sequence[CallProfile], operations: Sequence[PeerOp]) -> list[Group]:
    """All calls that ran and all operations, in groups, the one with the biggest gap first.

    Operations that stand for no node of ours (layout changes at the edges, say) are a group without calls.
    """
    ran = [call for call in calls if call.turns]
    places: dict[str, list[tuple[int, int]]] = {}  # of a node: how late a call names it (its main nodes come first), and the call
    for index, call in enumerate(ran):
        for position, node in enumerate(dict.fromkeys(call.nodes)):
            places.setdefault(node, []).append((position, index))
    parent = list(range(len(ran)))
    homes: list[int | None] = []
    for op in operations:
        heavy = [index for label in op.covered for index in _first(places.get(label, ()))]
        light = [index for label in op.anchors for index in _first(places.get(label, ()))]
        found = heavy or light[:1]
        homes.append(found[0] if found else None)
        for index in found[1:]:
            parent[_root(parent, index)] = _root(parent, found[0])
    groups: dict[int | None, Group] = {}
    for index, call in enumerate(ran):
        groups.setdefault(_root(parent, index), Group()).calls.append(call)
    for op, home in zip(operations, homes, strict=True):
        groups.setdefault(None if home is None else _root(parent, home), Group()).operations.append(op)
    return sorted(groups.values(), key=lambda group: -group.gap)


def _first(places: Sequence[tuple[int, int]]) -> list[int]:
    """The calls that name a node earliest."""
    return [index for position, index in places if position == min(places)[0]]


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        index = parent[index]
    return index
