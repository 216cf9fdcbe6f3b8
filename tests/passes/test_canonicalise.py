"""Canonicalisation: one sentence and one small graph per rule; answers keep their bits."""

from __future__ import annotations

import pytest

from tcompile.passes.canonicalise import Canonicalise
from tests.passes.cases import expect

X = "inputs %x: f32[12, 4]"
SCALAR = "%c: f32[] = constant {{value = ({},)}}\n%k: f32[12, 4] = broadcast(%c) {{shape = (12, 4), axes = ()}}"

CONV = "strides = (1,), lhs_dilation = (1,), dilation = (1,), groups = 1, dtype = f32"
LOOP = 'carried = 1, trip = none, counter = "t", always = true, scans = 0, scan_extent = none, shape_symbols = ()'

TWO = LOOP.replace("carried = 1", "carried = 2")
SCAN = 'carried = 1, trip = 3, counter = "t", always = true, shape_symbols = ()'

CASES = {
    "x * 1 is x": (f'{X}\n{SCALAR.format("1.0")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "mul"}}\nreturn %y', f"{X}\nreturn %x"),
    "x + -0.0 is x": (f'{X}\n{SCALAR.format("-0.0")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "add"}}\nreturn %y', f"{X}\nreturn %x"),
    "x + 0.0 stays, for it makes -0.0 into 0.0": (
        f'{X}\n{SCALAR.format("0.0")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "add"}}\nreturn %y',
        f'{X}\n{SCALAR.format("0.0")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "add"}}\nreturn %y',
    ),
    "a sum cannot be -0.0, so adding 0.0 to it is nothing": (
        """inputs %x: f32[12, 4]
        %s: f32[12] = reduce(%x) {fn = "add", axes = (1,)}
        %c: f32[] = constant {value = (0.0,)}
        %k: f32[12] = broadcast(%c) {shape = (12,), axes = ()}
        %y: f32[12] = map(%s, %k) {fn = "add"}
        return %y""",
        """inputs %x: f32[12, 4]
        %s: f32[12] = reduce(%x) {fn = "add", axes = (1,)}
        return %s""",
    ),
    "a constant that repeats along an axis is the broadcast of a smaller one": (
        """inputs %x: f32[2, 3, 2]
        %k: f32[2, 3, 2] = constant {value = (1.0, 1.0, -0.0, -0.0, 3.0, 3.0, 1.0, 1.0, -0.0, -0.0, 3.0, 3.0)}
        %y: f32[2, 3, 2] = map(%x, %k) {fn = "mul"}
        return %y""",
        """inputs %x: f32[2, 3, 2]
        %c: f32[3] = constant {value = (1.0, -0.0, 3.0)}
        %k: f32[2, 3, 2] = broadcast(%c) {shape = (2, 3, 2), axes = (1,)}
        %y: f32[2, 3, 2] = map(%x, %k) {fn = "mul"}
        return %y""",
    ),
    "a constant that repeats nothing stays, and zeros of both signs differ": (
        """inputs %x: f32[2, 1, 2]
        %k: f32[2, 1, 2] = constant {value = (0.0, 1.0, -0.0, 1.0)}
        %y: f32[2, 1, 2] = map(%x, %k) {fn = "mul"}
        return %y""",
        """inputs %x: f32[2, 1, 2]
        %k: f32[2, 1, 2] = constant {value = (0.0, 1.0, -0.0, 1.0)}
        %y: f32[2, 1, 2] = map(%x, %k) {fn = "mul"}
        return %y""",
    ),
    "x - 2 is x + -2": (
        f'{X}\n{SCALAR.format("2.0")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "sub"}}\nreturn %y',
        f'{X}\n{SCALAR.format("-2.0")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "add"}}\nreturn %y',
    ),
    "x - 2 stays where numbers have no sign": (
        f'{X}\n{SCALAR.format("2.0")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "sub"}}\nreturn %y'.replace("f32", "f8e8m0"),
        f'{X}\n{SCALAR.format("2.0")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "sub"}}\nreturn %y'.replace("f32", "f8e8m0"),
    ),
    "x / 8 is x * 0.125": (
        f'{X}\n{SCALAR.format("8.0")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "div"}}\nreturn %y',
        f'{X}\n{SCALAR.format("0.125")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "mul"}}\nreturn %y',
    ),
    "x / 3 stays, for 1/3 is not exact": (
        f'{X}\n{SCALAR.format("3.0")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "div"}}\nreturn %y',
        f'{X}\n{SCALAR.format("3.0")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "div"}}\nreturn %y',
    ),
    "2 * x is x * 2": (
        f'{X}\n{SCALAR.format("2.0")}\n%y: f32[12, 4] = map(%k, %x) {{fn = "mul"}}\nreturn %y',
        f'{X}\n{SCALAR.format("2.0")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "mul"}}\nreturn %y',
    ),
    "x ** 2 is x * x": (
        f'{X}\n{SCALAR.format("2.0")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "pow"}}\nreturn %y',
        f'{X}\n%y: f32[12, 4] = map(%x, %x) {{fn = "mul"}}\nreturn %y',
    ),
    "x ** -1 is 1 / x": (
        f'{X}\n{SCALAR.format("-1.0")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "pow"}}\nreturn %y',
        f'{X}\n%y: f32[12, 4] = map(%x) {{fn = "recip"}}\nreturn %y',
    ),
    "max(max(x, 0), 1) is max(x, 1)": (
        """inputs %x: f32[12]
        %c: f32[] = constant {value = (0.0,)}
        %d: f32[] = constant {value = (1.0,)}
        %k: f32[12] = broadcast(%c) {shape = (12,), axes = ()}
        %l: f32[12] = broadcast(%d) {shape = (12,), axes = ()}
        %a: f32[12] = map(%x, %k) {fn = "max"}
        %y: f32[12] = map(%a, %l) {fn = "max"}
        return %y""",
        """inputs %x: f32[12]
        %c: f32[] = constant {value = (1.0,)}
        %k: f32[12] = broadcast(%c) {shape = (12,), axes = ()}
        %y: f32[12] = map(%x, %k) {fn = "max"}
        return %y""",
    ),
    "max(x, -inf) is x, NaN included": (
        f'{X}\n{SCALAR.format("-inf")}\n%y: f32[12, 4] = map(%x, %k) {{fn = "max"}}\nreturn %y',
        f"{X}\nreturn %x",
    ),
    "-(-x) is x": (
        f'{X}\n%a: f32[12, 4] = map(%x) {{fn = "neg"}}\n%y: f32[12, 4] = map(%a) {{fn = "neg"}}\nreturn %y',
        f"{X}\nreturn %x",
    ),
    "|-x| is |x|": (
        f'{X}\n%a: f32[12, 4] = map(%x) {{fn = "neg"}}\n%y: f32[12, 4] = map(%a) {{fn = "abs"}}\nreturn %y',
        f'{X}\n%y: f32[12, 4] = map(%x) {{fn = "abs"}}\nreturn %y',
    ),
    "x - x stays for floats, since inf - inf is NaN": (
        f'{X}\n%y: f32[12, 4] = map(%x, %x) {{fn = "sub"}}\nreturn %y',
        f'{X}\n%y: f32[12, 4] = map(%x, %x) {{fn = "sub"}}\nreturn %y',
    ),
    "x * 0 is 0 for integers": (
        """inputs %x: i32[5]
        %c: i32[] = constant {value = (0,)}
        %k: i32[5] = broadcast(%c) {shape = (5,), axes = ()}
        %y: i32[5] = map(%x, %k) {fn = "mul"}
        return %y""",
        """inputs %x: i32[5]
        %c: i32[] = constant {value = (0,)}
        %k: i32[5] = broadcast(%c) {shape = (5,), axes = ()}
        return %k""",
    ),
    "(x + 3) + 4 is x + 7 for integers, wrapping": (
        """inputs %x: i8[5]
        %c: i8[] = constant {value = (100,)}
        %k: i8[5] = broadcast(%c) {shape = (5,), axes = ()}
        %a: i8[5] = map(%x, %k) {fn = "add"}
        %y: i8[5] = map(%a, %k) {fn = "add"}
        return %y""",
        """inputs %x: i8[5]
        %c: i8[] = constant {value = (-56,)}
        %k: i8[5] = broadcast(%c) {shape = (5,), axes = ()}
        %y: i8[5] = map(%x, %k) {fn = "add"}
        return %y""",
    ),
    "f16 to f32 and back is nothing": (
        """inputs %x: f16[12]
        %a: f32[12] = convert(%x) {dtype = f32, saturate = true}
        %y: f16[12] = convert(%a) {dtype = f16, saturate = true}
        return %y""",
        "inputs %x: f16[12]\nreturn %x",
    ),
    "f32 to f16 and back stays, for it rounds": (
        """inputs %x: f32[12]
        %a: f16[12] = convert(%x) {dtype = f16, saturate = true}
        %y: f32[12] = convert(%a) {dtype = f32, saturate = true}
        return %y""",
        """inputs %x: f32[12]
        %a: f16[12] = convert(%x) {dtype = f16, saturate = true}
        %y: f32[12] = convert(%a) {dtype = f32, saturate = true}
        return %y""",
    ),
    "i16 to f32 to i8 stays, for a float saturates where an integer wraps": (
        """inputs %x: i16[12]
        %a: f32[12] = convert(%x) {dtype = f32, saturate = true}
        %y: i8[12] = convert(%a) {dtype = i8, saturate = true}
        return %y""",
        """inputs %x: i16[12]
        %a: f32[12] = convert(%x) {dtype = f32, saturate = true}
        %y: i8[12] = convert(%a) {dtype = i8, saturate = true}
        return %y""",
    ),
    "i64 to i32 to i8 keeps the low bits, as i64 to i8 does": (
        """inputs %x: i64[12]
        %a: i32[12] = convert(%x) {dtype = i32, saturate = true}
        %y: i8[12] = convert(%a) {dtype = i8, saturate = true}
        return %y""",
        """inputs %x: i64[12]
        %y: i8[12] = convert(%x) {dtype = i8, saturate = true}
        return %y""",
    ),
    "transposes compose, and one that moves nothing goes": (
        """inputs %x: f32[2, 3, 4]
        %a: f32[4, 2, 3] = transpose(%x) {perm = (2, 0, 1)}
        %y: f32[2, 3, 4] = transpose(%a) {perm = (1, 2, 0)}
        return %y""",
        "inputs %x: f32[2, 3, 4]\nreturn %x",
    ),
    "a transpose of a unit axis is a reshape": (
        "inputs %x: f32[n, 1, 4]\n%y: f32[1, n, 4] = transpose(%x) {perm = (1, 0, 2)}\nreturn %y",
        "inputs %x: f32[n, 1, 4]\n%y: f32[1, n, 4] = reshape(%x) {shape = (1, n, 4)}\nreturn %y",
    ),
    "reshapes compose": (
        """inputs %x: f32[n, 4]
        %a: f32[4*n] = reshape(%x) {shape = (4*n,)}
        %y: f32[2*n, 2] = reshape(%a) {shape = (2*n, 2)}
        return %y""",
        "inputs %x: f32[n, 4]\n%y: f32[2*n, 2] = reshape(%x) {shape = (2*n, 2)}\nreturn %y",
    ),
    "a mean that is kept and broadcast again loses its unit axis": (
        """inputs %x: f32[n, 4]
        %s: f32[n] = reduce(%x) {fn = "max", axes = (1,)}
        %k: f32[n, 1] = reshape(%s) {shape = (n, 1)}
        %b: f32[n, 4] = broadcast(%k) {shape = (n, 4), axes = (0, 1)}
        %y: f32[n, 4] = map(%x, %b) {fn = "sub"}
        return %y""",
        """inputs %x: f32[n, 4]
        %s: f32[n] = reduce(%x) {fn = "max", axes = (1,)}
        %b: f32[n, 4] = broadcast(%s) {shape = (n, 4), axes = (0,)}
        %y: f32[n, 4] = map(%x, %b) {fn = "sub"}
        return %y""",
    ),
    "slices compose, negative steps included": (
        """inputs %x: f32[10]
        %a: f32[4] = slice(%x) {start = (8,), size = (4,), step = (-2,)}
        %y: f32[2] = slice(%a) {start = (1,), size = (2,), step = (2,)}
        return %y""",
        "inputs %x: f32[10]\n%y: f32[2] = slice(%x) {start = (6,), size = (2,), step = (-4,)}\nreturn %y",
    ),
    "a slice inside one operand of a concat reads that operand": (
        """inputs %x: f32[n, 4], %z: f32[n, 6]
        %a: f32[n, 10] = concat(%x, %z) {axis = 1}
        %y: f32[n, 2] = slice(%a) {start = (0, 5), size = (n, 2), step = (1, 1)}
        return %y""",
        "inputs %x: f32[n, 4], %z: f32[n, 6]\n%y: f32[n, 2] = slice(%z) {start = (0, 1), size = (n, 2), step = (1, 1)}\nreturn %y",
    ),
    "a tensor that is split and joined again is itself": (
        """inputs %x: f32[n, 4]
        %a: f32[n, 1] = slice(%x) {start = (0, 0), size = (n, 1), step = (1, 1)}
        %b: f32[n, 3] = slice(%x) {start = (0, 1), size = (n, 3), step = (1, 1)}
        %y: f32[n, 4] = concat(%a, %b) {axis = 1}
        return %y""",
        "inputs %x: f32[n, 4]\nreturn %x",
    ),
    "zero pads join the convolution": (
        """inputs %x: f32[1, 2, 5], %w: f32[3, 2, 3]
        %c: f32[] = constant {value = (0.0,)}
        %p: f32[1, 2, 8] = pad(%x, %c) {low = (0, 0, 1), high = (0, 0, 2), mode = "constant"}
        %y: f32[1, 3, 6] = conv(%p, %w) {@CONV, low = (0,), high = (0,)}
        return %y""",
        """inputs %x: f32[1, 2, 5], %w: f32[3, 2, 3]
        %y: f32[1, 3, 6] = conv(%x, %w) {@CONV, low = (1,), high = (2,)}
        return %y""",
    ),
    "gathering a run of constant indices is slicing": (
        """inputs %x: f32[6, 2]
        %i: i64[3] = constant {value = (4, 3, 2)}
        %y: f32[3, 2] = gather(%x, %i) {axis = 0}
        return %y""",
        "inputs %x: f32[6, 2]\n%y: f32[3, 2] = slice(%x) {start = (4, 0), size = (3, 2), step = (-1, 1)}\nreturn %y",
    ),
    "transposes around elementwise work meet and cancel": (
        """inputs %x: f32[1, 2, 3, 4]
        %k: f32[2] = constant {value = (1.0, 2.0)}
        %t: f32[1, 3, 4, 2] = transpose(%x) {perm = (0, 2, 3, 1)}
        %b: f32[1, 3, 4, 2] = broadcast(%k) {shape = (1, 3, 4, 2), axes = (3,)}
        %m: f32[1, 3, 4, 2] = map(%t, %b) {fn = "add"}
        %y: f32[1, 2, 3, 4] = transpose(%m) {perm = (0, 3, 1, 2)}
        return %y""",
        """inputs %x: f32[1, 2, 3, 4]
        %k: f32[2] = constant {value = (1.0, 2.0)}
        %b: f32[1, 2, 3, 4] = broadcast(%k) {shape = (1, 2, 3, 4), axes = (1,)}
        %y: f32[1, 2, 3, 4] = map(%x, %b) {fn = "add"}
        return %y""",
    ),
    "equal nodes become one": (
        f'{X}\n%a: f32[12, 4] = map(%x) {{fn = "exp"}}\n%b: f32[12, 4] = map(%x) {{fn = "exp"}}\n'
        '%y: f32[12, 4] = map(%a, %b) {fn = "add"}\nreturn %y',
        f'{X}\n%a: f32[12, 4] = map(%x) {{fn = "exp"}}\n%y: f32[12, 4] = map(%a, %a) {{fn = "add"}}\nreturn %y',
    ),
    "an if on a constant is its branch, and the symbol it bound is a number": (
        """symbols k in 0..
        inputs %x: f32[5]
        %c: bool[] = constant {value = (false,)}
        %y: f32[k] = if(%c, %x) {shape_symbols = ((0, 0, "k"),)}
        region "then" {
          inputs %p: f32[5]
          return %p
        }
        region "else" {
          inputs %q: f32[5]
          %r: f32[2] = slice(%q) {start = (1,), size = (2,), step = (1,)}
          return %r
        }
        return %y""",
        "inputs %x: f32[5]\n%r: f32[2] = slice(%x) {start = (1,), size = (2,), step = (1,)}\nreturn %r",
    ),
    "a constant that a loop captures moves into its body": (
        """symbols t in 0..
        inputs %n: i64[], %x: f32[4]
        %yes: bool[] = constant {value = (true,)}
        %w: f32[4] = constant {value = (1.0, 2.0, 3.0, 4.0)}
        %y: f32[4] = loop(%n, %yes, %x, %w) {@LOOP}
        region "body" {
          inputs %i: i64[], %a: f32[4], %v: f32[4]
          %go: bool[] = constant {value = (true,)}
          %s: f32[4] = map(%a, %v) {fn = "add"}
          return %go, %s
        }
        return %y""",
        """symbols t in 0..
        inputs %n: i64[], %x: f32[4]
        %yes: bool[] = constant {value = (true,)}
        %y: f32[4] = loop(%n, %yes, %x) {@LOOP}
        region "body" {
          inputs %i: i64[], %a: f32[4]
          %v: f32[4] = constant {value = (1.0, 2.0, 3.0, 4.0)}
          %go: bool[] = constant {value = (true,)}
          %s: f32[4] = map(%a, %v) {fn = "add"}
          return %go, %s
        }
        return %y""",
    ),
    "a stack that nobody reads is not written": (
        """symbols t in 0..
        inputs %x: f32[4]
        %n: i64[] = constant {value = (3,)}
        %yes: bool[] = constant {value = (true,)}
        %y: f32[4], %s: f32[3, 4] = loop(%n, %yes, %x) {@SCAN, scans = 1, scan_extent = 3}
        region "body" {
          inputs %i: i64[], %a: f32[4]
          %go: bool[] = constant {value = (true,)}
          %b: f32[4] = map(%a) {fn = "neg"}
          %e: f32[4] = map(%a) {fn = "abs"}
          return %go, %b, %e
        }
        return %y""",
        """symbols t in 0..
        inputs %x: f32[4]
        %n: i64[] = constant {value = (3,)}
        %yes: bool[] = constant {value = (true,)}
        %y: f32[4] = loop(%n, %yes, %x) {@SCAN, scans = 0, scan_extent = 3}
        region "body" {
          inputs %i: i64[], %a: f32[4]
          %go: bool[] = constant {value = (true,)}
          %b: f32[4] = map(%a) {fn = "neg"}
          return %go, %b
        }
        return %y""",
    ),
    "a carried value that stays is a capture": (
        """symbols t in 0..
        inputs %n: i64[], %x: f32[4], %w: f32[4]
        %yes: bool[] = constant {value = (true,)}
        %v: f32[4], %y: f32[4] = loop(%n, %yes, %w, %x) {@TWO}
        region "body" {
          inputs %i: i64[], %k: f32[4], %a: f32[4]
          %go: bool[] = constant {value = (true,)}
          %b: f32[4] = map(%a, %k) {fn = "add"}
          return %go, %k, %b
        }
        return %y, %v""",
        """symbols t in 0..
        inputs %n: i64[], %x: f32[4], %w: f32[4]
        %yes: bool[] = constant {value = (true,)}
        %y: f32[4] = loop(%n, %yes, %x, %w) {@LOOP}
        region "body" {
          inputs %i: i64[], %a: f32[4], %k: f32[4]
          %go: bool[] = constant {value = (true,)}
          %b: f32[4] = map(%a, %k) {fn = "add"}
          return %go, %b
        }
        return %y, %w""",
    ),
}


@pytest.mark.parametrize("sentence", CASES)
def test_rule(sentence: str) -> None:
    expect(Canonicalise(), *map(_spelled_out, CASES[sentence]))


def _spelled_out(text: str) -> str:
    """The case with its abbreviations expanded and the range of n declared."""
    text = text.replace("@CONV", CONV).replace("@LOOP", LOOP).replace("@TWO", TWO).replace("@SCAN", SCAN)
    return f"symbols n in 0..\n{text}" if "[n" in text.split("\n")[0] else text
