"""``if`` and ``loop`` as instructions.

Carried values of a loop live in buffers of their own: copied in, read by the body, written back after the turn (all
at once: a value that is another's old one goes through a temporary). Scanned elements are written into the stacked
output, which grows where the number of turns is unknown. Extents that change from turn to turn are symbols that
the loop sets between turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tcompile.codegen.draft import Draft
from tcompile.codegen.lower import alias, homes, lower_nodes
from tcompile.codegen.lower_node import launches_of
from tcompile.codegen.lower_state import State
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.dtypes import BOOL
from tcompile.ir.graph import Graph, Node, TensorType, Value
from tcompile.ir.ops import spec
from tcompile.ir.ops_control import loop_scan_symbol
from tcompile.ir.program import BindDim, Buffer, Call, If, Instruction, Loop, SetDim

_HUGE = 1 << 62


def lower_if(node: Node, state: State) -> None:
    """Both branches leave their results in the same buffers."""
    cond = state.location(node.inputs[0])
    symbols = {(output, axis): name for output, axis, name in node.attrs.get("shape_symbols", ())}
    results = tuple(state.homes.get(value) or state.new_buffer(value.name, value.type) for value in node.outputs)
    branches = []
    for region in node.regions:
        for inside, outside in zip(region.inputs, node.inputs[1:], strict=True):
            alias(inside, outside, state)
        branches.append(_branch(node, region, results, symbols, state))
    state.emit(If(cond, *branches))
    state.buffers.update(zip(node.outputs, results, strict=True))


def _branch(
    node: Node, region: Graph, results: tuple[Buffer, ...], symbols: Mapping[tuple[int, int], str], state: State
) -> tuple[Instruction, ...]:
    fixed = [(value, buffer) for k, (value, buffer) in enumerate(zip(region.outputs, results, strict=True)) if _fixed(k, node, symbols)]
    state.homes.update(homes(Graph(region.name, region.inputs, tuple(v for v, _ in fixed), region.nodes), tuple(b for _, b in fixed)))
    with state.block() as block:
        lower_nodes(region, state)
        sources = [state.location(value) for value in region.outputs]
        for (output, axis), name in symbols.items():
            state.emit(SetDim(name, region.outputs[output].shape[axis]))
        for value, source, result in zip(region.outputs, sources, results, strict=True):
            if source is not result:
                state.allocate(result)
                state.copy(result, source, value.type.size)
    return tuple(block)


def _fixed(output: int, node: Node, symbols: Mapping[tuple[int, int], str]) -> bool:
    """Whether both branches give an output of one shape."""
    return all((output, axis) not in symbols for axis in range(node.outputs[output].rank))


def lower_loop(node: Node, state: State) -> None:
    """Initial values, the loop, and the results."""
    _LoopLowering(node, state).run()


class _LoopLowering:
    def __init__(self, node: Node, state: State) -> None:
        self.node, self.state = node, state
        self.attrs: Mapping[str, Any] = spec("loop").complete(node.attrs)
        (self.region,) = node.regions
        count = self.attrs["carried"]
        self.counter = self.attrs["counter"]
        state.symbols.setdefault(self.counter, Range(0, None))
        self.initial = node.inputs[2 : 2 + count]
        self.captures = node.inputs[2 + count :]
        self.inside = self.region.inputs[1 : 1 + count]
        self.next = self.region.outputs[1 : 1 + count]
        self.elements = self.region.outputs[1 + count :]
        self.finals, self.stacks = node.outputs[:count], node.outputs[count:]
        self.changing = self.attrs["shape_symbols"]
        self.element_symbols = self.attrs["scan_symbols"]
        self.turns_symbol = loop_scan_symbol(self.attrs)

    def run(self) -> None:
        state = self.state
        trip = self._trip()
        self.cond = self._condition()
        self.carried = self._carry_in()
        self.stacked = self._stack_buffers()
        self._bind_inputs()
        with state.block() as body:
            lower_nodes(self.region, state)
            self._store_elements()
            self._carry_over()
        state.emit(Loop(self.counter, trip, self.cond, tuple(body)))
        for _, _, inner, outer in self.changing:
            state.emit(SetDim(outer, dims.symbol(inner)))
        if self.turns_symbol is not None:
            state.emit(SetDim(self.turns_symbol, dims.symbol(self.counter)))
        state.buffers.update(zip((*self.finals, *self.stacks), (*self.carried, *self.stacked), strict=True))

    def _trip(self) -> DimLike:
        """The most turns there may be: negative and huge counts mean no bound."""
        if self.attrs["trip"] is not None:
            return self.attrs["trip"]
        raw = self.state.symbol("trip")
        self.state.emit(BindDim(raw, self.state.location(self.node.inputs[0]), self.state.symbols[raw], self.node.source))
        count = dims.symbol(raw)
        # trip // 2**62 is -1 for a negative count, whose sum with 2**62 nothing reaches
        bounded = self.state.symbol("turns", Range(0, None))
        self.state.emit(SetDim(bounded, count - _HUGE * dims.floordiv(count, _HUGE, self.state.symbols)))
        return dims.symbol(bounded)

    def _condition(self) -> Buffer | None:
        if self.attrs["always"]:
            return None
        cond = self.state.new_buffer("loop.cond", TensorType(BOOL, ()))
        self.state.copy(cond, self.state.location(self.node.inputs[1]), 1)
        return cond

    def _carry_in(self) -> list[Buffer]:
        state = self.state
        sources = [state.location(value) for value in self.initial]
        for index, axis, inner, _ in self.changing:
            state.symbols.setdefault(inner, Range(0, None))
            state.emit(SetDim(inner, self.initial[index].shape[axis]))
        buffers = []
        for value, initial, source in zip(self.inside, self.initial, sources, strict=True):
            buffer = state.new_buffer(value.name, value.type)
            state.allocate(buffer)
            state.copy(buffer, source, initial.type.size)
            buffers.append(buffer)
        return buffers

    def _stack_buffers(self) -> list[Buffer]:
        state = self.state
        if self.turns_symbol is not None:
            state.symbols.setdefault(self.turns_symbol, Range(0, None))
            state.emit(SetDim(self.turns_symbol, 0))
        for _, _, name in self.element_symbols:
            state.symbols.setdefault(name, Range(0, None))
            state.emit(SetDim(name, 0))
        buffers = []
        for value in self.stacks:
            buffer = state.homes.get(value) or state.new_buffer(value.name, value.type)
            state.allocate(buffer)
            buffers.append(buffer)
        return buffers

    def _bind_inputs(self) -> None:
        iteration = self.region.inputs[0]
        self.state.scalars[iteration] = Node("dim", (), (iteration,), {"exprs": (dims.symbol(self.counter),), "shape": ()})
        self.state.buffers.update(zip(self.inside, self.carried, strict=True))
        for inside, outside in zip(self.region.inputs[1 + len(self.inside) :], self.captures, strict=True):
            alias(inside, outside, self.state)

    def _store_elements(self) -> None:
        """Element j of the turn goes to position counter of stack j."""
        state = self.state
        if self.turns_symbol is not None:
            state.emit(SetDim(self.turns_symbol, dims.symbol(self.counter) + 1))
        for index, axis, name in self.element_symbols:
            state.emit(SetDim(name, self.elements[index].shape[axis]))
        unlike = {index for index, *_ in self.element_symbols}
        for index, (element, buffer) in enumerate(zip(self.elements, self.stacked, strict=True)):
            if self.turns_symbol is not None or index in unlike:
                state.allocate(buffer)
            self._place(element, buffer)

    def _place(self, element: Value, buffer: Buffer) -> None:
        state = self.state
        stack = Value(buffer.name, TensorType(element.dtype, buffer.shape))
        draft = Draft("stack", Node("stack", (element,), (stack,)), state.scope)
        size = element.type.size
        with draft.nest.loop(size, independent=True) as k:
            draft.nest.store(draft.write(stack), dims.symbol(self.counter) * size + k, draft.inliner.flat(element, k))
        for launch in launches_of(draft, state.scope, state.target):
            buffers = tuple(buffer if value is stack else state.location(value) for value in launch.values)
            state.emit(Call(state.kernel(launch.kernel), buffers, tuple(map(dims.symbol, launch.symbols)), self.node.source))

    def _carry_over(self) -> None:
        """The values of this turn become those that the next one starts with, all at once."""
        state = self.state
        cond = state.location(self.region.outputs[0]) if self.cond is not None else None
        sources = [self._detached(value, k) for k, value in enumerate(self.next)]
        after = {}
        for index, axis, inner, _ in self.changing:
            after[inner] = state.symbol("next", Range(0, None))
            state.emit(SetDim(after[inner], self.next[index].shape[axis]))
        for inner, name in after.items():
            state.emit(SetDim(inner, dims.symbol(name)))
        for value, buffer, source in zip(self.inside, self.carried, sources, strict=True):
            if source is not buffer:
                if after:
                    state.allocate(buffer)
                state.copy(buffer, source, value.type.size)
        if self.cond is not None and cond is not None:
            state.copy(self.cond, cond, 1)

    def _detached(self, value: Value, position: int) -> Buffer:
        """Where a value lies; copied away where that is the buffer of another carried value."""
        source = self.state.location(value)
        if source in self.carried and source is not self.carried[position]:
            copy = self.state.new_buffer(value.name, value.type)
            self.state.allocate(copy)
            self.state.copy(copy, source, value.type.size)
            return copy
        return source
