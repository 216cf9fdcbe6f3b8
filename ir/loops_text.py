"""The Loop IR as text; ``ir/loops_parse.py`` reads it back.

    kernel scale(p0: in f32[d0, 8], p1: out f32[d0, 8]) dims (d0) flops 8*d0 {
      parallel i0 in 0..d0 {
        vector i1 in 0..8 width 8 {
          $0 = load p0[i0, i1]
          store p1[i0, i1] = select(lt($0, 0.0:f32), mul($0, 0.5:f32), $0)
        }
      }
    }

A line ``$0 = ...`` names an expression object that is used more than once (or one whose text is long), so that the text stays
linear in the size of the DAG and parsing restores the sharing. It is notation, not a statement: ``let`` is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tcompile.ir.dims import DimLike
from tcompile.ir.loops import (
    Alloc,
    Atomic,
    Barrier,
    Bitcast,
    Block,
    Cast,
    Check,
    CommitAsync,
    Const,
    CopyAsync,
    Expr,
    For,
    If,
    Index,
    Kernel,
    Let,
    Load,
    LoopKind,
    Op,
    Param,
    Prefetch,
    Select,
    Shuffle,
    Stmt,
    Store,
    TileOp,
    Var,
    WaitAsync,
    While,
)
from tcompile.ir.loops_evaluate import operands, postorder
from tcompile.ir.loops_interpret import expressions, walk

_LONG = 120  # characters from which an operand gets a line of its own


def print_kernel(kernel: Kernel) -> str:
    """The text of a kernel."""
    tags = "".join(f" tag {json.dumps(key)} {json.dumps(value)}" for key, value in kernel.tags.items())
    return _text(kernel, kernel.name, f" flops {kernel.flops}{tags}")


def kernel_key(kernel: Kernel) -> str:
    """The text without name, flops and tags: equal for kernels (of canonical names) that compile to the same code."""
    return _text(kernel, "_", "")


def _text(kernel: Kernel, name: str, notes: str) -> str:
    params = ", ".join(map(_param, kernel.params))
    aliases = "".join(f" alias {a} {b}" for a, b in kernel.aliases)
    head = f"kernel {name}({params}) dims ({', '.join(kernel.dims)}){aliases}{notes} {{"
    writer = _Writer(kernel.body)
    writer.block(kernel.body, 1)
    return "\n".join([head, *writer.lines, "}"]) + "\n"


def _param(param: Param) -> str:
    return f"{param.name}: {param.access} {param.dtype}{_indices(param.shape)}{f' of {param.of}' if param.of else ''}"


def _indices(indices: Iterable[DimLike]) -> str:
    return f"[{', '.join(map(str, indices))}]"


class _Writer:
    def __init__(self, body: Block) -> None:
        self.lines: list[str] = []
        self.shared = _shared(body)
        self.names: dict[int, str] = {}

    def block(self, block: Block, depth: int) -> None:
        for stmt in block:
            self.statement(stmt, depth)

    def line(self, depth: int, text: str) -> None:
        self.lines.append("  " * depth + text)

    def statement(self, stmt: Stmt, depth: int) -> None:
        match stmt:
            case Store():
                value, *mask = self.exprs(expressions(stmt), depth)
                guard = f" if {mask[0]}" if mask else ""
                self.line(depth, f"store {stmt.buffer}{_indices(stmt.indices)}{guard} = {value}")
            case Let():
                self.line(depth, f"let {stmt.name} = {self.exprs((stmt.value,), depth)[0]}")
            case For():
                kind = "for" if stmt.kind is LoopKind.SERIAL else stmt.kind.value
                width = f" width {stmt.width}" if stmt.width != 1 else ""
                self.nested(f"{kind} {stmt.var} in 0..{stmt.extent}{width} {{", stmt.body, depth)
                self.line(depth, "}")
            case While():
                self.nested(f"while {self.exprs((stmt.cond,), depth)[0]} {{", stmt.body, depth)
                self.line(depth, "}")
            case If():
                self.nested(f"if {self.exprs((stmt.cond,), depth)[0]} {{", stmt.then, depth)
                if stmt.otherwise:
                    self.nested("} else {", stmt.otherwise, depth)
                self.line(depth, "}")
            case Alloc():
                self.line(depth, f"alloc {stmt.name}: {stmt.dtype}{_indices(stmt.shape)} {stmt.space}")
            case Check():
                self.line(depth, f"check {self.exprs((stmt.cond,), depth)[0]} else {stmt.status.name}")
            case Prefetch():
                self.line(depth, f"prefetch {'near ' if stmt.near else ''}{stmt.buffer}{_indices(stmt.indices)}")
            case _:
                self.together(stmt, depth)

    def together(self, stmt: Stmt, depth: int) -> None:
        """The statements of threads that work together."""
        match stmt:
            case Barrier():
                self.line(depth, f"barrier {stmt.scope}")
            case CopyAsync():
                mask = self.exprs(expressions(stmt), depth)
                ends = f"{stmt.target}{_indices(stmt.target_indices)} = {stmt.source}{_indices(stmt.source_indices)}"
                self.line(depth, f"copy_async {ends} elements {stmt.elements}{f' if {mask[0]}' if mask else ''}")
            case CommitAsync():
                self.line(depth, "commit_async")
            case WaitAsync():
                self.line(depth, f"wait_async {stmt.pending}")
            case Atomic():
                value, *mask = self.exprs(expressions(stmt), depth)
                guard = f" if {mask[0]}" if mask else ""
                self.line(depth, f"atomic {stmt.fn} {stmt.buffer}{_indices(stmt.indices)}{guard} = {value}")
            case TileOp():
                operands = ", ".join(f"{tile.buffer}{_indices(tile.indices)}" for tile in stmt.operands)
                self.line(depth, f"tile {stmt.name}({operands})")
            case _:
                raise TypeError(f"not a Loop IR statement: {stmt!r}")

    def nested(self, head: str, body: Block, depth: int) -> None:
        self.line(depth, head)
        self.block(body, depth + 1)

    def exprs(self, roots: tuple[Expr, ...], depth: int) -> list[str]:
        """The texts of expressions, after the lines that name their shared parts."""
        texts: dict[int, str] = {}
        tops = set(map(id, roots))
        for expr in postorder(*roots):
            key = id(expr)
            if key in self.names:
                texts[key] = self.names[key]
                continue
            text = _expression(expr, [texts[id(operand)] for operand in operands(expr)])
            if key in self.shared or (len(text) > _LONG and key not in tops):
                self.names[key] = f"${len(self.names)}"
                self.line(depth, f"{self.names[key]} = {text}")
                text = self.names[key]
            texts[key] = text
        return [texts[id(root)] for root in roots]


def _shared(body: Block) -> set[int]:
    """The ids of operations and loads that several expressions or statements use. Leaves are as good as copies of them."""
    seen: set[int] = set()
    shared: set[int] = set()
    stack = [root for stmt in walk(body) for root in expressions(stmt)]
    while stack:
        expr = stack.pop()
        if isinstance(expr, Const | Var | Index):
            continue
        if id(expr) in seen:
            shared.add(id(expr))
            continue
        seen.add(id(expr))
        stack.extend(operands(expr))
    return shared


def _expression(expr: Expr, args: list[str]) -> str:
    match expr:
        case Op(fn=fn):
            return f"{fn}({', '.join(args)})"
        case Load(buffer=buffer, indices=indices):
            return f"load {buffer}{_indices(indices)}{f' if {args[0]}' if args else ''}"
        case Const(value=value, dtype=dtype):
            return _constant(value, dtype.name)
        case Var(name=name):
            return name
        case Index(expr=index):
            return f"index({index})"
        case Select():
            return f"select({', '.join(args)})"
        case Cast(dtype=dtype, saturate=saturate):
            return f"cast({args[0]}, {dtype}{'' if saturate else ', wrap'})"
        case Bitcast(dtype=dtype):
            return f"bitcast({args[0]}, {dtype})"
        case Shuffle(xor=xor):
            return f"shuffle({args[0]}, {xor})"
    raise TypeError(f"not a Loop IR expression: {expr!r}")


def _constant(value: int | float | bool, dtype: str) -> str:
    if dtype == "bool":
        return "true" if value else "false"
    return f"{value!r}:{dtype}" if isinstance(value, int | float) else f"{value.item()!r}:{dtype}"
