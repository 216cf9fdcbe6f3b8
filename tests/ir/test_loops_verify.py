"""The Loop IR verifier: each invariant has a kernel that breaks it, as text, with the message it gets."""

from __future__ import annotations

import pytest

from tcompile.errors import InvalidModelError
from tcompile.ir.dims import Range
from tcompile.ir.loops_parse import parse_kernel
from tcompile.ir.loops_verify import unproved_accesses, verify_kernel

GOOD = """
kernel good(p0: in f32[d0, 32], p1: out f32[d0, 32], p2: in i64[d0]) dims (d0) {
  parallel i0 in 0..d0 {
    alloc b0: f32[2, 16] register
    let x0 = load p2[i0]
    check and(ge(x0, 0:i64), lt(x0, index(d0))) else INDEX
    unrolled i1 in 0..2 {
      vector i2 in 0..16 width 16 {
        store b0[i1, i2] = load p0[x0, 16*i1 + i2]
      }
    }
    unrolled i3 in 0..2 {
      vector i4 in 0..16 width 16 {
        store p1[i0, 16*i3 + i4] = load b0[i3, i4]
      }
    }
  }
}
"""


def test_a_good_kernel_passes_and_names_what_is_checked_at_run_time():
    assert unproved_accesses(parse_kernel(GOOD)) == ["p0: x0 in 0..d0: store b0[i1, i2]"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("unrolled i1 in 0..2", "unrolled i0 in 0..2", "i0 is bound twice"),
        ("let x0 = load p2[i0]", "let x0 = load p2[i3]", "i3 is used in an index before it is bound"),
        ("store b0[i1, i2] = load p0[x0", "let x1 = cast(x0, i32) store b0[i1, i2] = load p0[x1", "x1 is used in an index but is i32"),
        ("let x0 = load p2[i0]", "let x0 = load p2[i0, 0]", "p2 has 1 axes but 2 indices"),
        ("store p1[i0, 16*i3 + i4]", "store p0[i0, 16*i3 + i4]", "p0 is an IN parameter"),
        ("= load b0[i3, i4]", "= 1:i64", "p1 is f32, the stored value i64"),
        ("check and(ge(x0, 0:i64), lt(x0, index(d0)))", "check x0", "the condition is i64, not bool"),
        ("= load b0[i3, i4]", "= load b0[i3, i4] if 1.0:f32", "the mask is f32, not bool"),
        ("= load b0[i3, i4]", "= select(1.0:f32, 1.0:f32, 2.0:f32)", "the condition of a select is f32"),
        ("= load b0[i3, i4]", "= bitcast(1:i64, f32)", "bitcast of i64 to f32"),
        ("alloc b0: f32[2, 16] register", "alloc b0: f32[2, d0] register", "the register shape .* is not constant"),
        ("unrolled i1 in 0..2", "for i1 in 0..2", "the index i1 of register buffer b0 is not constant"),
        ("store b0[i1, i2]", "store b0[i1, 2*i2]", "does not step by lanes"),
        ("vector i2 in 0..16 width 16", "vector i2 in 0..16 width 1", "a vector loop of 1 lanes"),
        ("unrolled i1 in 0..2", "unrolled i1 in 0..d0", "the extent d0 of an unrolled loop is not constant"),
        ("store p1[i0, 16*i3 + i4]", "store p1[i0, 16*i3 + i4 + 32]", "p1: index 16\\*i3 \\+ i4 \\+ 32 is outside the extent 32"),
        ("store p1[i0, 16*i3 + i4]", "store p1[i0, -1]", "p1: index -1 is outside the extent 32"),
        ("parallel i0", "for i9 in 0..1 { parallel i0", "a parallel loop is not a statement of the kernel's own block"),
        ("= load b0[i3, i4]", "= load b9[i3, i4]", "b9"),
        ("let x0 = load p2[i0]", "let x0 = load p2[i0] prefetch b0[0, 0]", "b0 is no memory"),
        ("let x0 = load p2[i0]", "let x0 = load p2[i0] prefetch p2[i0, 0]", "2 indices for p2 of rank 1"),
    ],
)  # fmt: skip
def test_a_broken_invariant_is_named(old, new, message):
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    text += "}" * (text.count("{") - text.count("}"))
    with pytest.raises(InvalidModelError, match=message):
        verify_kernel(parse_kernel(text), {"d0": Range(1, 64)})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("alloc b0: f32[4] stack", "an Alloc stands in a vector loop"),
        ("while true { }", "a While stands in a vector loop"),
        ("for i1 in 0..4 { }", "a serial loop stands in a vector loop"),
        ("vector i1 in 0..4 width 4 { }", "a vector loop stands in a vector loop"),
        ("if lt(load p0[i0], 0.0:f32) { }", "the condition differs between lanes"),
        ("let x0 = mul(index(i0), 2:i64) if gt(x0, 3:i64) { }", "the condition differs between lanes"),
    ],
)
def test_vector_bodies_hold_only_what_lanes_can_do(body, message):
    text = f"kernel k(p0: in f32[8]) dims () {{ vector i0 in 0..8 width 8 {{ {body} }} }}"
    with pytest.raises(InvalidModelError, match=message):
        verify_kernel(parse_kernel(text))


def test_a_store_beside_a_parallel_loop_is_refused():
    text = "kernel k(p0: out f32[8]) dims () { store p0[0] = 0.0:f32 parallel i0 in 0..8 { store p0[i0] = 1.0:f32 } }"
    with pytest.raises(InvalidModelError, match="loops or stores beside it"):
        verify_kernel(parse_kernel(text))


def test_an_access_under_a_condition_or_in_an_empty_loop_may_be_anything():
    text = """kernel k(p0: out f32[8], p1: out f32[d0]) dims (d0) {
      if false { store p0[9] = 0.0:f32 }
      for i0 in 0..0 { store p0[8] = 0.0:f32 }
      for i0 in 0..d0 - 4 { store p1[i0 + d0] = 0.0:f32 }
      store p0[9] if false = 0.0:f32
    }"""
    verify_kernel(parse_kernel(text))


def test_aliases_are_parameters_of_one_dtype():
    text = "kernel k(p0: in f32[8], p1: out i32[8]) dims () alias 0 1 { }"
    with pytest.raises(InvalidModelError, match=r"aliases \(0, 1\) are no two parameters of one dtype"):
        verify_kernel(parse_kernel(text))
