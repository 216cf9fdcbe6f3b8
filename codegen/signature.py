"""What the host must know of a program: the descriptor's contents, as plain records.

The order of symbols, calls and requirements stated here is the one that the native entry must use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tcompile.codegen.lifetimes import shared
from tcompile.errors import UnsupportedError
from tcompile.ir import dims
from tcompile.ir.dims import Dim, DimLike
from tcompile.ir.dtypes import DType, from_numpy
from tcompile.ir.loops import Kernel
from tcompile.ir.program import BindDim, Buffer, Call, Pitch, Program, Require, Role
from tcompile.ir.program_text import walk

WEIGHT_ALIGN = 64


@dataclass(frozen=True)
class Symbol:
    """A symbol with its range; ``hi`` None is unbounded."""

    name: str
    lo: DimLike
    hi: DimLike | None


@dataclass(frozen=True)
class Tensor:
    """An input or output. ``growing``: an output whose shape only the run knows. ``pitch``: where its memory may have gaps."""

    name: str
    dtype: DType
    shape: tuple[DimLike, ...]
    growing: bool = False
    pitch: Pitch | None = None


@dataclass(frozen=True)
class Site:
    """A place where a run can stop: a kernel call, or a requirement with its message. ``sources``: ONNX nodes.

    Of a call, for profiles: ``flops``, ``bytes`` and ``cycles`` of one turn (``codegen/cpu_cost.py``), and ``record``, the
    choices of its schedule.
    """

    name: str
    sources: tuple[str, ...]
    flops: DimLike = 0
    bytes: DimLike = 0
    cycles: DimLike = 0
    record: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Work:
    """What one turn of a kernel moves and takes, over its dims: bytes of its tensors, and expected cycles of one core."""

    bytes: DimLike = 0
    cycles: DimLike = 0


@dataclass(frozen=True, eq=False)
class Weight:
    """Where an array stands in the weights."""

    name: str
    offset: int
    array: np.ndarray

    @property
    def dtype(self) -> DType:
        return from_numpy(self.array.dtype)

    @property
    def bytes(self) -> int:
        return self.array.nbytes


@dataclass(frozen=True)
class Signature:
    """Everything of a program that the host reads. The first ``entry_symbols`` symbols come from input shapes.

    ``shares``: (output, input) positions that may be one memory.
    """

    name: str
    symbols: tuple[Symbol, ...]
    entry_symbols: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    calls: tuple[Site, ...]
    requirements: tuple[Site, ...]
    notes: dict[str, str] = field(default_factory=dict)
    shares: tuple[tuple[int, int], ...] = ()


def symbol_order(program: Program) -> tuple[str, ...]:
    """The order of a frame's dims: entry symbols, then the others as the program lists them."""
    return (*program.entry_symbols, *(name for name in program.symbols if name not in program.entry_symbols))


def place_weights(buffers: Iterable[Buffer]) -> tuple[Weight, ...]:
    """Offsets for weight buffers, in order: each at a multiple of 64; buffers with one array share its place."""
    placed: list[Weight] = []
    offsets: dict[int, int] = {}
    end = 0
    for buffer in buffers:
        offset = offsets.get(id(buffer.value))
        if offset is None:
            offset = offsets[id(buffer.value)] = -(-end // WEIGHT_ALIGN) * WEIGHT_ALIGN
            end = offset + buffer.value.nbytes
        placed.append(Weight(buffer.name, offset, buffer.value))
    return tuple(placed)


def signature(program: Program, work: Mapping[Kernel, Work] | None = None) -> Signature:
    """The signature of a program; ``work``: what is known of its kernels, for profiles.

    Raises UnsupportedError where no input axis gives an entry symbol alone.
    """
    inputs = tuple(Tensor(buffer.name, buffer.dtype, buffer.shape, pitch=buffer.pitch) for buffer in program.inputs)
    pitches = {buffer.pitch.symbol for buffer in (*program.inputs, *program.outputs) if buffer.pitch is not None}
    _require_plain_uses([name for name in program.entry_symbols if name not in pitches], inputs)
    return Signature(
        name=program.name,
        symbols=tuple(_symbol(program, name) for name in symbol_order(program)),
        entry_symbols=len(program.entry_symbols),
        inputs=inputs,
        outputs=tuple(_output(program, buffer, name) for buffer, name in zip(program.outputs, program.output_names, strict=True)),
        calls=tuple(_call(i, (work or {}).get(i.kernel, Work())) for i in walk(program.body) if isinstance(i, Call)),
        requirements=tuple(_requirement(i) for i in walk(program.body) if isinstance(i, BindDim | Require)),
        notes=dict(program.notes),
        shares=tuple(shared(program)),
    )


def _symbol(program: Program, name: str) -> Symbol:
    known = program.symbols[name]
    return Symbol(name, known.lo, known.hi)


def _output(program: Program, buffer: Buffer, name: str) -> Tensor:
    growing = buffer.role is Role.GROWING or not dims.shape_symbols(buffer.shape) <= set(program.entry_symbols)
    return Tensor(name, buffer.dtype, buffer.shape, growing, buffer.pitch)


def _call(call: Call, work: Work) -> Site:
    values = dict(zip(call.kernel.dims, call.dims, strict=True))
    flops, moved, cycles = (dims.substitute(extent, values) for extent in (call.kernel.flops, work.bytes, work.cycles))
    return Site(call.kernel.name, call.source, flops, moved, cycles, call.kernel.tags)


def _requirement(instruction: BindDim | Require) -> Site:
    if isinstance(instruction, Require):
        return Site(instruction.message, instruction.source)
    low, high = instruction.range.lo, instruction.range.hi
    return Site(f"{instruction.symbol} in {low}..{'' if high is None else high}", instruction.source)


def _require_plain_uses(symbols: Iterable[str], inputs: tuple[Tensor, ...]) -> None:
    plain = {str(extent) for tensor in inputs for extent in tensor.shape if isinstance(extent, Dim)}
    for name in symbols:
        if name not in plain:
            raise UnsupportedError(
                f"no input has the dimension {name} alone on an axis, so a run cannot learn its value",
                hint="give the axis a name of its own, or a fixed extent",
            )
