"""Index expressions as C: 32-bit where bounds prove that nothing overflows, else 64-bit.

Where shapes have no bounds, indices are 32-bit under limits that the host checks (``cuda_emit_limits.py``), if the caller
does check them. An offset into a buffer of less than 2**31 elements may be computed modulo 2**32: sums and products of the low halves
are the low half of the result, which is inside the buffer. Divisions round towards minus infinity; x // 0 and x % 0 are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tcompile.codegen.cuda_emit_limits import INT_MAX, Limiter
from tcompile.codegen.cuda_emit_limits import terms_of as dims_terms
from tcompile.errors import InvalidModelError
from tcompile.ir import dims
from tcompile.ir.dims import Atom, Call, Dim, DimLike, Monomial, Range, Shape, Symbol


@dataclass(frozen=True)
class Text:
    """C text of an integer expression, and whether it is a long long."""

    text: str
    wide: bool = False

    def as_wide(self) -> str:
        """The text as a long long."""
        return self.text if self.wide else f"(long long){_unit(self.text)}"


@dataclass
class Names:
    """What symbols are called in C and the ranges of their values; ``uses`` is told the helper functions needed.

    ``limits`` collects what the host has to check: expressions over the dims ``base`` that are at most INT_MAX. None: nobody checks.
    """

    uses: Callable[[str], None]
    base: frozenset[str] = frozenset()
    limits: set[DimLike] | None = None
    texts: dict[str, Text] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    _memo: dict[tuple[DimLike, bool], Text] = field(default_factory=dict)
    _offsets: dict[tuple[Shape, Shape], tuple[DimLike, str]] = field(default_factory=dict)
    _sizes: dict[Atom, int | None] = field(default_factory=dict)
    _limiter: Limiter | None = None

    def bind(self, name: str, text: Text, known: Range) -> None:
        """Gives a symbol its C name and range from here on."""
        if name in self.texts:
            self._forget()
        self.texts[name], self.ranges[name] = text, known

    def snapshot(self) -> tuple[dict, dict]:
        """What is bound now, for ``restore``."""
        return dict(self.texts), dict(self.ranges)

    def restore(self, state: tuple[dict, dict]) -> None:
        """Forgets what was bound since."""
        self.texts, self.ranges = state
        self._forget()

    def _forget(self) -> None:
        self._memo.clear()
        self._offsets.clear()
        self._sizes.clear()
        self._limiter = None

    @property
    def limiter(self) -> Limiter:
        """Limits and signs of expressions under the present ranges."""
        if self._limiter is None:
            self._limiter = Limiter(self.base, self.ranges)
        return self._limiter

    # Texts --------------------------------------------------------------------------------------------

    def value(self, expr: DimLike) -> Text:
        """An index expression as an int where it provably is one, else as a long long."""
        return self._known(expr, modular=False)

    def offset(self, indices: Shape, shape: Shape) -> tuple[DimLike, str]:
        """The row-major position of an element of a buffer: as an expression, and as C."""
        key = (indices, shape)
        if key not in self._offsets:
            self._offsets[key] = self._offset(indices, shape)
        return self._offsets[key]

    def _offset(self, indices: Shape, shape: Shape) -> tuple[DimLike, str]:
        flat: DimLike = 0
        for index, extent in zip(indices, shape, strict=True):
            flat = flat * extent + index
        flat = dims.simplify(flat, self.ranges) if not isinstance(flat, int) else flat
        if not self._fits(flat) and self.fits_int(dims.product(shape)):
            return flat, self._known(flat, modular=True).text
        return flat, self.value(flat).text

    def fits_int(self, expr: DimLike) -> bool:
        """Whether an expression is an int for all values of its symbols."""
        low, high = dims.lower_bound(expr, self.ranges), dims.upper_bound(expr, self.ranges)
        if low is not None and high is not None:
            return low >= -INT_MAX and high <= INT_MAX
        return self.assumed(expr)

    def assumed(self, expr: DimLike) -> bool:
        """Whether an expression without bounds is an int because the host refuses larger ones."""
        if self.limits is None:
            return False
        found = self.limiter.limit(expr)
        if found is None:
            return False
        high = dims.upper_bound(found, self.ranges)
        if high is None:
            self.limits.add(found)
        return high is None or high <= INT_MAX

    def _known(self, expr: DimLike, *, modular: bool) -> Text:
        if isinstance(expr, int):
            return Text(str(expr) if expr >= 0 else f"({expr})", False) if abs(expr) <= INT_MAX else Text(f"{expr}ll", True)
        key = (expr, modular)
        if key not in self._memo:
            self._memo[key] = self._modular(expr) if modular else self._sum(expr)
        return self._memo[key]

    def _fits(self, expr: DimLike) -> bool:
        """Whether no partial sum or product of a polynomial leaves the ints."""
        if isinstance(expr, int):
            return abs(expr) <= INT_MAX
        total = 0
        for monomial, factor in expr.terms:
            size = self._size(monomial)
            if size is None:
                return self.assumed(expr)
            total += abs(factor) * size
        return total <= INT_MAX

    def _size(self, monomial: Monomial) -> int | None:
        """A bound of the absolute value of a product and of its partial products."""
        size = 1
        for atom in monomial:
            if atom not in self._sizes:
                self._sizes[atom] = self._atom_size(atom)
            if self._sizes[atom] is None:
                return None
            size *= self._sizes[atom]
        return size

    def _atom_size(self, atom: Atom) -> int | None:
        alone = Dim((((atom,), 1),))
        low = dims.lower_bound(alone, self.ranges)
        high = None if low is None else dims.upper_bound(alone, self.ranges)
        return None if low is None or high is None else max(abs(low), abs(high), 1)

    def _sum(self, expr: Dim) -> Text:
        wide = not self._fits(expr)
        return Text(self._terms(expr, lambda atom: self._atom_as(atom, wide), "ll" if wide else ""), wide)

    def _modular(self, expr: Dim) -> Text:
        return Text(f"(int)({self._terms(expr, lambda atom: f'(unsigned){_unit(self._atom(atom).text)}', 'u')})")

    def _terms(self, expr: Dim, atom: Callable[[Atom], str], suffix: str) -> str:
        text = ""
        for monomial, factor in expr.terms:
            parts = [atom(part) for part in monomial]
            size = abs(factor)
            if size != 1 or not parts:
                parts.insert(0, f"{size % 2**32 if suffix == 'u' else size}{suffix}")
            product = " * ".join(parts)
            sign = "-" if factor < 0 else "+"
            text = f"{text} {sign} {product}" if text else f"-{product}" if factor < 0 else product
        return text

    def _atom_as(self, atom: Atom, wide: bool) -> str:
        made = self._atom(atom)
        if wide:
            return made.as_wide()
        return f"(int){_unit(made.text)}" if made.wide else made.text

    def _atom(self, atom: Atom) -> Text:
        if isinstance(atom, Symbol):
            known = self.texts.get(atom.name)
            if known is None:
                raise InvalidModelError(f"index expression: nothing binds the symbol {atom.name}")
            return known
        return self._call(atom)

    def _call(self, call: Call) -> Text:
        a, b = (self.value(arg) for arg in call.args)
        wide = a.wide or b.wide
        x, y = (a.as_wide(), b.as_wide()) if wide else (a.text, b.text)
        if call.fn in ("min", "max"):
            return Text(f"{call.fn}({x}, {y})", wide)
        if call.fn == "bcast":
            return Text(f"({x} == 1 ? {y} : {x})", wide)
        if all(map(self.limiter.nonnegative, call.args)):
            kind, unsigned = ("long long", "unsigned long long") if wide else ("int", "unsigned")
            sign = "/" if call.fn == "floordiv" else "%"
            made = f"({kind})(({unsigned}){_unit(x)} {sign} ({unsigned}){_unit(y)})"
            divisor = dims.lower_bound(call.args[1], self.ranges)
            positive = divisor is not None and divisor >= 1
            return Text(made if positive else f"({y} == 0 ? 0 : {made})", wide)
        self.uses(f"tc_{call.fn}")
        return Text(f"tc_{call.fn}({x}, {y})", wide)


def _unit(text: str) -> str:
    """A text that binds at least as tight as a cast."""
    inner = text[1:-1] if text.startswith("(") and text.endswith(")") else ""
    return text if text.replace("_", "").isalnum() or (inner and "(" not in inner and ")" not in inner) else f"({text})"


def alignment(flat: DimLike, multiples: dict[str, int]) -> int:
    """A power of two up to 16 that divides an offset. ``multiples`` are symbols known to be multiples of a number."""
    found = 16
    for monomial, factor in dims_terms(flat):
        scale = abs(factor)
        for atom in monomial:
            if isinstance(atom, Symbol):
                scale *= multiples.get(atom.name, 1)
        while found > 1 and scale % found:
            found //= 2
    return found
