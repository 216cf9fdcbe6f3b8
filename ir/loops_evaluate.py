"""NumPy evaluation of Loop IR expressions: a scalar, or all lanes of a vector loop at once as an array.

Each expression of a DAG is evaluated once per statement. Values are NumPy scalars (uniform over lanes) or arrays
of one element per active lane. Index expressions are compiled to Python once and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from tcompile.errors import ExecutionError
from tcompile.ir import casts, elementwise
from tcompile.ir.dims import Atom, Dim, DimLike, Shape, Symbol
from tcompile.ir.dtypes import I64, DType
from tcompile.ir.loops import Bitcast, Cast, Const, Expr, Index, Load, Op, Select, Shuffle, Var

Value = Any  # a NumPy scalar or an array of one element per lane
Values = Mapping[str, Any]  # dims, loop variables and Let variables by name


class OutOfBoundsError(ExecutionError):
    """A kernel touched memory outside a buffer: a bug of whoever made the kernel."""


def operands(expr: Expr) -> tuple[Expr, ...]:
    """The expressions that an expression reads directly (index expressions are no ``Expr``)."""
    match expr:
        case Op(args=args):
            return args
        case Cast(arg=arg) | Bitcast(arg=arg) | Shuffle(arg=arg):
            return (arg,)
        case Select():
            return (expr.cond, expr.then, expr.otherwise)
        case Load(mask=mask) if mask is not None:
            return (mask,)
    return ()


def postorder(*roots: Expr, done: set[int] | None = None) -> Iterator[Expr]:
    """Every expression object below the roots once, operands before users.

    ``done`` holds the identities of those that are left out with all below them; it grows by what comes.
    """
    done = set() if done is None else done
    stack: list[tuple[Expr, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        expr, ready = stack.pop()
        if id(expr) in done:
            continue
        if ready:
            done.add(id(expr))
            yield expr
        else:
            stack.append((expr, True))
            stack.extend((operand, False) for operand in reversed(operands(expr)) if id(operand) not in done)


@lru_cache(maxsize=65536)
def compile_dim(expr: DimLike) -> Callable[[Values], Any]:
    """A function of the symbols' values (ints or int64 arrays) to the value of an expression; x // 0 and x % 0 are 0."""
    return eval(f"lambda v: {_python(expr)}", _FUNCTIONS)


@lru_cache(maxsize=1024)
def _meaning(fn: str, operand: DType) -> Callable[..., Value]:
    """The NumPy function of an elementwise function; straight from the table where that needs no conversion."""
    row = elementwise.TABLE[fn]
    exact = operand.bits >= 32 and not (row.wide and operand.bits < 64) if operand.is_float else operand.bits >= 8 or operand.kind == "b"
    return row.meaning if exact else lambda *arrays: elementwise.apply(fn, arrays)[()]


def _python(expr: DimLike) -> str:
    if not isinstance(expr, Dim):
        return str(expr)
    return " + ".join("*".join([str(factor), *map(_python_atom, monomial)]) for monomial, factor in expr.terms)


def _python_atom(atom: Atom) -> str:
    if isinstance(atom, Symbol):
        return f"v[{atom.name!r}]"
    return f"{atom.fn}({', '.join(map(_python, atom.args))})"


def _plain(*numbers: Any) -> bool:
    return all(isinstance(number, int) for number in numbers)


def _floordiv(a: Any, b: Any) -> Any:
    if _plain(a, b):
        return a // b if b else 0
    return np.floor_divide(a, np.where(b == 0, 1, b)) * (np.asarray(b) != 0)


def _mod(a: Any, b: Any) -> Any:
    if _plain(a, b):
        return a % b if b else 0
    return np.mod(a, np.where(b == 0, 1, b)) * (np.asarray(b) != 0)


_FUNCTIONS = {
    "floordiv": _floordiv,
    "mod": _mod,
    "min": lambda a, b: min(a, b) if _plain(a, b) else np.minimum(a, b),
    "max": lambda a, b: max(a, b) if _plain(a, b) else np.maximum(a, b),
    "bcast": lambda a, b: (b if a == 1 else a) if _plain(a, b) else np.where(a == 1, b, a),
}


class Evaluator:
    """Evaluates expressions over ``values`` and ``buffers``, both of which the caller may change between calls."""

    def __init__(self, values: dict[str, Any], buffers: dict[str, np.ndarray]) -> None:
        self.values = values
        self.buffers = buffers
        self._orders: dict[int, tuple[tuple[Expr, ...], list[Expr]]] = {}

    def __call__(self, *roots: Expr) -> list[Value]:
        """The values of expressions, shared parts computed once."""
        order = self._order(roots)
        memo: dict[int, Value] = {}
        for expr in order:
            memo[id(expr)] = self._evaluate(expr, memo)
        return [memo[id(root)] for root in roots]

    def _order(self, roots: tuple[Expr, ...]) -> list[Expr]:
        key = hash(tuple(map(id, roots)))
        known = self._orders.get(key)
        if known is None or any(a is not b for a, b in zip(known[0], roots, strict=False)) or len(known[0]) != len(roots):
            known = self._orders[key] = (roots, list(postorder(*roots)))
        return known[1]

    def _evaluate(self, expr: Expr, memo: dict[int, Value]) -> Value:
        match expr:
            case Op(fn=fn, args=args):
                return _meaning(fn, args[-1].dtype)(*[memo[id(arg)] for arg in args])
            case Const():
                return constant(expr)
            case Load():
                return self._load(expr, None if expr.mask is None else memo[id(expr.mask)])
            case Var():
                return np.asarray(self.values[expr.name]).astype(expr.dtype.numpy, copy=False)[()]
            case Index():
                return np.asarray(compile_dim(expr.expr)(self.values)).astype(I64.numpy, copy=False)[()]
            case Select():
                chosen = np.where(memo[id(expr.cond)], memo[id(expr.then)], memo[id(expr.otherwise)])
                return chosen.astype(expr.dtype.numpy, copy=False)[()]
            case Cast():
                return casts.convert(np.asarray(memo[id(expr.arg)]), expr.dtype, saturate=expr.saturate)[()]
            case Bitcast():
                return casts.bitcast(np.asarray(memo[id(expr.arg)]), expr.dtype)[()]
            case Shuffle():
                raise ExecutionError(
                    "the interpreter runs one thread after the other: no shuffle", hint="run the kernel under the CUDA shim"
                )
        raise TypeError(f"not a Loop IR expression: {expr!r}")

    def _load(self, load: Load, mask: Value | None) -> Value:
        buffer = self.buffers[load.buffer]
        position = self.position(load.indices)
        if mask is None:
            self.check(load.buffer, load.indices, position)
            return buffer[position]
        if np.ndim(mask) == 0:
            if not mask:
                return load.dtype.numpy.type(0)
            self.check(load.buffer, load.indices, position)
            return buffer[position]
        active = tuple(index[mask] if np.ndim(index) else index for index in position)
        if not np.any(mask):
            return np.zeros(mask.shape, load.dtype.numpy)
        self.check(load.buffer, load.indices, active)
        result = np.zeros(mask.shape, load.dtype.numpy)
        result[mask] = buffer[active]
        return result

    def position(self, indices: Shape) -> tuple[Any, ...]:
        """The values of the indices, each an int or an array over lanes."""
        return tuple(index if isinstance(index, int) else compile_dim(index)(self.values) for index in indices)

    def check(self, name: str, indices: Shape, position: tuple[Any, ...]) -> None:
        """Raises OutOfBoundsError naming buffer and index where a position is outside the buffer."""
        shape = self.buffers[name].shape
        if len(shape) != len(position):
            raise OutOfBoundsError(f"{name} has {len(shape)} axes {list(shape)} but is indexed with {len(position)}: [{_text(indices)}]")
        for axis, (value, extent) in enumerate(zip(position, shape, strict=True)):
            if isinstance(value, int):
                if 0 <= value < extent:
                    continue
                bad = value
            else:
                outside = (np.asarray(value) < 0) | (np.asarray(value) >= extent)
                if not outside.any():
                    continue
                bad = int(np.asarray(value)[outside].flat[0]) if np.ndim(value) else int(value)
            raise OutOfBoundsError(f"{name}[{_text(indices)}]: index {bad} is outside axis {axis} of shape {list(shape)}")


def _text(indices: Shape) -> str:
    return ", ".join(map(str, indices))


def constant(expr: Const) -> Value:
    """The NumPy scalar of a constant; integers wrap to the width of their type."""
    dtype = expr.dtype
    if dtype.is_integer:
        return casts.wrap(np.asarray(int(expr.value) & (2**64 - 1), np.uint64), dtype)[()]
    return np.asarray(expr.value).astype(dtype.numpy)[()]
