"""The plan of a CUDA artifact, read and checked: buffers, kernels and steps. ``codegen/cuda_program.py`` writes it.

Everything a walk follows is checked here, once: numbers of buffers and kernels, counts of arguments, symbols, places in the
weights and block sizes. A plan that breaks one of these is refused by the name of what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tcompile.errors import ArtifactError
from tcompile.runtime.cuda_expressions import Expression, Values, read_expression
from tcompile.runtime.dtypes import Element, element
from tcompile.runtime.specs import Bounds, SiteSpec, TensorSpec

FORMAT = 1
_THREADS, _SHARED, _DEPTH = 1024, 1 << 20, 100
_ROLES = ("input", "output", "weight", "temp", "growing")


@dataclass(frozen=True, eq=False)
class Buffer:
    """Row-major memory. ``offset``: in the arena or the weights. ``pitch``: (axis, symbol) of one whose memory may have gaps."""

    name: str
    role: str
    element: Element
    item: int
    shape: tuple[Expression, ...]
    text: tuple[int | str, ...]
    offset: Expression | None
    pitch: tuple[int, str] | None
    symbols: frozenset[str]

    def extents(self, values: Values) -> tuple[int, ...]:
        """The shape under values of the symbols."""
        return tuple(extent.value(values) for extent in self.shape)

    def size(self, values: Values) -> int:
        """Bytes without gaps."""
        return prod(self.extents(values)) * self.item


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel's launch: grid extents over its own ``dims``, threads of a block, bytes of dynamic shared memory.

    ``function``: its name in the code. ``flops`` and ``bytes`` of its tensors, over the dims. ``record``: the choices of its
    schedule; ``facts``: what else the compiler knows of it, for reports: registers, occupancy.
    """

    name: str
    function: str
    params: int
    dims: tuple[str, ...]
    grid: tuple[Expression, Expression, Expression]
    block: tuple[int, int, int]
    shared: int
    checks: bool
    flops: Expression
    bytes: Expression
    record: Mapping[str, str]
    facts: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Launch:
    """Runs a kernel. ``number``: of the launch, in the order of steps.

    ``moves``: the kernel only copies, and does nothing where its buffers are one and each of these pairs is equal.
    """

    number: int
    kernel_number: int
    kernel: Kernel
    buffers: tuple[int, ...]
    dims: tuple[Expression, ...]
    nodes: tuple[str, ...]
    moves: tuple[tuple[Expression, Expression], ...] | None
    symbols: frozenset[str]


@dataclass(frozen=True, eq=False)
class Copy:
    """Copies bytes from the start of one buffer to the start of another."""

    target: int
    source: int
    bytes: Expression


@dataclass(frozen=True, eq=False)
class Bind:
    """symbol = the i64 in a buffer, within bounds."""

    symbol: str
    buffer: int
    low: Expression
    high: Expression | None
    text: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Set:
    """symbol = an expression."""

    symbol: str
    value: Expression


@dataclass(frozen=True, eq=False)
class Allocate:
    """Makes sure that a growing buffer holds its shape."""

    buffer: int


@dataclass(frozen=True, eq=False)
class If:
    """One of two blocks, by the bool in a buffer."""

    condition: int
    then: tuple[Step, ...]
    otherwise: tuple[Step, ...]


@dataclass(frozen=True, eq=False)
class Loop:
    """Turns while counter < trip and the bool in a buffer is true, each where given."""

    counter: str
    trip: Expression | None
    condition: int | None
    body: tuple[Step, ...]


@dataclass(frozen=True, eq=False)
class Require:
    """Stops the run unless the value is at least 0."""

    value: Expression
    status: int
    text: str
    nodes: tuple[str, ...]


Step = Launch | Copy | Bind | Set | Allocate | If | Loop | Require


@dataclass(frozen=True, eq=False)
class CudaPlan:
    """All of a model but its code and weights."""

    name: str
    target: str
    sm: int
    symbols: tuple[tuple[str, Expression, Expression | None], ...]
    bounds: Mapping[str, Bounds]
    entry_symbols: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    output_names: tuple[str, ...]
    buffers: tuple[Buffer, ...]
    arena: Expression
    arena_bound: int | None
    kernels: tuple[Kernel, ...]
    steps: tuple[Step, ...]
    launches: tuple[Launch, ...]
    shares: Mapping[int, Sequence[int]]
    notes: Mapping[str, str]
    code: Mapping[str, str]  # entry -> SHA-256
    ptx: int  # the compute capability of the PTX, 0 where there is none
    weights_bytes: int
    weights_sha256: str

    @property
    def entry(self) -> frozenset[str]:
        """The symbols that input shapes decide."""
        return frozenset(name for name, *_ in self.symbols[: self.entry_symbols])

    def input_specs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""
        return tuple(self._spec(number, self.buffers[number].name) for number in self.inputs)

    def output_specs(self) -> tuple[TensorSpec, ...]:
        """What the model gives."""
        return tuple(self._spec(number, name) for number, name in zip(self.outputs, self.output_names, strict=True))

    def sites(self) -> tuple[SiteSpec, ...]:
        """Every kernel launch, with the ONNX nodes it computes."""
        return tuple(SiteSpec(launch.kernel.name, launch.nodes, dict(launch.kernel.record)) for launch in self.launches)

    def _spec(self, number: int, name: str) -> TensorSpec:
        buffer = self.buffers[number]
        ranges = {extent: self.bounds[extent] for extent in buffer.text if isinstance(extent, str) and extent in self.bounds}
        order = [symbol for symbol, *_ in self.symbols]
        pitch = None if buffer.pitch is None else (buffer.pitch[0], order.index(buffer.pitch[1]))
        return TensorSpec(name, buffer.element, buffer.text, ranges, buffer.role == "growing", pitch)


def walk(steps: Sequence[Step]) -> Iterator[Step]:
    """All steps in order: an If or Loop, then what is in it."""
    for step in steps:
        yield step
        for inner in (step.then, step.otherwise) if isinstance(step, If) else (step.body,) if isinstance(step, Loop) else ():
            yield from walk(inner)


def read_cuda_plan(data: bytes) -> CudaPlan:
    """The plan in an artifact. Raises ArtifactError for another version, and for anything malformed."""
    try:
        content = json.loads(data)
        found = content["format"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(error) from error
    if found != FORMAT:
        message = f"the model's CUDA plan has format version {found}, this runtime reads version {FORMAT}"
        raise ArtifactError(message, hint="compile the model again with this version of tcompile")
    try:
        return _Reader(content).plan()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> ArtifactError:
    why = f"it lacks {error}" if isinstance(error, KeyError) else error
    return ArtifactError(f"the model's CUDA plan is damaged: {why}", hint="compile the model again")


class _Reader:
    """Reads one plan. Its methods raise ValueError, KeyError or TypeError for what is malformed."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content
        self.names = frozenset(_text(entry[0]) for entry in content["symbols"])
        self.launches: list[Launch] = []

    def plan(self) -> CudaPlan:
        content = self.content
        symbols = tuple((name, self.expression(low), self.optional(high)) for name, low, high, *_ in content["symbols"])
        self.weights = _count(content["weights_bytes"], "the bytes of the weights")
        self.buffers = tuple(map(self.buffer, content["buffers"]))
        self.kernels = tuple(map(self.kernel, content["kernels"]))
        steps = self.block(content["steps"], 0)
        inputs, outputs = (tuple(self.number(n) for n in content[role]) for role in ("inputs", "outputs"))
        names = tuple(map(_text, content["output_names"]))
        if len(names) != len(outputs):
            raise ValueError(f"{len(outputs)} outputs have {len(names)} names")
        if any(self.buffers[number].role != "input" for number in inputs):
            raise ValueError("an input is no buffer of the caller's")
        entry = _count(content["entry_symbols"], "the entry symbols")
        if entry > len(symbols):
            raise ValueError(f"{entry} of {len(symbols)} symbols come from inputs")
        arena = self.expression(content["arena"])
        if not arena.symbols <= {name for name, *_ in symbols[:entry]}:
            raise ValueError("the arena's size needs symbols of the run")
        shares: dict[int, list[int]] = {}
        for k, i in content["shares"]:
            if not (0 <= k < len(outputs) and 0 <= i < len(inputs)):
                raise ValueError(f"there is no pair of output {k} and input {i}")
            shares.setdefault(k, []).append(i)
        return CudaPlan(
            name=_text(content["name"]), target=_text(content["target"]), sm=_count(content["sm"], "sm"), symbols=symbols,
            bounds={name: (low, high) for name, *_, low, high in content["symbols"]},
            entry_symbols=entry, inputs=inputs, outputs=outputs, output_names=names, buffers=self.buffers, arena=arena,
            arena_bound=content["arena_bound"], kernels=self.kernels, steps=steps,
            launches=tuple(self.launches), shares=shares, notes={_text(k): _text(v) for k, v in content["notes"].items()},
            code={_text(k): _text(v) for k, v in content["code"].items()}, ptx=_count(content["ptx"], "ptx"),
            weights_bytes=self.weights, weights_sha256=_text(content["weights_sha256"]),
        )  # fmt: skip

    def expression(self, content: Any) -> Expression:
        return read_expression(content, self.names)

    def optional(self, content: Any) -> Expression | None:
        return None if content is None else self.expression(content)

    def number(self, number: Any) -> int:
        if not isinstance(number, int) or not 0 <= number < len(self.buffers):
            raise ValueError(f"there is no buffer {number!r}")
        return number

    def buffer(self, content: Mapping[str, Any]) -> Buffer:
        name, role, type_ = _text(content["name"]), content["role"], element(content["dtype"])
        if role not in _ROLES:
            raise ValueError(f"buffer {name} has the role {role!r}")
        shape = tuple(map(self.expression, content["shape"]))
        if len(content["text"]) != len(shape) or content["item"] != type_.numpy.itemsize:
            raise ValueError(f"buffer {name} has another type than its text says")
        offset = self.expression(content["offset"]) if role in ("weight", "temp") else None
        pitch = content.get("pitch")
        if pitch is not None and (len(pitch) != 2 or not 0 <= pitch[0] < len(shape) or pitch[1] not in self.names):
            raise ValueError(f"buffer {name} has the pitch {pitch!r}")
        symbols = frozenset().union(*(extent.symbols for extent in shape), offset.symbols if offset else ())
        found = Buffer(
            name, role, type_, content["item"], shape, tuple(content["text"]), offset, None if pitch is None else tuple(pitch), symbols
        )
        if role == "weight":
            start, size = offset.value({}), found.size({})
            if start < 0 or size < 0 or start + size > self.weights:
                raise ValueError(f"the weight {name} lies outside of the weights")
        return found

    def kernel(self, content: Mapping[str, Any]) -> Kernel:
        name, dims = _text(content["name"]), tuple(map(_text, content["dims"]))
        own = frozenset(dims)
        grid = tuple(read_expression(extent, own) for extent in content["grid"])
        block = tuple(_count(extent, f"the block of kernel {name}") for extent in content["block"])
        if len(grid) != 3 or len(block) != 3 or not 1 <= prod(block) <= _THREADS:
            raise ValueError(f"kernel {name} has a grid of {len(grid)} extents and a block of {block}")
        shared = _count(content["shared"], f"the shared memory of kernel {name}")
        if shared > _SHARED:
            raise ValueError(f"kernel {name} asks for {shared} bytes of shared memory")
        work = (read_expression(content[what], own) for what in ("flops", "bytes"))
        params = _count(content["params"], f"the parameters of kernel {name}")
        record = {_text(key): _text(value) for key, value in content["record"].items()}
        function, checks = _text(content["function"]), bool(content["checks"])
        return Kernel(name, function, params, dims, grid, block, shared, checks, *work, record, dict(content["facts"]))

    # Steps --------------------------------------------------------------------------------------------

    def block(self, content: Sequence[Mapping[str, Any]], depth: int) -> tuple[Step, ...]:
        if depth > _DEPTH:
            raise ValueError("blocks are nested too deeply")
        return tuple(self.step(step, depth) for step in content)

    def step(self, content: Mapping[str, Any], depth: int) -> Step:
        match content["do"]:
            case "launch":
                return self.launch(content)
            case "copy":
                return Copy(self.number(content["target"]), self.number(content["source"]), self.expression(content["bytes"]))
            case "bind":
                bounds = self.expression(content["low"]), self.optional(content["high"])
                return Bind(self.symbol(content), self.scalar(content["buffer"], 8), *bounds, _text(content["text"]), _nodes(content))
            case "set":
                return Set(self.symbol(content), self.expression(content["value"]))
            case "allocate":
                return Allocate(self.number(content["buffer"]))
            case "if":
                blocks = (self.block(content[name], depth + 1) for name in ("then", "else"))
                return If(self.scalar(content["condition"], 1), *blocks)
            case "loop":
                condition = None if content["condition"] is None else self.scalar(content["condition"], 1)
                counter, trip = _text(content["counter"]), self.optional(content["trip"])
                if counter not in self.names or (trip is None and condition is None):
                    raise ValueError(f"the loop over {counter!r} has no symbol or no end")
                return Loop(counter, trip, condition, self.block(content["body"], depth + 1))
            case "require":
                value, status = self.expression(content["value"]), _count(content["status"], "a status")
                return Require(value, status, _text(content["text"]), _nodes(content))
        raise ValueError(f"there is no step of the kind {content['do']!r}")

    def symbol(self, content: Mapping[str, Any]) -> str:
        if content["symbol"] not in self.names:
            raise ValueError(f"there is no symbol {content['symbol']!r}")
        return content["symbol"]

    def scalar(self, number: Any, item: int) -> int:
        if self.buffers[self.number(number)].item != item:
            raise ValueError(f"buffer {self.buffers[number].name} is read as a number of {item} bytes")
        return number

    def launch(self, content: Mapping[str, Any]) -> Launch:
        number = _count(content["kernel"], "a kernel's number")
        kernel = self.kernels[number]
        buffers, dims = tuple(map(self.number, content["buffers"])), tuple(map(self.expression, content["dims"]))
        if len(buffers) != kernel.params or len(dims) != len(kernel.dims):
            raise ValueError(f"kernel {kernel.name} gets {len(buffers)} buffers and {len(dims)} dims")
        moves = content.get("moves")
        if moves is not None and len(buffers) != 2:
            raise ValueError(f"kernel {kernel.name} is no copy")
        pairs = None if moves is None else tuple((self.expression(a), self.expression(b)) for a, b in moves)
        places = (self.buffers[k].offset.symbols for k in buffers if self.buffers[k].offset is not None)
        symbols = frozenset().union(*(expr.symbols for expr in dims), *places)
        found = Launch(len(self.launches), number, kernel, buffers, dims, _nodes(content), pairs, symbols)
        self.launches.append(found)
        return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _count(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{what} is {value!r}")
    return value


def _nodes(content: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(map(_text, content["nodes"]))
