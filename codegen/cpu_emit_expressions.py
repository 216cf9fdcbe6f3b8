"""Expressions to SSA values. Each expression object is walked once per block between stores to what it reads."""

from __future__ import annotations

from typing import ClassVar

from tcompile.codegen import cpu_emit_index as index
from tcompile.codegen import cpu_emit_lanes as ops
from tcompile.codegen import cpu_emit_requantise as requantise
from tcompile.codegen import cpu_emit_spread as spread
from tcompile.codegen import cpu_emit_transpose as transpose
from tcompile.codegen.cpu_emit_casts import Casts
from tcompile.codegen.cpu_emit_function import Function
from tcompile.codegen.cpu_emit_index import Names
from tcompile.codegen.cpu_emit_memory import Buffer, Memory
from tcompile.codegen.cpu_emit_ops import OPS, has
from tcompile.codegen.cpu_emit_registers import Registers
from tcompile.codegen.cpu_emit_values import Value, is_narrow, literal, register_type
from tcompile.errors import InvalidModelError, UnsupportedError
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import F32, I64, DType
from tcompile.ir.loops import Bitcast, Cast, Const, Expr, Index, Load, Op, Select, Var
from tcompile.ir.target import Target

_PREDICATES = {"eq": "eq", "ne": "ne", "lt": "slt", "le": "sle", "gt": "sgt", "ge": "sge"}


class Expressions:
    """The values of expressions at the current place of a function."""

    def __init__(self, fn: Function, target: Target) -> None:
        self.fn = fn
        self.names = Names(fn)
        self.casts = Casts(fn, target)
        self.memory = Memory(fn, self.names, self.casts, target)
        self.buffers: dict[str, Buffer | Registers] = {}
        self.variables: dict[str, Value] = {}
        self.lanes = 0  # of the vector loop around
        self.active: Value | None = None  # its lanes that run, in a masked tail
        self._memo: dict[int, tuple[Expr, Value, int]] = {}
        self._expanded: dict[int, tuple[Expr, Expr]] = {}
        self._loads: dict[int, tuple[Expr, frozenset[str]]] = {}
        self._clock = 0  # counts stores
        self._stored: dict[str, int] = {}  # when a buffer's group was last stored to

    # The memo ------------------------------------------------------------------------------------------------

    def forget(self) -> dict:
        """Starts an empty memo, where names may stand for other values; returns the old one for ``recall``."""
        old, self._memo = self._memo, {}
        return old

    def recall(self, memo: dict) -> None:
        """Goes back to a memo that ``forget`` returned."""
        self._memo = memo

    def touched(self, name: str) -> None:
        """Says that a buffer changed."""
        self._clock += 1
        buffer = self.buffers.get(name)
        if isinstance(buffer, Buffer):
            self.memory.touch(buffer.group)
            name = buffer.group
        self._stored[name] = self._clock

    def _fresh(self, expr: Expr, time: int) -> bool:
        """Whether nothing that an expression reads was stored to since ``time``."""
        return time == self._clock or all(self._stored.get(name, 0) <= time for name in self._reads(expr))

    def _reads(self, expr: Expr) -> frozenset[str]:
        known = self._loads.get(id(expr))
        if known is None:
            known = (expr, self._find_reads(expr))
            self._loads[id(expr)] = known
        return known[1]

    def _find_reads(self, expr: Expr) -> frozenset[str]:
        match expr:
            case Load():
                buffer = self.buffers[expr.buffer]
                own = frozenset((buffer.group if isinstance(buffer, Buffer) else buffer.name,))
                return own if expr.mask is None else own | self._reads(expr.mask)
            case Op(args=args):
                return frozenset().union(*map(self._reads, args))
            case Cast(arg=arg) | Bitcast(arg=arg):
                return self._reads(arg)
            case Select():
                return self._reads(expr.cond) | self._reads(expr.then) | self._reads(expr.otherwise)
        return frozenset()

    # Values --------------------------------------------------------------------------------------------------

    def value(self, expr: Expr) -> Value:
        """The value of an expression; narrow floats in whichever form they have."""
        if isinstance(expr, Const):
            return literal(expr.value, expr.dtype)
        known = self._memo.get(id(expr))
        if known is not None and known[0] is expr and self._fresh(expr, known[2]):
            return known[1]
        made = self._EMIT[type(expr)](self, expr)
        self._memo[id(expr)] = (expr, made, self._clock)
        return made

    def number(self, expr: Expr) -> Value:
        """The value of an expression in the form arithmetic uses."""
        return self.casts.wide(self.value(expr), expr.dtype)

    def _var(self, expr: Var) -> Value:
        known = self.variables.get(expr.name)
        if known is not None:
            return known
        if expr.name not in self.names.values:
            raise InvalidModelError(f"expression: nothing binds the variable {expr.name}")
        return spread.value(self.names, dims.symbol(expr.name))

    def _index(self, expr: Index) -> Value:
        return spread.value(self.names, expr.expr)

    def _load(self, expr: Load) -> Value:
        mask = None if expr.mask is None else self.value(expr.mask)
        if mask is not None and mask.name == "true":
            mask = None
        buffer = self._buffer(expr.buffer)
        if isinstance(buffer, Registers):
            made = self._read_register(buffer, expr)
            return made if mask is None else ops.select(self.fn, mask, register_type(buffer.dtype), made, literal(0, buffer.dtype))
        return self.memory.load(buffer, expr.indices, mask, self.active, self.lanes)

    def _buffer(self, name: str) -> Buffer | Registers:
        found = self.buffers.get(name)
        if found is None:
            raise InvalidModelError(f"expression: no buffer is called {name}", hint=f"known: {', '.join(self.buffers)}")
        return found

    def _op(self, expr: Op) -> Value:
        if expr.fn == "where":
            return self._choose(*expr.args)
        operand = expr.args[0].dtype
        if is_narrow(operand):
            return self.value(self._expansion(expr, lambda: _widened(expr)))
        places = _PREDICATES.get(expr.fn) and _index_operands(expr)
        if places and not index.uniform(self.names, places[0] - places[1]):
            made = spread.compare(self.names, _PREDICATES[expr.fn], *places)
            if made is not None:
                return made
        if has(expr.fn, operand):
            made = OPS[expr.fn](self.casts, operand, *map(self.value, expr.args))
            return made
        return self.value(self._expansion(expr, lambda: _expand(expr)))

    def _expansion(self, expr: Op, make) -> Expr:
        known = self._expanded.get(id(expr))
        if known is None:
            known = self._expanded[id(expr)] = (expr, make())
        return known[1]

    def _cast(self, expr: Cast) -> Value:
        inside = requantise.clamped_inside(expr) if self.casts.arch == "x86_64" and self.lanes else None
        if inside is not None:
            return requantise.emit(self.casts, self.value(inside.value), expr.dtype, rounds=inside.rounds)
        return self.casts.convert(self.value(expr.arg), expr.arg.dtype, expr.dtype, expr.saturate)

    def _bitcast(self, expr: Bitcast) -> Value:
        return self.casts.bitcast(self.value(expr.arg), expr.arg.dtype, expr.dtype)

    def _select(self, expr: Select) -> Value:
        return self._choose(expr.cond, expr.then, expr.otherwise)

    def _choose(self, cond: Expr, then: Expr, otherwise: Expr) -> Value:
        chooser, dtype = self.value(cond), then.dtype
        if chooser.literal and not chooser.lanes:
            return self.value(then if chooser.name == "true" else otherwise)
        left, right = self.value(then), self.value(otherwise)
        if is_narrow(dtype):
            made = ops.select(self.fn, chooser, f"i{8 * dtype.bytes}", self.casts.bits(left, dtype), self.casts.bits(right, dtype))
            return Value(None, made.depth, made.lanes, made.name)
        return ops.select(self.fn, chooser, register_type(dtype), left, right)

    _EMIT: ClassVar[dict] = {Var: _var, Index: _index, Load: _load, Op: _op, Cast: _cast, Bitcast: _bitcast, Select: _select}

    # Registers -----------------------------------------------------------------------------------------------

    def register_key(self, buffer: Registers, indices) -> tuple[tuple[int, ...], int | Value | None]:
        """(key, lane): lane None is the whole vector, else the element within the vector of the key."""
        *outer, last = indices or (0,)
        key = tuple(self._constant(buffer, place) for place in outer)
        if not buffer.lanes:
            return (*key, self._constant(buffer, last)), None
        if not index.uniform(self.names, last):
            found = spread.spread(self.names, last)
            one = found and spread.joined(self.fn, found)
            if not one or found.scalars or found.constant % buffer.lanes or one.numbers != tuple(range(found.lanes)):
                raise InvalidModelError(f"register buffer {buffer.name}: expected whole vectors of {buffer.lanes}, got the index {last}")
            return (*key, found.constant // buffer.lanes), None
        vector_number, lane = divmod(self._constant(buffer, last), buffer.lanes)
        return (*key, vector_number), lane

    def _constant(self, buffer: Registers, place) -> int:
        found = index.value(self.names, place)
        if not isinstance(found, int):
            raise InvalidModelError(f"register buffer {buffer.name}: expected a constant index, got {place}")
        return found

    def register(self, buffer: Registers, key: tuple[int, ...]) -> Value:
        """The value of a register; 0 before the first store."""
        found = buffer.values.get(key)
        if found is None:
            zero = literal(0, F32 if is_narrow(buffer.dtype) else buffer.dtype)
            kind = storage_type(buffer.dtype)
            if is_narrow(buffer.dtype):
                zero = Value("0")
            found = ops.widened(self.fn, zero, kind, buffer.lanes)
            if is_narrow(buffer.dtype):
                found = Value(None, 0, buffer.lanes, found.name)
        return found

    def _read_register(self, buffer: Registers, expr: Load) -> Value:
        if self._by_columns(buffer, expr):
            return self._column(buffer, expr)
        key, lane = self.register_key(buffer, expr.indices)
        whole = self.register(buffer, key)
        if lane is None:
            return _resized(self.fn, whole, buffer.dtype, self.lanes) if buffer.lanes else whole
        return _part(self.fn, whole, buffer.dtype, lane)

    def _by_columns(self, buffer: Registers, expr: Load) -> bool:
        """Whether the lanes of a load go down the rows of a square."""
        if len(expr.indices) != 2 or not buffer.lanes or buffer.shape != (buffer.lanes, buffer.lanes):
            return False
        row, column = expr.indices
        return not index.uniform(self.names, row) and index.uniform(self.names, column)

    def _column(self, buffer: Registers, expr: Load) -> Value:
        row, column = expr.indices
        found = spread.spread(self.names, row)
        one = found and spread.joined(self.fn, found)
        if not one or found.scalars or found.constant or one.numbers != tuple(range(found.lanes)):
            raise InvalidModelError(f"register buffer {buffer.name}: expected a whole column, got the rows {row}")
        narrow = is_narrow(buffer.dtype)
        rows = [self.register(buffer, (k, 0)) for k in range(buffer.lanes)]
        raw = [self.casts.bits(value, buffer.dtype) for value in rows] if narrow else rows
        made = transpose.columns(self.fn, raw, storage_type(buffer.dtype), 8 * buffer.dtype.bytes)[self._constant(buffer, column)]
        return Value(None, made.depth, made.lanes, made.name) if narrow else made

    def write_register(self, buffer: Registers, indices, value: Value, mask: Value | None) -> None:
        """Stores to a register, where ``mask`` holds."""
        key, lane = self.register_key(buffer, indices)
        kind, narrow = storage_type(buffer.dtype), is_narrow(buffer.dtype)
        raw = self.casts.bits(value, buffer.dtype) if narrow else value
        before = self.register(buffer, key)
        old = self.casts.bits(before, buffer.dtype) if narrow else before
        if lane is not None:
            raw = self._inserted(old, raw, kind, lane, mask)
        elif buffer.lanes:
            raw = self._filled(old, ops.widened(self.fn, raw, kind, self.lanes), kind, mask)
        elif mask is not None:
            raw = ops.select(self.fn, mask, kind, raw, old)
        buffer.values[key] = Value(None, raw.depth, raw.lanes, raw.name) if narrow else raw

    def _inserted(self, old: Value, raw: Value, kind: str, lane: int, mask: Value | None) -> Value:
        if mask is not None:
            raw = ops.select(self.fn, mask, kind, raw, ops.extract(self.fn, old, kind, str(lane)))
        depth = max(old.depth, raw.depth)
        return Value(
            self.fn.pure(f"insertelement <{old.lanes} x {kind}> {old.name}, {kind} {raw.name}, i64 {lane}", depth), depth, old.lanes
        )

    def _filled(self, old: Value, raw: Value, kind: str, mask: Value | None) -> Value:
        """The first lanes of a vector replaced (all of them but in a short tail)."""
        if mask is not None:
            raw = ops.select(self.fn, mask, kind, raw, shuffled(self.fn, old, kind, raw.lanes))
        if raw.lanes == old.lanes:
            return raw
        wide = shuffled(self.fn, raw, kind, old.lanes)
        keep = ", ".join(str(k if k < raw.lanes else old.lanes + k) for k in range(old.lanes))
        depth = max(old.depth, wide.depth)
        text = f"shufflevector <{old.lanes} x {kind}> {wide.name}, <{old.lanes} x {kind}> {old.name}, "
        text += f"<{old.lanes} x i32> <{', '.join('i32 ' + place for place in keep.split(', '))}>"
        return Value(self.fn.pure(text, depth), depth, old.lanes)


def _index_operands(expr: Op) -> tuple[DimLike, DimLike] | None:
    """The two sides of a comparison of index expressions."""
    if expr.args[0].dtype != I64:
        return None
    sides = [arg.expr if isinstance(arg, Index) else int(arg.value) if isinstance(arg, Const) else None for arg in expr.args]
    return None if None in sides else tuple(sides)


def storage_type(dtype: DType) -> str:
    """The LLVM type that registers of a dtype are held in: narrow floats as their bits."""
    return f"i{8 * dtype.bytes}" if is_narrow(dtype) else register_type(dtype)


def shuffled(fn: Function, value: Value, kind: str, lanes: int) -> Value:
    """The first lanes of a vector, or all of them followed by undefined ones."""
    if value.lanes == lanes:
        return value
    places = ", ".join(f"i32 {k}" if k < value.lanes else "i32 poison" for k in range(lanes))
    wide = f"<{value.lanes} x {kind}>"
    return Value(fn.pure(f"shufflevector {wide} {value.name}, {wide} poison, <{lanes} x i32> <{places}>", value.depth), value.depth, lanes)


def _resized(fn: Function, value: Value, dtype: DType, lanes: int) -> Value:
    if value.lanes == lanes:
        return value
    if is_narrow(dtype):
        made = shuffled(fn, Value(value.bits, value.depth, value.lanes), storage_type(dtype), lanes)
        return Value(None, made.depth, made.lanes, made.name)
    return shuffled(fn, value, storage_type(dtype), lanes)


def _part(fn: Function, value: Value, dtype: DType, lane: int) -> Value:
    if is_narrow(dtype):
        made = ops.extract(fn, Value(value.bits, value.depth, value.lanes), storage_type(dtype), str(lane))
        return Value(None, made.depth, 0, made.name)
    return ops.extract(fn, value, storage_type(dtype), str(lane))


def _widened(expr: Op) -> Expr:
    """An operation on narrow floats, done in f32 and rounded."""
    args = tuple(Cast(arg, F32) if is_narrow(arg.dtype) else arg for arg in expr.args)
    if not is_narrow(expr.dtype):
        return Op(expr.fn, args, expr.dtype)
    return Cast(Op(expr.fn, args, F32), expr.dtype, saturate=False)


def _expand(expr: Op) -> Expr:
    from tcompile.codegen.math_expand import expand

    made = expand(expr)
    if made is None or made is expr:
        raise UnsupportedError(f"CPU code generator: no code for {expr.fn} of {expr.args[0].dtype}")
    return made


__all__ = ["Expressions", "shuffled", "storage_type"]
