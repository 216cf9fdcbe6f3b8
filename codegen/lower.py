"""Graph of kernels -> Program: one call per kernel, buffers, control flow.

Constants become weights (equal bytes once), a reshape is its operand under another shape, an output is written
by its kernel where it must end up. ``if`` and ``loop`` are in ``lower_control.py``, the kernels of a node in
``lower_node.py``, and what must hold at run time in ``lower_checks.py``.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from tcompile.codegen.lower_checks import requirements
from tcompile.codegen.lower_node import Launch, launches
from tcompile.codegen.lower_state import State
from tcompile.codegen.pitch import caches, storage
from tcompile.errors import UnsupportedError
from tcompile.ir import dims
from tcompile.ir.dims import Range
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.program import BindDim, Buffer, Call, Pitch, Program, Require, Role
from tcompile.ir.target import Target
from tcompile.ir.verify import bound_symbols

_EXPRESSION_DEPTH = 20000  # a fused chain of ops is walked recursively


def lower(graph: Graph, target: Target) -> Program:
    """The program of a graph. Raises UnsupportedError for an op that has neither a template nor loops."""
    sys.setrecursionlimit(max(sys.getrecursionlimit(), _EXPRESSION_DEPTH))
    return _Lowering(graph, target).program()


class _Lowering:
    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph = graph
        self.state = State(graph, target)

    def program(self) -> Program:
        graph, state = self.graph, self.state
        pitches = self._pitches()
        inputs = tuple(
            Buffer(state.name(value.name), value.dtype, value.shape, Role.INPUT, pitch=pitches.get(value)) for value in graph.inputs
        )
        state.buffers.update(zip(graph.inputs, inputs, strict=True))
        names = graph.output_names or tuple(value.name for value in graph.outputs)
        outputs = tuple(
            Buffer(state.name(name), value.dtype, value.shape, Role.OUTPUT, pitch=pitches.get(value))
            for name, value in zip(names, graph.outputs, strict=True)
        )
        state.homes.update(homes(graph, outputs))
        lower_nodes(graph, state)
        for value, buffer in zip(graph.outputs, outputs, strict=True):
            source = state.location(value)
            if source is not buffer:
                state.allocate(buffer)
                state.copy(buffer, source, value.type.size)
        return Program(graph.name, inputs, outputs, tuple(names), state.body(), state.symbols, state.entry)

    def _pitches(self) -> dict[Value, Pitch]:
        """The pitches of caches. Arrays of one length along the axis share a symbol: those of past, and those of present."""
        state, symbols, found = self.state, {}, {}
        for cache in caches(self.graph):
            for value in (cache.past, cache.present):
                extent = value.shape[cache.axis]
                if extent not in symbols:
                    symbols[extent] = state.symbol("pitch", Range(extent, None))
                    state.entry += (symbols[extent],)
                found[value] = Pitch(cache.axis, symbols[extent])
                state.storage[value] = storage(value, cache.axis, symbols[extent])
            state.one_pitch[found[cache.present].symbol] = dims.symbol(found[cache.past].symbol)
        return found


def homes(graph: Graph, wanted: tuple[Buffer, ...]) -> dict[Value, Buffer]:
    """The values whose kernels can write results of a graph in place; others must be copied.

    A result behind reshapes is written by the node before them, if the result's extents are known by then and the
    reshapes cannot fail: what stops the run would else come after the write. Inputs, constants and dims stay where they
    are, and one value has one home.
    """
    producers = graph.producers()
    found: dict[Value, Buffer] = {}
    for value, buffer in zip(graph.outputs, wanted, strict=True):
        root = value
        while (node := producers.get(root)) is not None and _is_view(node):
            root = node.inputs[0]
        if node is not None and root not in found and _writes_anywhere(node, root) and not _bound_later(graph, node, buffer):
            found[root] = buffer
    return found


def _is_view(node: Node) -> bool:
    """Whether a node is a reshape whose operand and result are of one size at every value of the symbols."""
    return node.op == "reshape" and node.inputs[0].type.size == node.output.type.size


def _bound_later(graph: Graph, node: Node, buffer: Buffer) -> bool:
    """Whether a node after this one binds a symbol of the buffer's shape."""
    symbols = dims.shape_symbols(buffer.shape)
    return bool(symbols) and any(symbols.intersection(bound_symbols(later)) for later in graph.nodes[graph.nodes.index(node) + 1 :])


def _writes_anywhere(node: Node, value: Value) -> bool:
    """Whether a node can write a result into any buffer. What a loop carries stays in the loop's own."""
    if node.op == "loop":
        return value in node.outputs[node.attrs["carried"] :]
    return node.op not in ("constant", "dim", "reshape")


def lower_nodes(graph: Graph, state: State) -> None:
    """All nodes of a graph whose inputs have their buffers."""
    for node in graph.nodes:
        lower_node(node, state)


def lower_node(node: Node, state: State) -> None:
    """One node: instructions, and the buffers of its outputs."""
    from tcompile.codegen.lower_control import lower_if, lower_loop

    for expr, message in requirements(node, state.symbols):
        state.emit(Require(expr, message, node.source))
    match node.op:
        case "constant":
            state.constants[node.output] = node.attrs["value"]
            if node.attrs["value"].size == 1:
                state.scalars[node.output] = node
        case "dim":
            state.scalars[node.output] = node
        case "reshape":
            _view(node, state)
        case "bind_dim":
            name = node.attrs["symbol"]
            state.emit(BindDim(name, state.location(node.inputs[0]), state.symbols[name], node.source))
        case "if":
            lower_if(node, state)
        case "loop":
            found = _whole_loop(node, state)
            if found is None:
                lower_loop(node, state)
            else:
                _launch(node, found, state)
        case _:
            _run(node, state)


def _view(node: Node, state: State) -> None:
    """The operand's own elements; of a constant or dim its own buffer, since the shape is of no matter to kernels."""
    (source,) = node.inputs
    if source in state.storage:  # its memory has gaps
        _run(node, state)
        return
    if source in state.constants and state.constants[source].size == 1 and node.output.type.is_static:
        array = state.constants[source].reshape(node.output.shape)
        state.constants[node.output] = array
        state.scalars[node.output] = Node("constant", (), (node.output,), {"value": array})
        return
    state.buffers[node.output] = state.location(source)


def _run(node: Node, state: State) -> None:
    if node.op == "fused":
        _take_constants(node.regions[0], state)
    found = state.launches.of(node, state.scope)
    if found is None:
        if node.op != "fused":
            raise UnsupportedError(f"{node.op} ({', '.join(node.source)}) has no kernel for {state.target.name}")
        _unfused(node, state)
        return
    _launch(node, found, state)


def _launch(node: Node, found: list[Launch], state: State) -> None:
    """The calls of a node's kernels."""
    outputs = {*node.outputs, *(value for launch in found for value in launch.scratch)}
    for launch in found:
        buffers = tuple(state.destination(value) if value in outputs else state.location(value) for value in launch.values)
        values = tuple(map(dims.symbol, launch.symbols))
        state.emit(Call(state.kernel(launch.kernel), buffers, values, node.source))
    for value in node.outputs:
        state.destination(value)  # of a result without elements, which no kernel writes


def _whole_loop(node: Node, state: State) -> list[Launch] | None:
    """The kernels of a loop that a template takes whole; None where each turn runs kernels of its own."""
    found = launches(node, state.scope, state.target)
    if found is not None:
        (region,) = node.regions
        for inner in (region, *(part for one in region.nodes for part in one.regions)):
            _take_constants(inner, state)
    return found


def _take_constants(region: Graph, state: State) -> None:
    """Tables inside a fused region are weights like any other."""
    for inner in region.nodes:
        if inner.op == "constant":
            state.constants[inner.output] = inner.attrs["value"]


def _unfused(node: Node, state: State) -> None:
    """A fused region that no kernel takes whole runs node by node."""
    (region,) = node.regions
    for inside, outside in zip(region.inputs, node.inputs, strict=True):
        alias(inside, outside, state)
    for value, outer in zip(region.outputs, node.outputs, strict=True):
        if outer in state.storage:
            state.storage[value] = state.storage[outer]
        if outer in state.homes:
            state.homes.update(homes(replace(region, outputs=(value,)), (state.homes[outer],)))
    lower_nodes(region, state)
    for value, inner in zip(node.outputs, region.outputs, strict=True):
        state.buffers[value] = state.location(inner)


def alias(inside: Value, outside: Value, state: State) -> None:
    """A region's input is the operand it stands for."""
    if outside in state.scalars:
        state.scalars[inside] = state.scalars[outside]
    if outside in state.constants:
        state.constants[inside] = state.constants[outside]
    elif outside not in state.scalars:
        state.buffers[inside] = state.location(outside)
        if outside in state.storage:
            state.storage[inside] = state.storage[outside]
