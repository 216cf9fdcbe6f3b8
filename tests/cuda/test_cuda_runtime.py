"""The runtime of GPU models on a device whose kernels are interpreted: plans, shapes, control flow, arrays, graphs, errors."""

from __future__ import annotations

import gc
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tcompile.errors import ArtifactError, ExecutionError, InputError, OutOfMemory
from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.interpret import interpret
from tcompile.runtime import load
from tcompile.runtime.cuda_arrays import DeviceArray, as_device_array
from tcompile.runtime.dtypes import element
from tests.cuda.loop_device import LoopDevice
from tests.cuda.loops import artifact_of, on_loops

N = dims.symbol("n")


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def two_sums():
    """p = x + y; q = sum of p * y along the second axis."""
    b = Builder("sums")
    b.symbols["n"] = Range(0, 100)
    x, y = b.input("x", dtypes.F32, (N, 7)), b.input("y", dtypes.F32, (N, 7))
    p = b.map("add", x, y)
    return b.graph([p, b.emit("reduce", b.map("mul", p, y), fn="add", axes=(1,))], ["p", "q"])


def cache_step():
    b = Builder("step")
    b.symbols["n"] = Range(0, None)
    past, new = b.input("past", dtypes.F32, (2, 3, N, 4)), b.input("new", dtypes.F32, (2, 3, 1, 4))
    present = b.concat([past, new], 2)
    return b.graph([present, b.emit("reduce", present, fn="add", axes=(2,))], ["present", "total"])


def picked():
    """z[i] = x[at[i]]; the run checks at."""
    b = Builder("picked")
    b.symbols["n"] = Range(0, None)
    x, at = b.input("x", dtypes.F32, (5,)), b.input("at", dtypes.I64, (N,))
    return b.graph([b.emit("gather", x, at, axis=0)], ["z"])


def as_device(exe, array):
    """An array on the executable's device."""
    block = np.ascontiguousarray(array)
    address = exe.device.allocate(max(block.nbytes, 1))
    exe.device.upload(address, block, 0)
    spec = next(spec for spec in (*exe.inputs, *exe.outputs) if spec.dtype == array.dtype)
    return DeviceArray(exe.device, address, block.shape, spec.element, None)


def check(graph, exe, inputs):
    got, expected = exe.run(inputs), interpret(graph, inputs)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("captures", [True, False])
def test_shapes_come_and_go(captures):
    graph = two_sums()
    exe, device = on_loops(graph, captures=captures)
    for n in (3, 0, 100, 3, 3, 3, 17, 100, 0):
        check(graph, exe, {"x": rand(n, 7, seed=n), "y": rand(n, 7, seed=n + 1)})
    assert (device.graphs > 0) == captures


def test_the_second_run_is_captured_and_later_ones_are_one_graph():
    exe, device = on_loops(two_sums())
    for turn in range(5):
        x, y = rand(6, 7, seed=turn), rand(6, 7, seed=9)
        np.testing.assert_allclose(exe.run([x, y])["p"], x + y, rtol=1e-6)
        assert device.graphs == (turn > 0)


def test_inputs_that_do_not_fit_are_named_before_anything_runs():
    exe, device = on_loops(two_sums())
    started = device.launches
    for inputs, text in (
        ({"x": rand(3, 7), "y": rand(4, 7)}, "expected n = 3 as in input 'x'"),
        ({"x": rand(101, 7), "y": rand(101, 7)}, "n in 0..100 is expected"),
        ({"x": rand(3, 8), "y": rand(3, 7)}, "extent 8 on axis 1, expected 7"),
        ({"x": rand(3, 7).astype(np.float64), "y": rand(3, 7)}, "element type"),
        ({"x": rand(3, 7)}, "input 'y' is missing"),
        ({"x": rand(7), "y": rand(7)}, "expected 2 dimensions"),
    ):
        with pytest.raises(InputError, match=text):
            exe.run(inputs)
    assert device.launches == started


def test_device_arrays_are_read_and_written_where_they_are():
    exe, device = on_loops(two_sums())
    x, y = rand(5, 7), rand(5, 7, seed=1)
    dx, dy = as_device(exe, x), as_device(exe, y)
    target = as_device(exe, np.zeros((5, 7), np.float32))
    before = device.uploads, device.downloads
    for _ in range(4):
        got = exe.run({"x": dx, "y": dy}, out={"p": target})
    assert (device.uploads, device.downloads) == before
    assert got["p"] is target and isinstance(got["q"], DeviceArray)
    np.testing.assert_allclose(target.numpy(), x + y)
    np.testing.assert_allclose(got["q"].numpy(), ((x + y) * y).sum(1), rtol=1e-5)


def test_results_go_where_they_are_wanted():
    exe, _ = on_loops(two_sums())
    x, y = rand(5, 7), rand(5, 7, seed=1)
    kept = exe.run([x, y], on_device=True)
    assert isinstance(kept["p"], DeviceArray)
    host = exe.run([as_device(exe, x), y], ["q"], on_device=False)
    assert list(host) == ["q"] and isinstance(host["q"], np.ndarray)
    out = np.empty((5, 7), np.float32)
    assert exe.run({"x": as_device(exe, x), "y": y}, out={"p": out})["p"] is out
    np.testing.assert_allclose(out, kept["p"].numpy())


def test_results_that_live_are_not_overwritten_and_memory_of_dead_ones_is_used_again():
    exe, device = on_loops(two_sums())
    x, y = as_device(exe, rand(5, 7)), as_device(exe, rand(5, 7, seed=1))
    first = exe.run([x, y])["p"]
    expected = first.numpy()
    for _ in range(3):
        other = exe.run([x, x])["p"]
        assert other.address != first.address
        del other
    gc.collect()
    blocks = len(device.blocks)
    for _ in range(5):
        exe.run([x, x])
    assert len(device.blocks) == blocks
    np.testing.assert_array_equal(first.numpy(), expected)


def test_donated_device_arrays_are_overwritten():
    exe, _ = on_loops(two_sums())
    x, y = rand(5, 7), rand(5, 7, seed=1)
    for donate in ((), ("x",), ("x", "y")):
        dx, dy = as_device(exe, x), as_device(exe, y)
        got = exe.run({"x": dx, "y": dy}, donate=donate)
        assert (got["p"].address == dx.address) == bool(donate)
        np.testing.assert_allclose(got["p"].numpy(), x + y)
        np.testing.assert_allclose(got["q"].numpy(), ((x + y) * y).sum(1), rtol=1e-5)


def test_out_over_an_input_that_is_still_read_is_right():
    exe, _ = on_loops(two_sums())
    x, y = rand(5, 7), rand(5, 7, seed=1)
    dx, dy = as_device(exe, x), as_device(exe, y)
    got = exe.run({"x": dx, "y": dy}, out={"p": dy})
    assert got["p"] is dy
    np.testing.assert_allclose(dy.numpy(), x + y)
    np.testing.assert_allclose(got["q"].numpy(), ((x + y) * y).sum(1), rtol=1e-5)


def test_caches_grow_where_they_are():
    exe, _ = on_loops(cache_step())
    cache = as_device(exe, np.full((2, 3, 12, 4), np.nan, np.float32))
    expected = np.zeros((2, 3, 0, 4), np.float32)
    for t in range(12):
        new = rand(2, 3, 1, 4, seed=t)
        expected = np.concatenate((expected, new), 2)
        inputs = {"past": cache[:, :, :t], "new": as_device(exe, new)}
        got = exe.run(inputs, out={"present": cache[:, :, : t + 1]}, donate=["past"])
        np.testing.assert_array_equal(cache.numpy()[:, :, : t + 1], expected)
        np.testing.assert_allclose(got["total"].numpy(), expected.sum(2), rtol=1e-5, atol=1e-5)


def test_caches_on_the_host_are_copied_and_right():
    exe, _ = on_loops(cache_step())
    cache = np.zeros((2, 3, 9, 4), np.float32)
    for t in range(9):
        new = rand(2, 3, 1, 4, seed=t)
        exe.run({"past": cache[:, :, :t], "new": new}, out={"present": cache[:, :, : t + 1]}, donate=["past"])
        np.testing.assert_array_equal(cache[:, :, t : t + 1], new)


def test_a_failing_check_names_the_node_and_later_runs_work():
    exe, _ = on_loops(picked())
    x = rand(5)
    for _ in range(3):
        np.testing.assert_array_equal(exe.run([x, np.array([4, 1, 0])])["z"], x[[4, 1, 0]])
        with pytest.raises(ExecutionError, match="index out of range in kernel"):
            exe.run([x, np.array([4, 5, 0])])


def test_sizes_that_only_a_run_knows():
    b = Builder("nonzero")
    b.symbols["n"] = Range(0, None)
    mask = b.input("mask", dtypes.BOOL, (N,))
    indices, count = b.emit_all("compact", (mask,))
    found = b.slice(indices, [0], [b.bind_dim(count, "k", 0, N)])
    graph = b.graph([b.map("add", found, found)], ["twice"])
    exe, device = on_loops(graph)
    for n in (0, 1, 9, 200, 3):
        check(graph, exe, {"mask": rand(n, seed=n) > 0})
    assert device.graphs == 0 and exe.report()["reads_back"] and exe.report()["growing"]
    kept = exe.run([rand(50) > 0], on_device=True)["twice"]
    np.testing.assert_array_equal(kept.numpy(), 2 * np.flatnonzero(rand(50) > 0))


def test_profile_memory_and_report():
    exe, _ = on_loops(two_sums())
    inputs = [rand(5, 7), rand(5, 7)]
    measured = exe.profile(inputs, runs=3)
    assert measured.seconds > 0 and {call.turns for call in measured.calls} == {1}
    assert all(call.bytes for call in measured.calls)
    assert exe.memory().sessions == 1 and exe.memory().arena >= 0
    report = exe.report()
    assert report["target"] == "cuda-sm90" and len(report["calls"]) == len(exe.calls)
    assert [kernel["block"][0] > 0 for kernel in report["kernels"]]


def test_out_of_memory_is_an_error_of_its_own():
    data, compiled = artifact_of(two_sums())
    exe = load(data, device=LoopDevice(compiled.program, limit=1 << 13))
    with pytest.raises(OutOfMemory):
        exe.run([rand(100, 7), rand(100, 7)])


def test_closing_gives_everything_back():
    exe, device = on_loops(two_sums())
    exe.run([rand(5, 7), rand(5, 7)])
    exe.close()
    del exe
    gc.collect()
    assert not device.blocks and device.streams == [0]


def test_a_model_for_a_gpu_does_not_load_elsewhere():
    data, compiled = artifact_of(two_sums())
    with pytest.raises(ArtifactError, match="compiled for a GPU"):
        load(data, device="cpu")
    device = LoopDevice(compiled.program)
    device.takes_text = False
    with pytest.raises(ArtifactError, match="is sm_90"):
        load(data, device=device)


def test_equal_models_give_equal_bytes():
    assert artifact_of(two_sums())[0] == artifact_of(two_sums())[0]


def test_several_threads_run_one_executable():
    graph = two_sums()
    exe, device = on_loops(graph)

    def work(seed):
        x, y = rand(seed % 7, 7, seed=seed), rand(seed % 7, 7, seed=seed + 100)
        return np.abs(exe.run([x, y])["p"] - (x + y)).max(initial=0)

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, range(60))) < 1e-6
    assert exe.memory().sessions <= 4 and device.activated >= 60


def test_dlpack_and_the_array_interface_share_memory():
    exe, device = on_loops(two_sums())
    array = as_device(exe, rand(5, 7))
    again = as_device_array(_Foreign(array), exe.inputs[0].element, device, 7, "it")
    assert (again.address, again.shape, again.strides) == (array.address, (5, 7), (28, 4))
    plain = types.SimpleNamespace(__cuda_array_interface__=array.__cuda_array_interface__)
    assert as_device_array(plain, exe.inputs[0].element, device, 0, "it").address == array.address
    with pytest.raises(InputError, match="expected i64"):
        as_device_array(_Foreign(array), element(7), device, 0, "it")
    view = array[1:3]
    assert view.shape == (2, 7) and view.address == array.address + 28
    with pytest.raises(InputError, match="slices with steps"):
        array[::2]


class _Foreign:
    """Another library's array: DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)
