"""Expressions as C text: one text where a value is the same for all lanes of a vector loop, else one for each lane.

What is used more than once, or has become long, gets a variable of its own in the block where it is first needed, which
holds as long as nothing is stored to what it was loaded from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tcompile.codegen import cuda_emit_casts as casts
from tcompile.codegen.cuda_emit_index import Names, alignment
from tcompile.codegen.cuda_emit_ops import OPS, REPEATS, has
from tcompile.codegen.cuda_emit_types import bits_type, c_type, is_narrow, is_sub_byte, literal
from tcompile.errors import InvalidModelError, UnsupportedError
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.dtypes import BOOL, F32, I64, DType
from tcompile.ir.loops import Bitcast, Block, Cast, Const, Expr, Index, Load, Op, Select, Shuffle, Space, Var
from tcompile.ir.loops_evaluate import operands, postorder
from tcompile.ir.loops_interpret import expressions, walk

_LONG = 100
_COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
Texts = tuple[str, ...]  # one, or one for each lane


@dataclass(frozen=True)
class Buffer:
    """A buffer in scope: its C name, and ``group``, the name that buffers which may be the same share."""

    name: str
    dtype: DType
    shape: Shape
    space: Space
    group: str
    writable: bool = True


@dataclass
class Lanes:
    """The vector loop around: lane k's variable is ``var`` + k, and ``var`` is a multiple of ``lanes``."""

    var: str = ""
    lanes: int = 0
    named: dict[str, Texts] = field(default_factory=dict)  # Lets that differ between lanes


class Expressions:
    """Emits expressions at the current line of a kernel."""

    def __init__(self, uses: Callable[[str], None], body: Block) -> None:
        self.uses = uses
        self.lines: list[str] = []
        self.depth = 1
        self.names = Names(uses)
        self.buffers: dict[str, Buffer] = {}
        self.variables: dict[str, Texts] = {}
        self.lanes = Lanes()
        self.guard = ""  # a condition for every access to global memory
        self.repeated = _repeated(body)
        self.known: dict[int, tuple[Texts, frozenset[str]]] = {}  # by id of an expression: its variable, what it loads
        self.kept: list[Expr] = []  # ids stay theirs as long as the expressions live
        self.expanded: dict[int, tuple[Expr, Expr]] = {}
        self.count = 0

    # Lines --------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        """Adds a line of code."""
        self.lines.append("    " * self.depth + text)

    def fresh(self, prefix: str = "v") -> str:
        """A new name."""
        self.count += 1
        return f"{prefix}{self.count}_"

    def declare(self, kind: str, value: str) -> str:
        """A new variable."""
        name = self.fresh()
        self.line(f"const {kind} {name} = {_stripped(value)};")
        return name

    def forget(self, groups: Iterable[str] | None) -> None:
        """Drops what was loaded from buffers that have been written to; None: from all that somebody writes."""
        chosen = {buffer.group for buffer in self.buffers.values() if buffer.writable} if groups is None else set(groups)
        self.known = {key: entry for key, entry in self.known.items() if entry[1].isdisjoint(chosen)}

    # Values -------------------------------------------------------------------------------------------

    def value(self, root: Expr) -> Texts:
        """The text of an expression, or its texts by lane. Declares variables on the way."""
        done: dict[int, Texts] = {}
        loads: dict[int, frozenset[str]] = {}
        for expr in postorder(root):
            key = id(expr)
            if key in self.known:
                done[key], loads[key] = self.known[key]
                continue
            parts = operands(expr)
            loads[key] = frozenset().union(*(loads[id(part)] for part in parts))
            if isinstance(expr, Load):
                loads[key] |= {self.buffer(expr.buffer).group}
            if isinstance(expr, Op) and self.needs_expansion(expr):
                for part in parts:
                    self.keep(part, done[id(part)], loads[id(part)])
                texts = self.value(self.expansion(expr))
            else:
                texts = self.build(expr, [done[id(part)] for part in parts])
            if self.deserves_name(expr, texts):
                self.keep(expr, texts, loads[key])
                texts = self.known[key][0]
            done[key] = texts
        return done[id(root)]

    def keep(self, expr: Expr, texts: Texts, loads: frozenset[str]) -> None:
        """Gives the value of an expression variables, which stand for it from here on."""
        if isinstance(expr, Const | Var | Index) or id(expr) in self.known:
            return
        self.known[id(expr)] = self.named(texts, expr.dtype), loads
        self.kept.append(expr)

    def scalar(self, root: Expr) -> str:
        """The text of an expression that is the same for all lanes."""
        return self.value(root)[0]

    def deserves_name(self, expr: Expr, texts: Texts) -> bool:
        """Whether a value gets a variable: it is used again, long, or must not move into a branch."""
        if isinstance(expr, Const | Var | Index):
            return False
        return id(expr) in self.repeated or isinstance(expr, Shuffle) or max(map(len, texts)) > _LONG

    def build(self, expr: Expr, args: list[Texts]) -> Texts:
        match expr:
            case Const():
                return (literal(expr.value, expr.dtype),)
            case Var():
                return self.variable(expr)
            case Index():
                return self.index(expr.expr)
            case Load():
                return self.load(expr, args[0] if args else None)
            case Op():
                return self.op(expr, args)
            case Cast():
                return self.each(lambda x: casts.convert(x, expr.arg.dtype, expr.dtype, self.uses, saturate=expr.saturate), args)
            case Bitcast():
                return self.each(lambda x: casts.bitcast(x, expr.arg.dtype, expr.dtype), args)
            case Select():
                return self.each(lambda c, a, b: f"({c} ? {a} : {b})", args)
            case Shuffle():
                return self.each(lambda x: self.shuffle(x, expr), args)
        raise TypeError(f"not a Loop IR expression: {expr!r}")

    def each(self, make: Callable[..., str], args: list[Texts]) -> Texts:
        """One text, or one for each lane."""
        count = max(map(len, args))
        return tuple(make(*(texts[lane if len(texts) > 1 else 0] for texts in args)) for lane in range(count))

    def variable(self, var: Var) -> Texts:
        if var.name in self.variables:
            return self.variables[var.name]
        if var.dtype == I64 and (var.name in self.names.texts or var.name == self.lanes.var):
            return self.index(dims.symbol(var.name))
        raise InvalidModelError(f"{var.name} is used before it is bound")

    def index(self, expr: DimLike) -> Texts:
        """The value of an index expression. It may be an int: 64-bit arithmetic converts it."""
        return tuple(_tight(self.names.value(part).text) for part in self.by_lane(expr))

    def by_lane(self, expr: DimLike) -> tuple[DimLike, ...]:
        """An index expression for each lane, or once where it is the same for all."""
        used = dims.symbols(expr)
        if not self.lanes.lanes or not used & {self.lanes.var, *self.lanes.named}:
            return (expr,)
        return tuple(self.of_lane(expr, lane) for lane in range(self.lanes.lanes))

    def of_lane(self, expr: DimLike, lane: int) -> DimLike:
        values = {name: dims.symbol(texts[lane]) for name, texts in self.lanes.named.items() if len(texts) > 1}
        values[self.lanes.var] = dims.symbol(self.lanes.var) + lane
        return dims.substitute(expr, values, self.names.ranges)

    def shuffle(self, text: str, expr: Shuffle) -> str:
        kind = c_type(expr.dtype)
        made = f"__shfl_xor_sync(0xffffffffu, ({kind if expr.dtype.bytes >= 4 else 'int'}){text}, {expr.xor})"
        if expr.dtype.bytes >= 4:
            return made
        return f"({made} != 0)" if expr.dtype == BOOL else f"({kind}){made}"

    # Operations ---------------------------------------------------------------------------------------

    def op(self, expr: Op, args: list[Texts]) -> Texts:
        dtype = expr.args[-1].dtype
        if expr.fn == "where":
            return self.each(lambda c, a, b: f"({c} ? {a} : {b})", args)
        if dtype == I64 and expr.fn not in _COMPARISONS:
            # an index may be an int in C: arithmetic on it is that of its type
            args = [
                tuple(f"(long long){text}" for text in texts) if isinstance(arg, Index | Var | Select) else texts
                for arg, texts in zip(expr.args, args, strict=True)
            ]
        if expr.fn in REPEATS:
            args = [self.simple(texts, arg.dtype) for texts, arg in zip(args, expr.args, strict=True)]
        if not is_narrow(dtype):
            return self.each(lambda *texts: OPS[expr.fn](dtype, self.uses, *texts), args)
        wide = [tuple(casts.widened(text, dtype, self.uses) for text in texts) for texts in args]
        if expr.fn in REPEATS:
            wide = [self.simple(texts, F32) for texts in wide]
        made = self.each(lambda *texts: OPS[expr.fn](F32, self.uses, *texts), wide)
        if not is_narrow(expr.dtype):
            return made
        return tuple(casts.narrowed(text, expr.dtype, self.uses, saturate=False) for text in made)

    def simple(self, texts: Texts, dtype: DType) -> Texts:
        """Texts short enough to be written twice."""
        plain = all(text.replace("_", "").replace(".", "").isalnum() for text in texts)
        return texts if plain or all(text.strip("()-").replace(".", "").isalnum() for text in texts) else self.named(texts, dtype)

    def named(self, texts: Texts, dtype: DType) -> Texts:
        return tuple(self.declare(c_type(dtype), text) for text in texts)

    def needs_expansion(self, expr: Op) -> bool:
        """Whether a function is computed by others."""
        return expr.fn != "where" and not has(expr.fn, expr.args[-1].dtype.compute)

    def expansion(self, expr: Op) -> Expr:
        """The expression of primitive functions that computes an op."""
        from tcompile.codegen.math_expand import expand

        if id(expr) not in self.expanded:
            made = expand(expr)
            if made is None or made is expr:
                raise UnsupportedError(f"CUDA code generator: no code for {expr.fn} of {expr.args[0].dtype}")
            self.repeated |= _repeated_in((made,), set(map(id, expr.args)))
            self.expanded[id(expr)] = expr, made
        return self.expanded[id(expr)][1]

    # Loads --------------------------------------------------------------------------------------------

    def buffer(self, name: str) -> Buffer:
        found = self.buffers.get(name)
        if found is None:
            raise InvalidModelError(f"{name} is no buffer in scope")
        return found

    def load(self, expr: Load, mask: Texts | None) -> Texts:
        """The elements; sub-byte integers are brought to their range: the upper bits of a stored byte are 0."""
        texts = self.loaded(expr, mask)
        return tuple(casts.wrapped(text, expr.dtype) for text in texts) if is_sub_byte(expr.dtype) else texts

    def loaded(self, expr: Load, mask: Texts | None) -> Texts:
        buffer = self.buffer(expr.buffer)
        mask = self.guarded(buffer, mask)
        if mask is None or len(mask) == 1:
            chunk, flat = self.chunk(buffer, expr.indices)
            if chunk > 1:
                return self.load_chunks(buffer, flat, chunk, mask)
        indices = self.by_lane_indices(expr.indices)
        texts = tuple(f"{buffer.name}[{self.names.offset(index, buffer.shape)[1]}]" for index in indices)
        if mask is None:
            return texts
        zero = literal(0, buffer.dtype)
        return self.each(lambda condition, text: f"({condition} ? {text} : {zero})", [mask, texts])

    def guarded(self, buffer: Buffer, mask: Texts | None) -> Texts | None:
        """The mask of an access, with the condition that a failed check stops accesses by."""
        if not self.guard or buffer.space is not Space.GLOBAL:
            return mask
        return (self.guard,) if mask is None else tuple(f"({self.guard} && {text})" for text in mask)

    def by_lane_indices(self, indices: Shape) -> list[Shape]:
        """The indices of each lane, or one where all are the same."""
        parts = [self.by_lane(index) for index in indices]
        count = max(map(len, parts), default=1)
        return [tuple(part[lane if len(part) > 1 else 0] for part in parts) for lane in range(count)]

    def chunk(self, buffer: Buffer, indices: Shape) -> tuple[int, DimLike]:
        """How many elements one aligned access of consecutive lanes takes, and the offset of lane 0.

        Registers are accessed one by one, and so is what does not step by one from lane to lane.
        """
        var, lanes = self.lanes.var, self.lanes.lanes
        if not lanes or buffer.space in (Space.REGISTER, Space.STACK):
            return 1, 0
        flat = self.names.offset(indices, buffer.shape)[0]
        parts = dims.linear(flat, var)
        if parts is None or parts[0] != 1 or dims.symbols(parts[1]) & self.lanes.named.keys():
            return 1, 0
        proved = alignment(flat, {var: lanes})
        while proved > 1 and lanes % proved:
            proved //= 2
        elements = min(proved, 16 // buffer.dtype.bytes)
        return (elements if elements * buffer.dtype.bytes >= 4 and elements > 1 else 1), flat

    def load_chunks(self, buffer: Buffer, flat: DimLike, chunk: int, mask: Texts | None) -> Texts:
        size, texts = chunk * buffer.dtype.bytes, []
        self.uses("tc_load")
        kind = {16: "uint4", 8: "uint2", 4: "unsigned"}[size]
        nothing = {16: "make_uint4(0u, 0u, 0u, 0u)", 8: "make_uint2(0u, 0u)", 4: "0u"}[size]
        for start in range(0, self.lanes.lanes, chunk):
            access = f"tc_load{size}({self.address(buffer, flat + start)})"
            name = self.declare(kind, access if mask is None else f"({mask[0]} ? {access} : {nothing})")
            words = [name] if size == 4 else [f"{name}.{part}" for part in "xyzw"[: size // 4]]
            texts += self.unpacked(words, buffer.dtype)
        return tuple(texts)

    def address(self, buffer: Buffer, flat: DimLike) -> str:
        """A pointer to an element."""
        text = self.names.offset((flat,), (dims.product(buffer.shape),))[1]
        return buffer.name if text == "0" else f"{buffer.name} + {_tight(text)}"

    def unpacked(self, words: list[str], dtype: DType) -> list[str]:
        """The elements that lie in 32-bit words."""
        if dtype.bytes == 8:
            self.uses("tc_words64")
            joined = [f"tc_join({low}, {high})" for low, high in zip(words[::2], words[1::2], strict=True)]
            return [casts.from_bits(word, dtype) for word in joined]
        width = 8 * dtype.bytes
        texts = []
        for word in words:
            for place in range(0, 32, width):
                part = word if place == 0 else f"{word} >> {place}"
                if dtype == BOOL:
                    texts.append(f"(({part} & 0xffu) != 0)")
                else:
                    texts.append(casts.from_bits(part, dtype) if width == 32 else f"({c_type(dtype)})({part})")
        return texts

    def packed(self, texts: Texts, dtype: DType) -> list[str]:
        """The 32-bit words that elements fill."""
        if dtype.bytes == 8:
            self.uses("tc_words64")
            whole = [casts.as_bits(text, dtype) for text in texts]
            return [half for word in whole for half in (f"tc_low({word})", f"tc_high({word})")]
        if dtype.bytes == 4:
            return [casts.as_bits(text, dtype) for text in texts]
        per = 4 // dtype.bytes
        self.uses(f"tc_pack{per}")
        bits = [text if dtype.kind == "u" or is_narrow(dtype) else f"({bits_type(dtype)}){text}" for text in texts]
        return [f"tc_pack{per}({', '.join(bits[k : k + per])})" for k in range(0, len(bits), per)]


def _repeated(body: Block) -> set[int]:
    """The ids of operations and loads that several expressions or statements of a kernel use."""
    return _repeated_in([root for stmt in walk(body) for root in expressions(stmt)], set())


def _repeated_in(roots: Iterable[Expr], leaves: set[int]) -> set[int]:
    seen: set[int] = set()
    found: set[int] = set()
    stack = list(roots)
    while stack:
        expr = stack.pop()
        if isinstance(expr, Const | Var | Index):
            continue
        if id(expr) in seen:
            found.add(id(expr))
            continue
        seen.add(id(expr))
        if id(expr) not in leaves:
            stack.extend(operands(expr))
    return found


def _tight(text: str) -> str:
    """A text that binds as tight as a cast."""
    simple = text.replace("_", "").isalnum()
    return text if simple or (text.startswith("(") and _closes_last(text)) else f"({text})"


def _stripped(text: str) -> str:
    return text[1:-1] if text.startswith("(") and _closes_last(text) else text


def _closes_last(text: str) -> bool:
    """Whether the parenthesis that opens a text closes with its last character."""
    depth = 0
    for place, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return place == len(text) - 1
    return False
