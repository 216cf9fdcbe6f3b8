"""Programs print and parse back: every instruction, nested blocks, names that need quotes, kernels."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.errors import InvalidModelError
from tcompile.ir.program import BindDim, Loop, Role
from tcompile.ir.program_interpret import run_program
from tcompile.ir.program_parse import parse_program
from tcompile.ir.program_text import print_program
from tcompile.ir.program_verify import verify_program

TEXT = """\
program sample("an input": f32[n], c: bool[], k: i64[]) -> (y: f32[n] as "the output", z: f32[m + 1])
  entry symbol n in 1..64
  symbol m in 0..2*n
  symbol t in 0..
  note "peak" "12 bytes"
  bind m = k in 0..2*n  ; NonZero_1
  allocate z
  call fill.0(z) dims (m + 1)
  require n - 1 >= 0: "at least one; or none"  ; Add_0, "a name"
  if c
    copy t0 = "an input" (n)
  else
    call twice("an input", t0) dims (n)  ; Mul_3
  loop t < 3
    call twice(t0, y) dims (n)
    copy t0 = y (n)
  loop u while c
  set t = floordiv(n, 2) + 1

  temp t0: f32[n]
  weight w: f32[2]

kernel fill.0(p0: out f32[d0]) dims (d0) flops 0 {
  for i0 in 0..d0 {
    store p0[i0] = 0.0:f32
  }
}

kernel twice(p0: in f32[d0], p1: out f32[d0]) dims (d0) flops d0 {
  vector i0 in 0..d0 width 8 {
    $0 = load p0[i0]
    store p1[i0] = add($0, $0)
  }
}
"""
WEIGHTS = {"w": np.ones(2, np.float32)}
# a weight that no instruction uses is not printed
PRINTED = TEXT.replace("  weight w: f32[2]\n", "")


def test_every_instruction_prints_and_parses_back():
    program = parse_program(TEXT, WEIGHTS)
    assert print_program(program) == PRINTED
    assert program.entry_symbols == ("n",)
    assert program.output_names == ("the output", "z")
    assert program.notes == {"peak": "12 bytes"}
    assert program.inputs[0].role is Role.INPUT
    assert isinstance(program.body[0], BindDim)
    assert program.body[0].source == ("NonZero_1",)
    assert isinstance(program.body[6], Loop)
    assert program.body[6].trip is None


def test_a_parsed_program_runs():
    text = PRINTED.replace("  loop u while c\n", "").replace("  set t = floordiv(n, 2) + 1\n", "")
    program = parse_program(text)
    verify_program(program)
    x = np.array([1, 2, 3], np.float32)
    out = run_program(program, {"an input": x, "c": np.array(False), "k": np.array(4)})
    np.testing.assert_array_equal(out["the output"], x * 16)
    assert out["z"].shape == (5,)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("call twice(t0, y)", "call thrice(t0, y)", "line 15: 'thrice'"),
        ('copy t0 = "an input" (n)', "copy t0 = q (n)", "line 11: 'q'"),
        ("  else\n", "", "line 13: expected '  else' at 'loop t < 3'"),
        ("in 1..64", "in 1.64", "line 2: "),
        ("set t =", "sat t =", "line 18: expected 'loop '"),
        ("store p0[i0]", "store p9[i0] 1", "kernel text, line 3: expected '='"),
    ],
)
def test_a_text_that_is_wrong_names_the_line(old, new, message):
    with pytest.raises(InvalidModelError, match=message):
        parse_program(TEXT.replace(old, new), WEIGHTS)
