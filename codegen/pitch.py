"""Caches with room: inputs and outputs that are views of larger arrays.

    present[b, h, past + new, d] = concat(past[b, h, past, d], new[b, h, new, d])      along axis 2

A caller that keeps room behind the rows of every (b, h) holds a cache [b, h, room, d], gives ``cache[:, :, :past]`` and takes
``cache[:, :, :past + new]``: nothing of the past moves. So the memory of such an input or output is addressed by its *pitch*, the
rows from one (b, h) to the next, in place of the extent. A pitch is an entry symbol that the host binds: the extent itself for
arrays without gaps. Where input and output have one pitch and begin at one address, the copy of the past is nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.program import Call

_NO_KERNEL = ("reshape", "if", "loop", "bind_dim")  # they hand buffers on, or read them themselves


@dataclass(frozen=True)
class Cache:
    """An input that an output continues along an axis."""

    past: Value
    present: Value
    axis: int


def caches(graph: Graph) -> list[Cache]:
    """The caches of a graph that only kernels touch. Without axes before the growing one they need no pitch, and an
    extent that the model fixes does not grow.
    """
    producers, found = graph.producers(), []
    for present in graph.outputs:
        node = producers.get(present)
        cache = None if node is None else _cache(graph, node, present)
        if cache is not None and all(_only_kernels(graph, value) for value in (cache.past, present)):
            found.append(cache)
    taken = [value for cache in found for value in (cache.past, cache.present)]
    return [cache for cache in found if taken.count(cache.past) == taken.count(cache.present) == 1]


def _cache(graph: Graph, node: Node, present: Value) -> Cache | None:
    outer = {present: present}
    if node.op == "fused":
        (region,) = node.regions
        outer = dict(zip(region.inputs, node.inputs, strict=True))
        (inner,) = [value for value, output in zip(region.outputs, node.outputs, strict=True) if output is present]
        node = region.producers().get(inner)
    if node is None or node.op != "concat":
        return None
    axis, past = node.attrs["axis"], outer.get(node.inputs[0], node.inputs[0])
    known = set().union(*(dims.shape_symbols(value.shape) for value in graph.inputs))
    fits = past in graph.inputs and not isinstance(past.shape[axis], int) and dims.product(past.shape[:axis]) != 1
    fits = fits and dims.shape_symbols(present.shape) <= known
    return Cache(past, present, axis) if fits else None


def _only_kernels(graph: Graph, value: Value) -> bool:
    users = [node for node in graph.nodes if value in node.inputs]
    return graph.outputs.count(value) == (value not in graph.inputs) and all(node.op not in _NO_KERNEL for node in users)


def storage(value: Value, axis: int, pitch: str) -> Shape:
    """The shape of the memory that a value's elements lie in."""
    return (*value.shape[:axis], dims.symbol(pitch), *value.shape[axis + 1 :])


def equal_pitches(call: Call) -> dict[str, DimLike]:
    """The dims of a copy's kernel that are equal where its operand and result lie in one array: their pitches."""
    pitches = [buffer.pitch.symbol for buffer in call.buffers if buffer.pitch is not None]
    if len(call.buffers) != 2 or len(pitches) != 2:
        return {}
    names = {str(value): name for name, value in zip(call.kernel.dims, call.dims, strict=True)}
    past, present = (names.get(pitch) for pitch in pitches)
    return {present: dims.symbol(past)} if past and present else {}
