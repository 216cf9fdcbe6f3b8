"""Statements as C: loops, branches, stores, checks, and what threads do together. One ``Statements`` emits one kernel's body.

A vector loop is a loop over whole vectors, its lanes written out, and a loop over what is left. A failing check sets the
status word; then the thread returns where it meets no others later, else it goes on without touching global memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import ClassVar

from tcompile.codegen.cuda_emit_expressions import Buffer, Expressions, Lanes, Texts
from tcompile.codegen.cuda_emit_index import Text
from tcompile.codegen.cuda_emit_types import c_name, c_type, is_sub_byte
from tcompile.errors import InvalidModelError, UnsupportedError
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.dtypes import F32, F64, I64
from tcompile.ir.loops import (
    Alloc,
    Atomic,
    Barrier,
    Block,
    Check,
    CommitAsync,
    CopyAsync,
    Expr,
    For,
    If,
    Index,
    Let,
    Load,
    LoopKind,
    Prefetch,
    Scope,
    Shuffle,
    Space,
    Status,
    Stmt,
    Store,
    TileOp,
    WaitAsync,
    While,
)
from tcompile.ir.loops_evaluate import postorder
from tcompile.ir.loops_interpret import expressions, walk

STATUS_CODES = {status: code for code, status in enumerate(Status, 1)}
LOCAL_BYTES = 16384  # of a thread's own arrays: more is slower than any schedule that keeps them elsewhere
_UNBOUNDED = Range(-(2**63), 2**63 - 1)
_TOGETHER = (Barrier, TileOp)
_BARRIERS = {Scope.CLUSTER: "tc_cluster_sync();", Scope.BLOCK: "__syncthreads();", Scope.WARP: "__syncwarp();"}


class Statements(Expressions):
    """Emits the code of one thread."""

    def __init__(self, uses: Callable[[str], None], body: Block) -> None:
        super().__init__(uses, body)
        self.meets = _meets(body)
        self.checks = False

    # Blocks -------------------------------------------------------------------------------------------

    def block(self, block: Block) -> None:
        """Statements with the names they bind, which end with the block."""
        with self.scope():
            for stmt in block:
                self._STATEMENTS[type(stmt)](self, stmt)

    @contextmanager
    def scope(self):
        """What is bound or made inside ends with it."""
        names, known = self.names.snapshot(), dict(self.known)
        variables, buffers, named = dict(self.variables), dict(self.buffers), dict(self.lanes.named)
        yield
        gone = {key for key, entry in known.items() if key not in self.known}
        self.names.restore(names)
        self.known = {key: entry for key, entry in known.items() if key not in gone}
        self.variables, self.buffers, self.lanes.named = variables, buffers, named

    def nested(self, head: str, block: Block, tail: str = "}") -> None:
        """A block in braces."""
        self.line(head)
        self.depth += 1
        self.block(block)
        self.depth -= 1
        if tail:
            self.line(tail)

    def written(self, block: Block) -> set[str] | None:
        """The groups of buffers that a block writes to; None where other threads may have written any."""
        found: set[str] = set()
        for stmt in walk(block):
            if isinstance(stmt, Barrier | WaitAsync):
                return None
            name = _target(stmt)
            if name is not None and name in self.buffers:
                found.add(self.buffers[name].group)
        return found

    # Names --------------------------------------------------------------------------------------------

    def let(self, stmt: Let) -> None:
        texts = self.value(stmt.value)
        name, dtype = c_name(stmt.name), stmt.value.dtype
        names = (name,) if len(texts) == 1 else tuple(f"{name}_{lane}" for lane in range(len(texts)))
        wide = not (isinstance(stmt.value, Index) and not self.names.value(stmt.value.expr).wide) if len(texts) == 1 else True
        known = Range(stmt.value.expr, stmt.value.expr) if isinstance(stmt.value, Index) and len(texts) == 1 else _UNBOUNDED
        kind = c_type(dtype) if dtype != I64 or wide else "int"
        for new, text in zip(names, texts, strict=True):
            self.line(f"const {kind} {new} = {_plain(text)};")
            if dtype == I64:
                self.names.bind(new, Text(new, wide), known)
        self.variables[stmt.name] = names
        if dtype == I64:
            if len(names) == 1:
                self.names.bind(stmt.name, Text(name, wide), known)
            else:
                self.lanes.named[stmt.name] = names

    def alloc(self, stmt: Alloc) -> None:
        """An array of this thread."""
        if not all(isinstance(extent, int) for extent in stmt.shape):
            raise UnsupportedError(
                f"buffer {stmt.name}: a GPU thread has no {stmt.space} memory of the symbolic shape {list(stmt.shape)}",
                hint="keep it in a parameter, or in shared memory of constant shape",
            )
        size = dims.product(stmt.shape) * stmt.dtype.bytes
        if size > LOCAL_BYTES:
            raise UnsupportedError(f"buffer {stmt.name}: {size} bytes for one GPU thread; it has {LOCAL_BYTES}")
        self.line(f"{c_type(stmt.dtype)} {c_name(stmt.name)}[{max(dims.product(stmt.shape), 1)}];")
        self.declare_buffer(stmt)

    def declare_buffer(self, stmt: Alloc) -> None:
        """Brings a buffer into scope."""
        self.buffers[stmt.name] = Buffer(c_name(stmt.name), stmt.dtype, stmt.shape, stmt.space, stmt.name)

    # Memory -------------------------------------------------------------------------------------------

    def store(self, stmt: Store) -> None:
        buffer = self.buffer(stmt.buffer)
        mask = None if stmt.mask is None else self.value(stmt.mask)
        value = self.value(stmt.value)
        if is_sub_byte(buffer.dtype):
            value = tuple(f"({c_type(buffer.dtype)})({text} & {(1 << buffer.dtype.bits) - 1})" for text in value)
        mask = self.guarded(buffer, mask)
        if mask is None or len(mask) == 1:
            chunk, flat = self.chunk(buffer, stmt.indices)
            if chunk > 1:
                self.store_chunks(buffer, flat, chunk, value, mask)
                self.forget((buffer.group,))
                return
        indices = self.by_lane_indices(stmt.indices)
        count = max(len(indices), len(value), len(mask or ()))
        for lane in range(count):
            place = self.names.offset(indices[lane % len(indices)], buffer.shape)[1]
            guard = f"if ({_plain(mask[lane % len(mask)])}) " if mask else ""
            self.line(f"{guard}{buffer.name}[{_plain(place)}] = {_plain(value[lane % len(value)])};")
        self.forget((buffer.group,))

    def store_chunks(self, buffer: Buffer, flat: DimLike, chunk: int, value: Texts, mask: Texts | None) -> None:
        size, lanes = chunk * buffer.dtype.bytes, self.lanes.lanes
        self.uses("tc_store")
        value = value if len(value) == lanes else self.simple(value, buffer.dtype) * lanes
        guard = f"if ({_plain(mask[0])}) " if mask else ""
        for start in range(0, lanes, chunk):
            words = ", ".join(self.packed(value[start : start + chunk], buffer.dtype))
            self.line(f"{guard}tc_store{size}({self.address(buffer, flat + start)}, {words});")

    def prefetch(self, stmt: Prefetch) -> None:
        buffer = self.buffer(stmt.buffer)
        if buffer.space is Space.GLOBAL:
            self.uses("tc_prefetch")
            self.line(f"tc_prefetch({self.address(buffer, self.names.offset(stmt.indices, buffer.shape)[0])});")

    def atomic(self, stmt: Atomic) -> None:
        buffer = self.buffer(stmt.buffer)
        if buffer.dtype.is_float and buffer.dtype not in (F32, F64):
            raise UnsupportedError(f"CUDA code generator: no atomic {stmt.fn} of {buffer.dtype}", hint="keep the buffer in f32")
        if buffer.dtype.bits < 8:
            raise UnsupportedError(f"CUDA code generator: no atomic {stmt.fn} of {buffer.dtype}")
        self.uses("tc_atomic")
        mask = None if stmt.mask is None else self.value(stmt.mask)
        value = self.value(stmt.value)
        mask = self.guarded(buffer, mask)
        indices = self.by_lane_indices(stmt.indices)
        lanes = max(len(indices), len(value), len(mask or ()), self.lanes.lanes, 1)
        for lane in range(lanes):
            place = self.address(buffer, self.names.offset(indices[lane % len(indices)], buffer.shape)[0])
            guard = f"if ({_plain(mask[lane % len(mask)])}) " if mask else ""
            self.line(f"{guard}tc_atomic_{stmt.fn}({place}, ({c_type(buffer.dtype)}){value[lane % len(value)]});")
        self.forget((buffer.group,))

    # Threads together ---------------------------------------------------------------------------------

    def barrier(self, stmt: Barrier) -> None:
        if stmt.scope is Scope.CLUSTER:
            self.uses("tc_cluster_sync")
        self.line(_BARRIERS[stmt.scope])
        self.forget(None)

    def copy_async(self, stmt: CopyAsync) -> None:
        target, source = self.buffer(stmt.target), self.buffer(stmt.source)
        self.uses("tc_copy_async")
        mask = self.guarded(source, None if stmt.mask is None else self.value(stmt.mask))
        to = self.address(target, self.names.offset(stmt.target_indices, target.shape)[0])
        origin = self.address(source, self.names.offset(stmt.source_indices, source.shape)[0])
        size = stmt.elements * target.dtype.bytes
        self.line(f"tc_copy_async{size}({to}, {origin}, {_plain(mask[0]) if mask else 'true'});")
        self.forget((target.group,))

    def commit_async(self, stmt: CommitAsync) -> None:
        self.uses("tc_copy_async")
        self.line("tc_commit_async();")

    def wait_async(self, stmt: WaitAsync) -> None:
        self.uses("tc_copy_async")
        self.line(f"tc_wait_async<{stmt.pending}>();")
        self.forget(None)

    def tile_op(self, stmt: TileOp) -> None:
        self.uses("tc_word")
        self.uses(f"tc_{stmt.name}")
        operands = []
        for tile in stmt.operands:
            buffer = self.buffer(tile.buffer)
            operands.append(self.address(buffer, self.names.offset(tile.indices, buffer.shape)[0]))
        self.line(f"tc_{stmt.name}({', '.join(operands)});")
        self.forget((self.buffer(stmt.operands[0].buffer).group,) if stmt.operands else None)

    # Control ------------------------------------------------------------------------------------------

    def check(self, stmt: Check) -> None:
        self.checks = True
        code = STATUS_CODES[stmt.status]
        for text in self.value(stmt.cond):
            if text == "true":
                continue
            report = f"atomicCAS(status, 0, {code});  // {stmt.status}"
            if self.meets:
                self.line(f"if (ok && !{text}) {{")
                self.line("    ok = false;")
            else:
                self.line(f"if (!{text}) {{")
            self.line(f"    {report}")
            if not self.meets:
                self.line("    return;")
            self.line("}")
        if self.meets:
            self.guard = "ok"

    def branch(self, stmt: If) -> None:
        cond = self.scalar(stmt.cond)
        if cond in ("true", "false"):
            self.nested("{", stmt.then if cond == "true" else stmt.otherwise)
            return
        self.nested(f"if ({_plain(cond)}) {{", stmt.then, "" if stmt.otherwise else "}")
        if stmt.otherwise:
            self.nested("} else {", stmt.otherwise)

    def repeat(self, stmt: While) -> None:
        self.forget(self.written(stmt.body))
        self.line("while (true) {")
        self.depth += 1
        with self.scope():
            stop = self.scalar(stmt.cond)
            self.line(f"if (!{stop}) break;")
            self.block(stmt.body)
        self.depth -= 1
        self.line("}")

    def loop(self, loop: For) -> None:
        match loop.kind:
            case LoopKind.SERIAL | LoopKind.UNROLLED:
                self.counted(loop, loop.extent)
            case LoopKind.VECTOR:
                self.vector(loop)
            case LoopKind.GRID | LoopKind.CLUSTER | LoopKind.BLOCK:
                raise InvalidModelError(f"{loop.kind} loop {loop.var}: expected one nest of grid and block loops")
            case _:
                raise UnsupportedError(f"loop {loop.var}: a GPU has no {loop.kind} loops")

    def counted(self, loop: For, extent: DimLike, first: DimLike = 0) -> None:
        """A loop of one iteration after the other, from ``first``."""
        self.forget(self.written(loop.body))
        if loop.kind is LoopKind.UNROLLED:
            self.line("#pragma unroll")
        elif loop.kind is LoopKind.SERIAL and self.registers_indexed(loop):
            raise InvalidModelError(f"loop {loop.var} indexes registers: it must be unrolled")
        self.head(loop, first, extent, "++")
        self.in_loop(loop, loop.body)
        self.line("}")

    def head(self, loop: For, first: DimLike, stop: DimLike, step: str) -> None:
        """The line that opens a loop."""
        name, wide = c_name(loop.var), not self.names.fits_int(loop.extent)
        start, end = self.names.value(first).text, self.names.value(stop).text
        advance = f"++{name}" if step == "++" else f"{name} += {step}"
        self.line(f"for ({'long long' if wide else 'int'} {name} = {start}; {name} < {end}; {advance}) {{")

    def in_loop(self, loop: For, body: Block) -> None:
        """The body of a loop, its variable bound."""
        with self.scope():
            self.bind_loop(loop)
            self.depth += 1
            self.block(body)
            self.depth -= 1

    def bind_loop(self, loop: For) -> None:
        wide = not self.names.fits_int(loop.extent)
        self.variables.pop(loop.var, None)
        self.names.bind(loop.var, Text(c_name(loop.var), wide), Range(0, loop.extent - 1))

    def vector(self, loop: For) -> None:
        """Whole vectors, then what is left."""
        if self.lanes.lanes:
            raise InvalidModelError(f"vector loop {loop.var} inside another")
        extent, width = loop.extent, loop.width
        whole = dims.floordiv(extent, width, self.names.ranges) * width
        self.forget(self.written(loop.body))
        if isinstance(extent, int):
            if self.registers_indexed(loop):
                self.line("#pragma unroll")
            if extent >= width:
                self.whole_vectors(loop, whole)
            if extent > whole:
                self.rest(loop, whole)
            return
        self.whole_vectors(loop, whole)
        if whole != extent:
            self.forget(self.written(loop.body))
            self.rest(loop, whole)

    def whole_vectors(self, loop: For, stop: DimLike) -> None:
        self.head(loop, 0, stop, str(loop.width))
        self.lanes = Lanes(loop.var, loop.width)
        self.in_loop(loop, loop.body)
        self.lanes = Lanes()
        self.line("}")

    def rest(self, loop: For, first: DimLike) -> None:
        if self.registers_indexed(loop):
            self.line("#pragma unroll")
        self.head(loop, first, loop.extent, "++")
        self.in_loop(loop, loop.body)
        self.line("}")

    def registers_indexed(self, loop: For) -> bool:
        """Whether a body indexes registers by the loop's variable."""
        return any(
            loop.var in dims.shape_symbols(indices)
            for name, indices in _accesses(loop.body)
            if name in self.buffers and self.buffers[name].space is Space.REGISTER
        )

    _STATEMENTS: ClassVar[dict[type, Callable[[Statements, Stmt], None]]] = {
        For: loop,
        While: repeat,
        If: branch,
        Let: let,
        Store: store,
        Alloc: alloc,
        Check: check,
        Prefetch: prefetch,
        Barrier: barrier,
        CopyAsync: copy_async,
        CommitAsync: commit_async,
        WaitAsync: wait_async,
        Atomic: atomic,
        TileOp: tile_op,
    }


def _accesses(block: Block) -> Iterable[tuple[str, tuple[DimLike, ...]]]:
    for stmt in walk(block):
        if isinstance(stmt, Store | Atomic):
            yield stmt.buffer, stmt.indices
        for expr in postorder(*expressions(stmt)):
            if isinstance(expr, Load):
                yield expr.buffer, expr.indices


def _meets(body: Block) -> bool:
    """Whether threads meet others: a thread that returned would be missed."""
    return any(isinstance(stmt, _TOGETHER) or any(map(_is_shuffle, postorder(*expressions(stmt)))) for stmt in walk(body))


def _is_shuffle(expr: Expr) -> bool:
    return isinstance(expr, Shuffle)


def _target(stmt: Stmt) -> str | None:
    """The buffer that a statement itself writes to."""
    match stmt:
        case Store(buffer=name) | Atomic(buffer=name):
            return name
        case CopyAsync(target=name):
            return name
        case TileOp(operands=operands) if operands:
            return operands[0].buffer
    return None


def _plain(text: str) -> str:
    """A text without parentheses around all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for place, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0 and place < len(text) - 1:
            return text
    return text[1:-1]
