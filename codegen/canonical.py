"""Canonical kernels: parameters p0.., dims d0.., loop variables i0.., scalars x0.., buffers b0.. in order of appearance.

Kernels of equal structure then have equal text, so that they are compiled once, and twelve identical layers
share one function.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tcompile.codegen.loop_rewrite import Rewriter
from tcompile.ir import dims
from tcompile.ir.dims import NOTHING_KNOWN, DimLike, Symbol
from tcompile.ir.loops import Alloc, Block, Expr, For, Kernel, Let, Stmt, Var


def canonical(kernel: Kernel, symbols: Iterable[str]) -> tuple[Kernel, tuple[str, ...]]:
    """The kernel with canonical names, and the dimension symbols that its dims d0.. stand for.

    ``symbols`` are the names that are dimensions of the program (all other free names are an error of the builder).
    """
    order = _used_symbols(kernel, frozenset(symbols))
    renamer = _Renamer({name: f"d{k}" for k, name in enumerate(order)})
    params = []
    for k, param in enumerate(kernel.params):
        renamer.buffers[param.name] = f"p{k}"
        params.append(replace(param, name=f"p{k}", shape=renamer.shape(param.shape)))
    body = renamer.block(kernel.body)
    renamed = replace(
        kernel, params=tuple(params), dims=tuple(f"d{k}" for k in range(len(order))), body=body, flops=renamer.index(kernel.flops)
    )
    return renamed, tuple(order)


class _Renamer(Rewriter):
    """Renames in the order of the text. A name that sibling blocks bind keeps one new name in all of them."""

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__()
        self.names = names
        self.buffers: dict[str, str] = {}
        self._counts = {"i": 0, "x": 0, "b": 0}

    def dim(self, expr: DimLike) -> DimLike:
        return dims.substitute(expr, {name: dims.symbol(self.names[name]) for name in dims.symbols(expr)}, NOTHING_KNOWN)

    def buffer(self, name: str) -> str:
        return self.buffers[name]

    def variable(self, var: Var) -> Expr:
        return Var(self.names[var.name], var.dtype)

    def statement(self, stmt: Stmt) -> Block:
        match stmt:
            case For():
                extent = self.index(stmt.extent)
                name = self._bind(self.names, stmt.var, "i")
                return (replace(stmt, var=name, extent=extent, body=self.block(stmt.body)),)
            case Let():
                value = self.expr(stmt.value)
                return (Let(self._bind(self.names, stmt.name, "x"), value),)
            case Alloc():
                return (replace(stmt, shape=self.shape(stmt.shape), name=self._bind(self.buffers, stmt.name, "b")),)
        return super().statement(stmt)

    def _bind(self, table: dict[str, str], name: str, letter: str) -> str:
        if name not in table:
            table[name] = f"{letter}{self._counts[letter]}"
            self._counts[letter] += 1
        return table[name]


def _used_symbols(kernel: Kernel, symbols: frozenset[str]) -> list[str]:
    """The dimension symbols of a kernel, in the order in which its text shows them."""
    collector = _Collector(symbols)
    for param in kernel.params:
        collector.shape(param.shape)
    collector.block(kernel.body)
    collector.index(kernel.flops)
    return list(collector.found)


class _Collector(Rewriter):
    def __init__(self, symbols: frozenset[str]) -> None:
        super().__init__()
        self.symbols = symbols
        self.found: dict[str, None] = {}

    def dim(self, expr: DimLike) -> DimLike:
        self._visit(expr)
        return expr

    def _visit(self, expr: DimLike) -> None:
        for monomial, _ in () if isinstance(expr, int) else expr.terms:
            for atom in monomial:
                if isinstance(atom, Symbol):
                    if atom.name in self.symbols:
                        self.found.setdefault(atom.name)
                else:
                    for arg in atom.args:
                        self._visit(arg)
