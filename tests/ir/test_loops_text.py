"""Kernels print and parse back: statements, expressions, sharing, and messages that name the line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcompile.codegen.math_expand import expand
from tcompile.errors import InvalidModelError
from tcompile.ir import dims
from tcompile.ir.dtypes import BF16, F8E4M3FN, F32, F64, I32, U8
from tcompile.ir.loops import Access, Bitcast, Cast, Const, For, Kernel, Load, LoopKind, Op, Param, Store
from tcompile.ir.loops_evaluate import postorder
from tcompile.ir.loops_interpret import run_kernel
from tcompile.ir.loops_parse import parse_kernel
from tcompile.ir.loops_text import kernel_key, print_kernel

EVERYTHING = """\
kernel sample(p0: in f32[d0, 8], p1: out f32[d0, 8], p2: inout i64[8*d0 + 1]) dims (d0, d1) alias 0 1 flops 8*d0 tag "tile" "8x3" {
  parallel i0 in 0..d0 {
    alloc b0: f32[8, 16] register
    alloc b1: f32[d1] stack
    let x0 = load p2[i0]
    check lt(x0, index(d0)) else INDEX
    vector i1 in 0..8 width 16 {
      $0 = load p0[floordiv(i0, 2), i1]
      $1 = lt($0, 0.0:f32)
      store p1[i0, i1] if not($1) = select($1, mul($0, -0.5:f32), $0)
      store p1[i0, i1] = fma($0, inf:f32, load p0[x0, i1] if and($1, true))
    }
    unrolled i2 in 0..3 {
      store b0[i2, 0] = cast(bitcast(cast(x0, i32), u32), f32)
    }
    while ne(load b1[0], nan:f32) {
      if eq(x0, 3:i64) {
        store b1[mod(i0, d1)] = cast(cast(1e-05:f32, f8e4m3fn, wrap), f32)
      } else {
        for i3 in 0..d1 - 1 {
          store b1[i3] = 1.5:f32
        }
      }
    }
    prefetch p0[i0 + 1, 0]
  }
}
"""


def test_every_form_prints_and_parses_back():
    kernel = parse_kernel(EVERYTHING)
    assert print_kernel(kernel) == EVERYTHING
    assert kernel.aliases == ((0, 1),)
    assert kernel.tags == {"tile": "8x3"}
    assert kernel.params[2].access is Access.INOUT


def test_shared_objects_are_shared_again():
    kernel = parse_kernel(EVERYTHING)
    first, second = kernel.body[0].body[4].body
    assert first.value.otherwise is second.value.args[0]


def test_a_dag_prints_in_linear_size():
    def deep(levels):
        x = Load("x", (dims.symbol("i"),), F32)
        for _ in range(levels):
            x = Op("add", (x, x), F32)
        return small(x)

    assert len(print_kernel(deep(200))) < 12000
    assert print_kernel(parse_kernel(print_kernel(deep(200)))) == print_kernel(deep(200))


def test_a_chain_too_deep_for_recursion_prints():
    x = Load("x", (dims.symbol("i"),), F32)
    for _ in range(5000):
        x = Op("add", (x, Const(1.0, F32)), F32)
    text = print_kernel(small(x))
    assert max(map(len, text.splitlines())) < 300
    assert print_kernel(parse_kernel(text)) == text


def small(value, name="small"):
    i = dims.symbol("i")
    params = (Param("x", F32, (4,)), Param("y", value.dtype, (4,), Access.OUT))
    return Kernel(name, params, (), (For("i", 4, (Store("y", (i,), value),), LoopKind.VECTOR, 4),))


@pytest.mark.parametrize("fn", ["exp", "erf", "tanh", "sin", "log1p"])
def test_expanded_functions_compute_the_same_after_a_round_trip(fn):
    value = expand(Op(fn, (Load("x", (dims.symbol("i"),), F32),), F32))
    kernel = small(value)
    again = parse_kernel(print_kernel(kernel))
    x, y, z = np.array([-1.5, 0.25, 3, 100], np.float32), np.zeros(4, np.float32), np.zeros(4, np.float32)
    run_kernel(kernel, [x, y], [])
    run_kernel(again, [x, z], [])
    np.testing.assert_array_equal(y, z)
    assert len(list(postorder(again.body[0].body[0].value))) >= len([node for node in postorder(value) if not isinstance(node, Const)])


@given(st.floats(width=32) | st.integers(-(2**31), 2**31 - 1))
@settings(max_examples=200, deadline=None)
def test_constants_survive(value):
    dtype = F64 if isinstance(value, float) else I32
    again = parse_kernel(print_kernel(small(Const(value, dtype)))).body[0].body[0].value
    assert type(again.value) is type(value)
    assert repr(again.value) == repr(value)


@pytest.mark.parametrize("expr", [Cast(Const(3.0, F32), F8E4M3FN, False), Cast(Const(3.0, F32), BF16), Bitcast(Const(3, U8), F8E4M3FN)])
def test_conversions_survive(expr):
    again = parse_kernel(print_kernel(small(expr))).body[0].body[0].value
    assert (type(again), again.dtype, getattr(again, "saturate", None)) == (type(expr), expr.dtype, getattr(expr, "saturate", None))


def test_the_key_hides_name_flops_and_tags_only():
    kernel = parse_kernel(EVERYTHING)
    other = parse_kernel(EVERYTHING.replace("kernel sample", "kernel other").replace(' flops 8*d0 tag "tile" "8x3"', ""))
    assert kernel_key(kernel) == kernel_key(other)
    assert kernel_key(kernel) != kernel_key(parse_kernel(EVERYTHING.replace(" alias 0 1", "")))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("let x0 = load p2[i0]", "let x0 = load p9[i0]", "line 5: 'p9'"),
        ("alloc b1: f32[d1] stack", "alloc b1: f33[d1] stack", "line 4: 'f33'"),
        ("lt(x0, index(d0))", "less(x0, index(d0))", "line 6: map: expected a function of the elementwise table, got 'less'"),
        ("store p1[i0, i1] = fma", "stare p1[i0, i1] = fma", "line 11: expected a statement, got 'stare'"),
        ("else INDEX", "", "line 7: expected 'else'"),
    ],
)
def test_a_text_that_is_wrong_names_the_line(old, new, message):
    with pytest.raises(InvalidModelError, match="kernel text, " + message.replace("(", r"\(")):
        parse_kernel(EVERYTHING.replace(old, new))
