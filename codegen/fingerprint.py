"""The structure of a kernel as text, with shared expressions numbered: equal text, equal function.

The name and the flops are left out: kernels that differ in nothing else are one.
"""

from __future__ import annotations

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
    Op,
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
from tcompile.ir.loops_evaluate import postorder


def fingerprint(kernel: Kernel) -> str:
    """Equal for kernels of equal parameters, aliases and bodies. Meant for canonical kernels."""
    writer = _Writer()
    for param in kernel.params:
        writer.line(f"param {param.name} {param.dtype}[{_shape(param.shape)}] {param.access} {param.stored}")
    writer.line(f"dims {' '.join(kernel.dims)} aliases {kernel.aliases}")
    writer.block(kernel.body)
    return "\n".join(writer.lines)


def _shape(shape: tuple) -> str:
    return ", ".join(map(str, shape))


class _Writer:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.numbers: dict[int, int] = {}
        self.kept: list[Expr] = []  # ids stay theirs as long as the expressions live

    def line(self, text: str) -> None:
        self.lines.append(text)

    def block(self, block: Block) -> None:
        for stmt in block:
            self.statement(stmt)
        self.line("end")

    def statement(self, stmt: Stmt) -> None:
        match stmt:
            case For():
                self.line(f"for {stmt.var} {stmt.extent} {stmt.kind} {stmt.width}")
                self.block(stmt.body)
            case While():
                self.line(f"while {self.expr(stmt.cond)}")
                self.block(stmt.body)
            case If():
                self.line(f"if {self.expr(stmt.cond)}")
                self.block(stmt.then)
                self.block(stmt.otherwise)
            case Let():
                self.line(f"let {stmt.name} {self.expr(stmt.value)}")
            case Store():
                self.line(f"store {stmt.buffer} {_shape(stmt.indices)} {self.expr(stmt.value)} {self.optional(stmt.mask)}")
            case Alloc():
                self.line(f"alloc {stmt.name} {stmt.dtype}[{_shape(stmt.shape)}] {stmt.space}")
            case Check():
                self.line(f"check {self.expr(stmt.cond)} {stmt.status.name}")
            case Prefetch():
                self.line(f"prefetch {stmt.buffer} {_shape(stmt.indices)} {stmt.near}")
            case _:
                self.together(stmt)

    def together(self, stmt: Stmt) -> None:
        """The statements of threads that work together."""
        match stmt:
            case Barrier():
                self.line(f"barrier {stmt.scope}")
            case CopyAsync():
                ends = f"{stmt.target} {_shape(stmt.target_indices)} {stmt.source} {_shape(stmt.source_indices)}"
                self.line(f"copy_async {ends} {stmt.elements} {self.optional(stmt.mask)}")
            case CommitAsync():
                self.line("commit_async")
            case WaitAsync():
                self.line(f"wait_async {stmt.pending}")
            case Atomic():
                self.line(f"atomic {stmt.fn} {stmt.buffer} {_shape(stmt.indices)} {self.expr(stmt.value)} {self.optional(stmt.mask)}")
            case TileOp():
                operands = ", ".join(f"{tile.buffer} {_shape(tile.indices)}" for tile in stmt.operands)
                self.line(f"tile {stmt.name} {operands}")
            case _:
                raise TypeError(f"not a Loop IR statement: {stmt!r}")

    def optional(self, expr: Expr | None) -> str:
        return "-" if expr is None else self.expr(expr)

    def expr(self, root: Expr) -> str:
        for expr in postorder(root):
            if id(expr) not in self.numbers:
                self.line(f"{len(self.kept)}: {self._text(expr)}")
                self.numbers[id(expr)] = len(self.kept)
                self.kept.append(expr)
        return str(self.numbers[id(root)])

    def _text(self, expr: Expr) -> str:
        match expr:
            case Const():
                return f"const {expr.value!r} {expr.dtype}"
            case Var():
                return f"var {expr.name}"
            case Index():
                return f"index {expr.expr} {expr.dtype}"
            case Load():
                mask = "-" if expr.mask is None else self.numbers[id(expr.mask)]
                return f"load {expr.buffer} {_shape(expr.indices)} {expr.dtype} {mask}"
            case Op():
                return f"{expr.fn} {' '.join(str(self.numbers[id(arg)]) for arg in expr.args)} {expr.dtype}"
            case Cast():
                return f"cast {self.numbers[id(expr.arg)]} {expr.dtype} {expr.saturate}"
            case Bitcast():
                return f"bitcast {self.numbers[id(expr.arg)]} {expr.dtype}"
            case Shuffle():
                return f"shuffle {self.numbers[id(expr.arg)]} {expr.xor}"
            case Select():
                parts = (expr.cond, expr.then, expr.otherwise)
                return f"select {' '.join(str(self.numbers[id(part)]) for part in parts)}"
        raise TypeError(f"not a Loop IR expression: {expr!r}")
