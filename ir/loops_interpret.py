"""The interpreter of the Loop IR: the oracle of schedules, templates and code generators.

Loops run in order, one statement after the other, and every access is checked. A vector loop runs its body on
NumPy arrays with one element per lane: in chunks of ``width``, or over its whole range at once where no iteration
can see what another stored. Fresh allocations hold NaN or a bit pattern, so that reading them shows. Grid and block
loops run in order as well, which is right for kernels whose threads do not meet; what makes threads meet (barriers,
shuffles, asynchronous copies, tile operations) is refused by name: the CUDA shim of the tests runs those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tcompile.errors import ExecutionError, InvalidModelError
from tcompile.ir import dims as dim
from tcompile.ir import dtypes, elementwise
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.loops import (
    Alloc,
    Atomic,
    Barrier,
    Block,
    Check,
    CommitAsync,
    CopyAsync,
    For,
    If,
    Kernel,
    Let,
    Load,
    LoopKind,
    Param,
    Prefetch,
    Status,
    Stmt,
    Store,
    TileOp,
    WaitAsync,
    While,
)
from tcompile.ir.loops_evaluate import Evaluator, compile_dim, postorder


def run_kernel(kernel: Kernel, arrays: Sequence[np.ndarray], dims: Sequence[int], begin: int = 0, end: int | None = None) -> Status | None:
    """Runs a kernel on arrays (one per parameter, written in place) and the values of its dims.

    ``begin`` and ``end`` are the part of the PARALLEL loop to run (all of it by default). Returns None, or the status
    a ``Check`` stopped with. Raises OutOfBoundsError for an access outside a buffer, InvalidModelError for arrays that do not fit.
    """
    run = _Run(kernel, arrays, dims, begin, end)
    try:
        with np.errstate(all="ignore"):
            run.block(kernel.body)
    except _Stop as stop:
        return stop.status
    return None


def expressions(stmt: Stmt) -> tuple:
    """The expressions a statement evaluates itself (not those of nested blocks)."""
    match stmt:
        case Store(value=value, mask=mask) | Atomic(value=value, mask=mask):
            return (value,) if mask is None else (value, mask)
        case CopyAsync(mask=mask) if mask is not None:
            return (mask,)
        case Let(value=value):
            return (value,)
        case Check(cond=cond) | If(cond=cond) | While(cond=cond):
            return (cond,)
    return ()


def blocks(stmt: Stmt) -> tuple[Block, ...]:
    """The nested blocks of a statement."""
    match stmt:
        case For(body=body) | While(body=body):
            return (body,)
        case If(then=then, otherwise=otherwise):
            return (then, otherwise)
    return ()


def walk(block: Block) -> Iterator[Stmt]:
    """Every statement of a block, those of nested blocks after the one that holds them."""
    for stmt in block:
        yield stmt
        for nested in blocks(stmt):
            yield from walk(nested)


class _Stop(Exception):
    def __init__(self, status: Status) -> None:
        self.status = status


class _Run:
    def __init__(self, kernel: Kernel, arrays: Sequence[np.ndarray], dims: Sequence[int], begin: int, end: int | None) -> None:
        if len(arrays) != len(kernel.params) or len(dims) != len(kernel.dims):
            raise InvalidModelError(
                f"kernel {kernel.name} takes {len(kernel.params)} arrays and {len(kernel.dims)} dims, got {len(arrays)} and {len(dims)}"
            )
        self.values: dict[str, Any] = dict(zip(kernel.dims, map(int, dims), strict=True))
        self.buffers = {
            param.name: _view(kernel, param, array, self._shape(param.shape)) for param, array in zip(kernel.params, arrays, strict=True)
        }
        self.same = {kernel.params[b].name: kernel.params[a].name for a, b in kernel.aliases}
        self.evaluate = Evaluator(self.values, self.buffers)
        self.begin, self.end = begin, end
        self.lanes = 0  # number of active lanes inside a vector loop
        self._whole: dict[int, bool] = {}

    def _shape(self, shape: Shape) -> tuple[int, ...]:
        return tuple(int(compile_dim(extent)(self.values)) for extent in shape)

    def block(self, block: Block) -> None:
        scope: list[tuple[dict, str, Any]] = []
        for stmt in block:
            self.statement(stmt, scope)
        for table, name, old in reversed(scope):
            if old is None:
                del table[name]
            else:
                table[name] = old

    def statement(self, stmt: Stmt, scope: list) -> None:
        match stmt:
            case Store():
                self.store(stmt)
            case Let():
                (value,) = self.evaluate(stmt.value)
                self._bind(self.values, stmt.name, int(value) if isinstance(value, np.integer) else value, scope)
            case For():
                self.loop(stmt)
            case If():
                self.block(stmt.then if self._uniform(stmt.cond) else stmt.otherwise)
            case While():
                while self._uniform(stmt.cond):
                    self.block(stmt.body)
            case Alloc():
                self._bind(self.buffers, stmt.name, _fresh(stmt.dtype, self._shape(stmt.shape)), scope)
            case Check():
                if not np.all(self.evaluate(stmt.cond)[0]):
                    raise _Stop(stmt.status)
            case Prefetch():
                pass
            case Atomic():
                self.atomic(stmt)
            case Barrier() | CopyAsync() | CommitAsync() | WaitAsync() | TileOp():
                name = type(stmt).__name__
                raise ExecutionError(
                    f"the interpreter runs one thread after the other: no {name}", hint="run the kernel under the CUDA shim"
                )
            case _:
                raise TypeError(f"not a Loop IR statement: {stmt!r}")

    @staticmethod
    def _bind(table: dict, name: str, value: Any, scope: list) -> None:
        scope.append((table, name, table.get(name)))
        table[name] = value

    def _uniform(self, cond: Any) -> bool:
        (value,) = self.evaluate(cond)
        if np.ndim(value) and not (np.all(value) or not np.any(value)):
            raise ExecutionError("the condition of an If or While differs between the lanes of a vector loop", hint="use Select or masks")
        return bool(np.all(value))

    def loop(self, loop: For) -> None:
        extent = int(compile_dim(loop.extent)(self.values))
        if loop.kind is LoopKind.VECTOR:
            self._vector(loop, extent)
            return
        first, last = (self.begin, extent if self.end is None else self.end) if loop.kind is LoopKind.PARALLEL else (0, extent)
        if last > max(extent, 0):
            raise ExecutionError(f"the range [{first}, {last}) is outside the {extent} iterations of {loop.var}")
        outer = self.values.get(loop.var)
        for i in range(first, last):
            self.values[loop.var] = i
            self.block(loop.body)
        self._restore(loop.var, outer)

    def _vector(self, loop: For, extent: int) -> None:
        step = max(extent, 1) if self._runs_whole(loop) else loop.width
        outer, lanes = self.values.get(loop.var), self.lanes
        for start in range(0, extent, step):
            self.values[loop.var] = np.arange(start, min(start + step, extent), dtype=np.int64)
            self.lanes = len(self.values[loop.var])
            self.block(loop.body)
        self.lanes = lanes
        self._restore(loop.var, outer)

    def _restore(self, name: str, old: Any) -> None:
        if old is None:
            self.values.pop(name, None)
        else:
            self.values[name] = old

    def _runs_whole(self, loop: For) -> bool:
        known = self._whole.get(id(loop))
        if known is None:
            known = self._whole[id(loop)] = _independent(loop, self.same)
        return known

    def store(self, store: Store) -> None:
        value, *masks = self.evaluate(*expressions(store))
        mask = masks[0] if masks else None
        if mask is not None and not np.any(mask):
            return
        position = self.evaluate.position(store.indices)
        if np.ndim(mask):
            position = tuple(index[mask] if np.ndim(index) else index for index in position)
            value = value[mask] if np.ndim(value) else value
        self.evaluate.check(store.buffer, store.indices, position)
        if np.ndim(value) and not any(map(np.ndim, position)):
            value = value[-1]  # all lanes write one element: the last one stays
        self.buffers[store.buffer][position] = value

    def atomic(self, stmt: Atomic) -> None:
        value, *masks = self.evaluate(*expressions(stmt))
        for lane in range(max(self.lanes, 1)):
            if masks and not np.broadcast_to(masks[0], max(self.lanes, 1))[lane]:
                continue
            at = tuple(int(np.broadcast_to(index, max(self.lanes, 1))[lane]) for index in self.evaluate.position(stmt.indices))
            self.evaluate.check(stmt.buffer, stmt.indices, at)
            buffer = self.buffers[stmt.buffer]
            buffer[at] = combine_atomic(stmt.fn, buffer[at], np.broadcast_to(value, max(self.lanes, 1))[lane])


def combine_atomic(fn: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What an Atomic of ``fn`` leaves of two values: the same whichever came first."""
    if fn in ("min", "max") and np.asarray(a == b).all() and dtypes.from_numpy(np.asarray(a).dtype).is_float:
        return a if bool(np.signbit(np.float64(a))) == (fn == "min") else b
    return elementwise.apply(fn, (a, b))[()]


def _view(kernel: Kernel, param: Param, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if param.of is not None and array.dtype == param.of.numpy and array.flags.c_contiguous:
        array = array.reshape(-1).view(param.dtype.numpy)
    if array.dtype != param.dtype.numpy or array.size != np.prod(shape, dtype=np.int64) or not array.flags.c_contiguous:
        raise InvalidModelError(
            f"parameter {param.name} of kernel {kernel.name}: expected contiguous {param.dtype}{list(shape)}, "
            f"got {array.dtype}{list(array.shape)}"
        )
    return array.reshape(shape)


def _fresh(dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    if dtype.is_float:
        with np.errstate(all="ignore"):
            return np.full(shape, np.nan).astype(dtype.numpy)
    pattern = 1 if dtype.bits < 8 else 0x5A
    return np.full(dtype.bytes * int(np.prod(shape, dtype=np.int64)), pattern, np.uint8).view(dtype.numpy).reshape(shape)


def _independent(loop: For, same: dict[str, str]) -> bool:
    """Whether each element the loop stores belongs to one lane: all accesses to its buffer use one index tuple, linear in the lane."""
    touched: dict[str, set[Shape]] = {}
    stored: set[str] = set()
    for stmt in walk(loop.body):
        if isinstance(stmt, Alloc | While):
            return False
        for expr in postorder(*expressions(stmt)):
            if isinstance(expr, Load):
                touched.setdefault(same.get(expr.buffer, expr.buffer), set()).add(expr.indices)
        if isinstance(stmt, Store):
            name = same.get(stmt.buffer, stmt.buffer)
            stored.add(name)
            touched.setdefault(name, set()).add(stmt.indices)
    inner = {stmt.var if isinstance(stmt, For) else stmt.name for stmt in walk(loop.body) if isinstance(stmt, For | Let)}
    return all(len(touched[name]) == 1 and _separates(next(iter(touched[name])), loop.var, inner) for name in stored)


def _separates(indices: Shape, var: str, inner: set[str]) -> bool:
    return any(_constant_step(index, var) and not (dim.symbols(index) & inner) for index in indices)


def _constant_step(index: DimLike, var: str) -> bool:
    parts = dim.linear(index, var)
    return parts is not None and isinstance(parts[0], int) and parts[0] != 0
