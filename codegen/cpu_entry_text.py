"""The text of an entry function: blocks in order, dimension expressions as i64 arithmetic.

Expressions over entry symbols are computed once, in the prologue, which dominates everything. Others are
computed where they are used, because their symbols change. Arithmetic is total: x // 0 and x % 0 are 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tcompile.ir import dims
from tcompile.ir.dims import Call, DimLike, Ranges, Symbol


def function(name: str, text: Text, kind: str = "define") -> str:
    """The text of a function of a frame."""
    lines = "\n".join((*text.prologue, "br label %start", "start:", *text.lines))
    return f"{kind} i32 @{name}(ptr %frame) #0 {{\nentry:\n{lines}\n}}"


class Text:
    """One function under construction."""

    def __init__(self, symbols: tuple[str, ...], entry_symbols: frozenset[str], ranges: Ranges) -> None:
        self.numbers = {name: k for k, name in enumerate(symbols)}
        self.entry, self.ranges = entry_symbols, ranges
        self.prologue: list[str] = []
        self.lines: list[str] = []
        self._names = 0
        self._memo: dict[str, str] = {}
        self.dims = ""  # the pointer to the dims, once loaded

    def name(self) -> str:
        self._names += 1
        return f"%v{self._names}"

    def label(self, hint: str) -> str:
        self._names += 1
        return f"{hint}{self._names}"

    def line(self, text: str) -> None:
        """An instruction without a result, here."""
        self.lines.append(text)

    def value(self, text: str) -> str:
        """An instruction here; its name."""
        name = self.name()
        self.lines.append(f"{name} = {text}")
        return name

    def once(self, text: str) -> str:
        """An instruction of the prologue, whose operands are there too; the same text is there once."""
        name = self._memo.get(text)
        if name is None:
            name = self._memo[text] = self.name()
            self.prologue.append(f"{name} = {text}")
        return name

    def start(self, label: str) -> None:
        """Ends the current block by falling into the next."""
        self.line(f"br label %{label}")
        self.begin(label)

    def begin(self, label: str) -> None:
        """The next block, after a terminator."""
        self.lines.append(f"{label}:")

    def branch(self, cond: str, then: str, otherwise: str) -> None:
        """Ends the current block; the block ``then`` follows."""
        self.line(f"br i1 {cond}, label %{then}, label %{otherwise}")
        self.begin(then)

    @contextmanager
    def where_failed(self, status: str) -> Iterator[None]:
        """What is emitted within runs where a status is none of success, and returns; the next block where it is."""
        failed, go = self.label("failed"), self.label("go")
        self.branch(self.value(f"icmp ne i32 {status}, 0"), failed, go)
        yield
        self.begin(go)

    # Dimensions ---------------------------------------------------------------------------------------

    def dim(self, expr: DimLike) -> str:
        """An expression as an i64 operand."""
        if isinstance(expr, int):
            return str(expr)
        emit = self.once if dims.symbols(expr) <= self.entry else self.value
        return self._polynomial(expr, emit)

    def set_dim(self, symbol: str, value: str) -> None:
        """symbol = value."""
        place = self.once(f"getelementptr i64, ptr {self.dims}, i64 {self.numbers[symbol]}")
        self.line(f"store i64 {value}, ptr {place}, align 8")

    def _polynomial(self, expr: DimLike, emit) -> str:
        if isinstance(expr, int):
            return str(expr)
        total = ""
        for monomial, factor in expr.terms:
            product = str(factor)
            for k, atom in enumerate(monomial):
                value = self._symbol(atom, emit) if isinstance(atom, Symbol) else self._call(atom, emit)
                product = value if k == 0 and factor == 1 else emit(f"mul i64 {product}, {value}")
            total = product if not total else emit(f"add i64 {total}, {product}")
        return total

    def _symbol(self, atom: Symbol, emit) -> str:
        place = self.once(f"getelementptr i64, ptr {self.dims}, i64 {self.numbers[atom.name]}")
        return emit(f"load i64, ptr {place}, align 8")

    def _call(self, atom: Call, emit) -> str:
        a, b = (self._polynomial(arg, emit) for arg in atom.args)
        if atom.fn in ("min", "max"):
            return emit(f"call i64 @llvm.s{atom.fn}.i64(i64 {a}, i64 {b})")
        if atom.fn == "bcast":
            one = emit(f"icmp eq i64 {a}, 1")
            return emit(f"select i1 {one}, i64 {b}, i64 {a}")
        return self._divide(atom, a, b, emit)

    def _divide(self, atom: Call, a: str, b: str, emit) -> str:
        """Rounds towards minus infinity; a divisor of 0 gives 0."""
        positive = all(dims.nonnegative(arg, self.ranges) for arg in atom.args)
        zero = emit(f"icmp eq i64 {b}, 0")
        divisor = emit(f"select i1 {zero}, i64 1, i64 {b}")
        if positive:
            result = emit(f"{'udiv' if atom.fn == 'floordiv' else 'urem'} i64 {a}, {divisor}")
        else:
            rest = emit(f"srem i64 {a}, {divisor}")
            differ = emit(f"xor i64 {rest}, {divisor}")
            apart = emit(f"icmp slt i64 {differ}, 0")
            inexact = emit(f"icmp ne i64 {rest}, 0")
            down = emit(f"and i1 {apart}, {inexact}")
            if atom.fn == "floordiv":
                quotient = emit(f"sdiv i64 {a}, {divisor}")
                step = emit(f"sext i1 {down} to i64")
                result = emit(f"add i64 {quotient}, {step}")
            else:
                moved = emit(f"add i64 {rest}, {divisor}")
                result = emit(f"select i1 {down}, i64 {moved}, i64 {rest}")
        return emit(f"select i1 {zero}, i64 0, i64 {result}")
