"""Shapes that a model computes with tensors become dimensions while it is imported."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.errors import ExecutionError
from tcompile.ir.dims import parse
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model
from tests.onnx_import.models import model


def ops(graph) -> list[str]:
    return [node.op for node in graph.walk()]


def test_a_shape_chain_leaves_nothing_but_the_reshape():
    graph = import_model(
        model("""g (float[n, 4, 6] x) => (float[a, b] y) {
            shape = Shape(x)
            zero = Constant<value_int = 0>()
            first = Gather(shape, zero)
            axes = Constant<value_ints = [0]>()
            row = Unsqueeze(first, axes)
            rest = Constant<value_ints = [-1]>()
            target = Concat<axis = 0>(row, rest)
            y = Reshape(x, target)
        }""")
    )
    assert ops(graph) == ["reshape"]
    assert graph.outputs[0].shape == (parse("n"), 24)


def test_the_extent_left_for_minus_one_is_a_division_where_nothing_cancels():
    graph = import_model(
        model("""g (float[n, 6] x) => (float[a, b] y) {
            target = Constant<value_ints = [-1, 4]>()
            y = Reshape(x, target)
        }""")
    )
    assert graph.outputs[0].shape == (parse("floordiv(3*n, 2)"), 4)
    assert interpret(graph, [np.zeros((4, 6), np.float32)])["y"].shape == (6, 4)
    with pytest.raises(ExecutionError):
        interpret(graph, [np.zeros((3, 6), np.float32)])


def test_a_scaled_extent_passes_through_floats():
    # what exporters of Upsample write: floor(float(n) * 1.5)
    graph = import_model(
        model("""g (float[n] x, float[1] fill) => (float[m] y) {
            shape = Shape(x)
            real = Cast<to = 1>(shape)
            scale = Constant<value_float = 1.5>()
            scaled = Mul(real, scale)
            floor = Floor(scaled)
            size = Cast<to = 7>(floor)
            y = Expand(fill, size)
        }""")
    )
    assert graph.outputs[0].shape == (parse("floordiv(3*n, 2)"),)


def test_a_condition_on_extents_is_decided_where_it_is_provable():
    # HuggingFace's expand: where(shape == -1, ones, shape)
    graph = import_model(
        model("""g (float[n, 1] x) => (float[a, b] y) {
            shape = Shape(x)
            minus = Constant<value_int = -1>()
            free = Equal(shape, minus)
            one = Constant<value_int = 1>()
            target = Where(free, one, shape)
            y = Expand(x, target)
        }""")
    )
    assert graph.outputs[0].shape == (parse("n"), 1)
    assert ops(graph) == []


def test_a_shape_used_as_a_tensor_is_made_where_it_is_used():
    graph = import_model(
        model("""g (float[n] x, int64[1] k) => (int64[1] y, float[n] z) {
            shape = Shape(x)
            y = Add(shape, k)
            z = Relu(x)
        }""")
    )
    assert ops(graph).count("dim") == 1
    got = interpret(graph, [np.zeros(5, np.float32), np.array([2])])
    assert got["y"].tolist() == [7]


def test_a_run_time_shape_binds_symbols_and_resolves_zero_and_minus_one_there():
    graph = import_model(
        model("""g (float[n, 6] x, int64[3] target) => (float[a, b, c] y) {
            y = Reshape(x, target)
        }""")
    )
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    for target in ([4, 3, 2], [0, -1, 2], [-1, 2, 3]):
        wanted = x.reshape([x.shape[k] if extent == 0 else extent for k, extent in enumerate(target)])
        np.testing.assert_array_equal(interpret(graph, [x, np.array(target)])["y"], wanted)


@pytest.mark.parametrize("bounds", [(1, 3, 1), (-3, -1, 1), (0, 2**63 - 1, 2), (5, 2, 1), (-1, -(2**63), -1), (4, 0, -2)])
def test_slices_of_known_and_of_run_time_bounds_agree_with_numpy(bounds):
    start, end, step = bounds
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    constant = model(f"""g (float[n, 2] x) => (float[a, b] y) {{
        start = Constant<value_ints = [{start}]>()
        end = Constant<value_ints = [{end}]>()
        axes = Constant<value_ints = [0]>()
        step = Constant<value_ints = [{step}]>()
        y = Slice(x, start, end, axes, step)
    }}""")
    dynamic = model("g (float[n, 2] x, int64[1] s, int64[1] e, int64[1] a, int64[1] d) => (float[p, q] y) { y = Slice(x, s, e, a, d) }")
    wanted = x[slice(start, end if end > -(2**62) else None, step)]
    np.testing.assert_array_equal(interpret(import_model(constant), [x])["y"], wanted)
    operands = [np.array([number]) for number in (start, end, 0, step)]
    np.testing.assert_array_equal(interpret(import_model(dynamic), [x, *operands])["y"], wanted)


def test_extents_may_be_zero():
    graph = import_model(
        model("""g (float[n, 3] x) => (float[m, 3] y, float[3] s) {
            y = Concat<axis = 0>(x, x)
            axes = Constant<value_ints = [0]>()
            s = ReduceSum<keepdims = 0>(y, axes)
        }""")
    )
    got = interpret(graph, [np.zeros((0, 3), np.float32)])
    assert got["y"].shape == (0, 3)
    assert got["s"].tolist() == [0, 0, 0]


def test_a_counted_loop_has_static_scan_outputs_and_known_slices():
    graph = import_model(
        model("""g (float[7, 2] x) => (float[t, 2] y) {
            zero = Constant<value_int = 0>()
            limit = Constant<value_int = 5>()
            forever = Constant<value_int = 9223372036854775807>()
            start = Less(zero, limit)
            last, y = Loop(forever, start, zero) <body = body (int64 turn, bool going, int64 i) => (bool again, int64 next, float[2] row) {
                one = Constant<value_int = 1>()
                next = Add(i, one)
                again = Less(next, limit)
                row = Gather<axis = 0>(x, i)
            }>
        }""")
    )
    loop = next(node for node in graph.nodes if node.op == "loop")
    assert loop.attrs["always"] and loop.attrs["trip"] == 5
    assert graph.outputs[0].shape == (5, 2)
    assert "gather" not in ops(graph)
    x = np.arange(14, dtype=np.float32).reshape(7, 2)
    np.testing.assert_array_equal(interpret(graph, [x])["y"], x[:5])
