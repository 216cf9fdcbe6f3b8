"""The cost model on kernels whose cycles and bytes can be counted by hand."""

import pytest

from tcompile.codegen.cpu_cost import cycles, moved_bytes
from tcompile.ir import dims
from tcompile.ir.loops_parse import parse_kernel
from tcompile.ir.target import Target

TARGET = Target("test", "x86_64-unknown-linux-gnu", "test", vector_bytes=32, fma_ports=2, fma_latency=4, load_ports=2)

TILE = """
kernel tile(p0: in f32[1024], p1: in f32[64], p2: out f32[16]) dims () {
  alloc b0: f32[4, 2, 8] register
  for i0 in 0..64 {
    let x0 = load p1[i0]
    vector i1 in 0..8 width 8 {
      let x1 = load p0[16*i0 + i1]
      let x2 = load p0[16*i0 + i1 + 8]
      store b0[0, 0, i1] = fma(x0, x1, load b0[0, 0, i1])
      store b0[0, 1, i1] = fma(x0, x2, load b0[0, 1, i1])
    }
  }
}
"""


def kernel(text):
    return parse_kernel(text.strip())


def test_a_tile_with_few_chains_waits_for_its_latency():
    """Two FMAs and three loads a turn are less than the four cycles until an accumulator is ready; a loop turn counts a quarter."""
    assert cycles(kernel(TILE), TARGET) == 64 * 4.25


def test_chains_on_one_accumulator_add_up():
    assert cycles(kernel(TILE.replace("[0, 1, i1]", "[0, 0, i1]")), TARGET) == 64 * 8.25


def test_bytes_count_each_tensor_once_and_no_more_than_is_touched():
    """Of p2 nothing is touched, but nothing is known of it either: it counts whole."""
    assert moved_bytes(kernel(TILE)) == 4 * (1024 + 64 + 16)
    part = kernel("kernel part(p0: in f32[1000], p1: inout f32[10]) dims () {\n  for i0 in 0..10 {\n    store p1[i0] = load p0[i0]\n  }\n}")
    assert moved_bytes(part) == 4 * 10 + 2 * 4 * 10


STREAM = """
kernel stream(p0: in f32[d0], p1: out f32[d0]) dims (d0) {
  parallel i0 in 0..ceildiv(d0, 64) {
    vector i1 in 0..min(64, d0 - 64*i0) width 8 {
      store p1[64*i0 + i1] = FN
    }
  }
}
"""


@pytest.mark.parametrize(("expression", "each"), [("load p0[64*i0 + i1]", 1), ("exp(load p0[64*i0 + i1])", 11)])
def test_symbolic_sizes_give_expressions(expression, each):
    """A vector takes the cycles of its store, or of its function and its store, and a quarter for each turn of each loop."""
    text = STREAM.replace("ceildiv(d0, 64)", "floordiv(d0 + 63, 64)").replace("FN", expression)
    found = cycles(kernel(text), TARGET)
    assert dims.symbols(found) == {"d0"}
    assert dims.evaluate(found, {"d0": 6400}) == 800 * (each + 0.25) + 100 * 0.25
    assert dims.evaluate(moved_bytes(kernel(text)), {"d0": 100}) == 800


def test_the_last_turn_counts_once():
    """A branch that one of the turns takes costs its share of each."""
    body = "for i1 in 0..100 {\n      store p0[i1] = 1.0:f32\n    }"
    text = f"kernel last(p0: out f32[100]) dims () {{\n  for i0 in 0..50 {{\n    if eq(index(i0), 49:i64) {{\n    {body}\n    }}\n  }}\n}}"
    assert cycles(kernel(text), TARGET) == pytest.approx(100 * 1.25, rel=0.2)


def test_what_memory_decides_has_no_estimate():
    text = "kernel wait(p0: inout i64[1]) dims () {\n  while lt(load p0[0], 5:i64) {\n    store p0[0] = add(load p0[0], 1:i64)\n  }\n}"
    assert cycles(kernel(text), TARGET) == 0


def test_an_address_that_a_condition_chooses_leaves_the_estimate():
    """Where to prefetch is no extent: what memory decides there changes nothing."""
    loop = "for i0 in 0..10 {{\n    {lines}\n    store p0[i0] = load p1[i0]\n  }}"
    text = "kernel ask(p0: out f32[10], p1: in f32[64]) dims () {{\n  {loop}\n}}".replace("{loop}", loop)
    plain = kernel(text.format(lines="let x9 = 1.0:f32"))
    asking = "let x0 = select(lt(index(i0), 9:i64), 16:i64, 0:i64)\n    let x1 = index(x0 + i0)\n    prefetch p1[x1]"
    assert cycles(kernel(text.format(lines=asking)), TARGET) == cycles(plain, TARGET) > 0


def test_an_extent_that_a_condition_chooses_is_that_of_the_middle_turn():
    """The comparison and the selection take half a cycle themselves."""
    chosen = "let x0 = select(lt(index(i0), 99:i64), 8:i64, 4:i64)"
    inner = "for i1 in 0..x0 {\n      store p0[i0] = 1.0:f32\n    }"
    text = f"kernel some(p0: out f32[100]) dims () {{\n  for i0 in 0..100 {{\n    {chosen}\n    {inner}\n  }}\n}}"
    assert cycles(kernel(text), TARGET) == 100 * (8 * 1.25 + 0.5 + 0.25)


def test_long_estimates_are_fitted():
    """An expression over symbols, that would be too long, becomes a polynomial."""
    loop = "for j{k} in 0..floordiv(d0*d0 + {k}*d0, max(1, floordiv(d0 + {k}, {k}))) {{\n    store p0[0] = 1.0:f32\n  }}"
    loops = "\n  ".join(loop.format(k=k) for k in range(1, 20))
    found = cycles(kernel(f"kernel rests(p0: out f32[4]) dims (d0) {{\n  {loops}\n}}"), TARGET)
    assert len(str(found)) < 100
    assert dims.evaluate(found, {"d0": 1000}) > dims.evaluate(found, {"d0": 10}) > 0


def test_of_a_table_no_more_counts_than_the_rows_that_are_looked_up():
    lookup = "for i0 in 0..d0 {\n    let x0 = load p1[i0]\n    for i1 in 0..8 {\n      store p2[i0, i1] = load p0[x0, i1]\n    }\n  }"
    text = f"kernel rows(p0: in f32[1000, 8], p1: in i64[d0], p2: out f32[d0, 8]) dims (d0) {{\n  {lookup}\n}}"
    found = moved_bytes(kernel(text))
    assert dims.evaluate(found, {"d0": 10}) == 10 * (4 * 8 + 8 + 4 * 8)
    assert dims.evaluate(found, {"d0": 5000}) == 4 * 8000 + 5000 * (8 + 4 * 8)
