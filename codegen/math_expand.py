"""Transcendental functions as Loop IR expressions of primitive operations: what lets compiled code do without libm.

Code generators call ``expand`` on an ``Op`` that they have no instruction for. What comes back is straight-line, uses
no table in memory and no call, and shares subexpressions as Python objects, so it vectorises to any width.
Errors are for f32 and f64; narrower floats are done in f32. NaN, infinities, signed zeros and denormals are handled.
"""

from __future__ import annotations

from collections.abc import Callable

from tcompile.codegen import (
    math_erf,
    math_exp,
    math_hyperbolic,
    math_integer,
    math_inverse_trig,
    math_log,
    math_pow,
    math_remainder,
    math_trig,
)
from tcompile.codegen.math_term import Term
from tcompile.ir.dtypes import F32, F64
from tcompile.ir.loops import Expr, Op

_FLOAT: dict[str, Callable[..., Term]] = {
    "exp": math_exp.exp,
    "expm1": math_exp.expm1,
    "sigmoid": math_exp.sigmoid,
    "silu": math_exp.silu,
    "log": math_log.log,
    "log1p": math_log.log1p,
    "pow": math_pow.power,
    "sin": math_trig.sin,
    "cos": math_trig.cos,
    "tan": math_trig.tan,
    "asin": math_inverse_trig.asin,
    "acos": math_inverse_trig.acos,
    "atan": math_inverse_trig.atan,
    "atan2": math_inverse_trig.atan2,
    "sinh": math_hyperbolic.sinh,
    "cosh": math_hyperbolic.cosh,
    "tanh": math_hyperbolic.tanh,
    "asinh": math_hyperbolic.asinh,
    "acosh": math_hyperbolic.acosh,
    "atanh": math_hyperbolic.atanh,
    "erf": math_erf.erf,
    "fmod": math_remainder.fmod,
    "mod": math_remainder.mod,
    "rsqrt": lambda x: 1.0 / x.sqrt(),
    "recip": lambda x: 1.0 / x,
}
_INTEGER: dict[str, Callable[..., Term]] = {"pow": math_integer.power}


def expand(op: Op) -> Expr | None:
    """The expression that computes ``op``, or None where the function is a primitive of its own.

    f32 and f64 expand in their own precision, narrower floats through f32; ``pow`` of integers expands too.
    """
    function = (_FLOAT if op.dtype.is_float else _INTEGER).get(op.fn)
    if function is None:
        return None
    args = [Term(arg) for arg in op.args]
    if not op.dtype.is_float or op.dtype in (F32, F64):
        return function(*args).expr
    return function(*(arg.cast(F32) for arg in args)).cast(op.dtype).expr
