"""Runs a program in Python: its kernels in the Loop IR interpreter. The oracle of memory plans and entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tcompile.errors import ExecutionError
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Graph, TensorType, Value
from tcompile.ir.interpret import bind_symbols
from tcompile.ir.loops import Status
from tcompile.ir.loops_evaluate import compile_dim
from tcompile.ir.loops_interpret import run_kernel
from tcompile.ir.program import Allocate, BindDim, Buffer, Call, Concurrent, Copy, If, Instruction, Loop, Program, Require, Role, SetDim


class ProgramStop(ExecutionError):
    """A run that stopped, with its status and the ONNX nodes it stopped at."""

    def __init__(self, status: Status, source: tuple[str, ...], detail: str = "") -> None:
        super().__init__(f"{status}{f': {detail}' if detail else ''}{f' (in {chr(44).join(source)})' if source else ''}")
        self.status = status
        self.source = source


def run_program(
    program: Program,
    inputs: Mapping[str, np.ndarray] | Sequence[np.ndarray],
    memory: Mapping[Buffer, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The outputs by name. Raises ProgramStop for a run that a check stops.

    ``memory``: flat arrays for some of the buffers, which may overlap as a memory plan says.
    """
    arrays = [inputs[buffer.name] for buffer in program.inputs] if isinstance(inputs, Mapping) else list(inputs)
    run = _Run(program, arrays)
    run.memory.update(memory or {})
    run.block(program.body)
    return {name: run.result(buffer) for name, buffer in zip(program.output_names, program.outputs, strict=True)}


class _Run:
    def __init__(self, program: Program, arrays: Sequence[np.ndarray]) -> None:
        values = tuple(Value(buffer.name, TensorType(buffer.dtype, buffer.shape)) for buffer in program.inputs)
        self.env = bind_symbols(Graph(program.name, values, (), [], program.symbols), arrays)
        for buffer in (*program.inputs, *program.outputs):  # arrays here have no gaps
            if buffer.pitch is not None:
                self.env[buffer.pitch.symbol] = max(self.value(buffer.shape[buffer.pitch.axis]), self.env.get(buffer.pitch.symbol, 0))
        self.memory: dict[Buffer, np.ndarray] = {
            buffer: np.ascontiguousarray(array).reshape(-1) for buffer, array in zip(program.inputs, arrays, strict=True)
        }

    def value(self, expr: DimLike) -> int:
        return int(compile_dim(expr)(self.env))  # total, as native code: a mismatch is for Require to find

    def size(self, buffer: Buffer) -> int:
        return int(np.prod([self.value(extent) for extent in buffer.shape], dtype=np.int64))

    def result(self, buffer: Buffer) -> np.ndarray:
        shape = [self.value(extent) for extent in buffer.shape]
        return self.array(buffer, int(np.prod(shape, dtype=np.int64))).reshape(shape)

    def array(self, buffer: Buffer, size: int) -> np.ndarray:
        """The first ``size`` elements of a buffer; the memory of a fresh one is marked."""
        if buffer.role is Role.WEIGHT:
            return np.ascontiguousarray(buffer.value).reshape(-1)[:size]
        if buffer not in self.memory:
            self.memory[buffer] = _marked(buffer, self.size(buffer))
        return self.memory[buffer][:size]

    def block(self, body: Iterable[Instruction]) -> None:
        for instruction in body:
            self.step(instruction)

    def step(self, instruction: Instruction) -> None:
        match instruction:
            case Call():
                self._call(instruction)
            case BindDim():
                self._bind(instruction)
            case SetDim():
                self.env[instruction.symbol] = self.value(instruction.expr)
            case Allocate():
                self._grow(instruction.buffer)
            case Copy():
                size = self.value(instruction.size)
                self.array(instruction.target, size)[:] = self.array(instruction.source, size)
            case If():
                taken = bool(self.array(instruction.cond, 1)[0])
                self.block(instruction.then if taken else instruction.otherwise)
            case Loop():
                self._loop(instruction)
            case Concurrent():
                for branch in instruction.branches:
                    self.block(branch)
            case Require():
                if self.value(instruction.expr) < 0:
                    raise ProgramStop(Status.SHAPE, instruction.source, instruction.message)

    def _call(self, call: Call) -> None:
        values = [self.value(expr) for expr in call.dims]
        env = dict(zip(call.kernel.dims, values, strict=True))
        arrays = []
        for buffer, param in zip(call.buffers, call.kernel.params, strict=True):
            arrays.append(self.array(buffer, int(compile_dim(param.elements)(env))))
        status = run_kernel(call.kernel, arrays, values)
        if status is not None:
            raise ProgramStop(status, call.source, call.kernel.name)

    def _bind(self, bind: BindDim) -> None:
        got = int(self.array(bind.buffer, 1)[0])
        low, high = bind.range.lo, bind.range.hi
        self.env[bind.symbol] = got
        if got < self.value(low) or (high is not None and got > self.value(high)):
            raise ProgramStop(Status.DIMENSION, bind.source, f"{bind.symbol} is {got}")

    def _grow(self, buffer: Buffer) -> None:
        old, fresh = self.memory.get(buffer), _marked(buffer, self.size(buffer))
        if old is not None:
            kept = min(old.size, fresh.size)
            fresh[:kept] = old[:kept]
        self.memory[buffer] = fresh

    def _loop(self, loop: Loop) -> None:
        trip = None if loop.trip is None else self.value(loop.trip)
        turn = 0
        while (trip is None or turn < trip) and (loop.cond is None or bool(self.array(loop.cond, 1)[0])):
            self.env[loop.counter] = turn
            self.block(loop.body)
            turn += 1
        self.env[loop.counter] = turn


def _marked(buffer: Buffer, size: int) -> np.ndarray:
    """Fresh memory: NaN, or a number nobody expects."""
    with np.errstate(all="ignore"):
        return np.full(size, np.nan if buffer.dtype.is_float else 77).astype(buffer.dtype.numpy)
