"""Whole models through the device of the CUDA driver, on a driver of our own (``fake_driver.c``) that calls the kernels of the shim: its
streams are late, every call needs a current context, and what is freed is overwritten. What the runtime forgets to wait for is wrong here.
"""

from __future__ import annotations

import ctypes
import gc
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import tcompile
from tcompile.errors import ExecutionError, InputError, OutOfMemory
from tcompile.ir import dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.interpret import interpret
from tcompile.runtime import cuda_devices, cuda_pycuda
from tcompile.runtime.cuda_arrays import DeviceArray
from tcompile.runtime.cuda_driver import Driver
from tests.cuda.compiled import shim_artifact
from tests.cuda.shim_build import ShimModule
from tests.cuda.test_cuda_driver import library, pycuda  # noqa: F401  fixtures
from tests.cuda.test_cuda_runtime import N, _Foreign, cache_step, picked, rand, two_sums

DIGITS = Path(tcompile.__file__).with_name("demo") / "digits.onnx"


class OnShim(cuda_pycuda.PyCudaDevice):
    """The device of the driver, whose code is the CUDA C text for the shim."""

    takes_text = True

    def module(self, image):
        return super().module(str(ShimModule(image.rstrip(b"\0").decode()).path).encode() + b"\0")


class Fake:
    """What the driver of our own counts."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.library.fake_used.restype = ctypes.c_size_t

    def __getattr__(self, name):
        return ctypes.c_int.in_dll(self.library, f"fake_{name}").value

    def set(self, name, value):
        ctypes.c_int.in_dll(self.library, f"fake_{name}").value = value

    def limit(self, size):
        self.library.fake_set_limit(ctypes.c_size_t(size))

    @property
    def held(self):
        gc.collect()
        return self.library.fake_used(), self.library.fake_streams(), self.library.fake_depth()


@pytest.fixture
def fake(library, pycuda, monkeypatch):  # noqa: F811
    monkeypatch.setattr(cuda_pycuda, "Driver", lambda: Driver(str(library)))
    monkeypatch.setattr(cuda_pycuda, "PyCudaDevice", OnShim)
    cuda_devices._opened.cache_clear()
    found = Fake(library)
    found.limit(256 << 20)
    before = found.held
    yield found
    found.set("pinned", 0)
    cuda_devices._opened.cache_clear()
    assert found.held == before, "memory, streams and contexts of the driver are given back"


def opened(graph):
    return tcompile.load(shim_artifact(graph), device="cuda:0")


def placed(exe, array, stream=0):
    """An array on the executable's device; its memory is freed with it."""
    with exe.device.active():
        address = exe.device.allocate(max(array.nbytes, 1))
        exe.device.upload(address, np.ascontiguousarray(array), stream)
        if stream == 0:
            exe.device.synchronize(0)
    spec = next(spec for spec in (*exe.inputs, *exe.outputs) if spec.dtype == array.dtype)
    return DeviceArray(exe.device, address, array.shape, spec.element, _Freed(exe.device, address), stream=stream)


def own_stream(exe):
    """A stream of the caller's."""
    with exe.device.active():
        return exe.device.new_stream()


class _Freed:
    def __init__(self, device, address):
        self.device, self.address = device, address

    def __del__(self):
        self.device.free(self.address)


def sums(x, y):
    return {"p": x + y, "q": ((x + y) * y).sum(1)}


def agree(got, expected):
    for name, array in expected.items():
        found = got[name]
        np.testing.assert_allclose(found if isinstance(found, np.ndarray) else found.numpy(), array, rtol=1e-5, atol=1e-5)


def test_a_model_by_the_name_of_its_device_becomes_one_graph(fake, tmp_path):
    path = tmp_path / "digits.tcm"
    tcompile.compile_file(DIGITS, path, "cuda-sm90", device_code=False, cache=False)
    before = fake.uploads
    with tcompile.load(path, device="cuda:0") as exe:
        assert fake.uploads == before + 1  # the weights, once
        graphs = fake.graphs
        with np.load(DIGITS.with_suffix(".npz")) as data:
            images = data["images"][:3]
        first = exe.run({"images": images})
        for _ in range(4):
            again = exe.run({"images": images})
            for name, array in first.items():
                np.testing.assert_array_equal(again[name], array)
        assert fake.graphs == graphs + 1 and fake.uploads == before + 1 + 5
    assert fake.library.fake_depth() == 0


def test_new_values_reach_a_captured_graph(fake):
    with opened(two_sums()) as exe:
        for turn in range(5):
            x, y = rand(6, 7, seed=turn), rand(6, 7, seed=turn + 50)
            agree(exe.run([x, y]), sums(x, y))


def test_pinned_memory_may_change_once_the_run_has_returned(fake):
    fake.set("pinned", 1)
    with opened(two_sums()) as exe:
        stream = own_stream(exe)
        x, y = rand(6, 7), rand(6, 7, seed=1)
        expected = sums(x, y)
        got = exe.run([x, y], on_device=True, stream=stream)
        x[...] = 0
        agree(got, expected)
        del got
        exe.device.free_stream(stream)


def test_work_on_the_callers_stream_is_waited_for_by_whoever_reads_it(fake):
    with opened(two_sums()) as exe:
        mine, other = own_stream(exe), own_stream(exe)
        x, y = rand(5, 7), rand(5, 7, seed=1)
        dx, dy = placed(exe, x, mine), placed(exe, y, mine)
        started = fake.launches
        first = exe.run({"x": dx, "y": dy}, stream=mine)
        assert fake.launches == started  # late: nothing has waited
        second = exe.run({"x": first["p"], "y": dy}, stream=types.SimpleNamespace(cuda_stream=other))
        assert first["p"].stream == mine and second["p"].stream == other
        third = exe.run({"x": second["p"], "y": dy})  # on the session's own stream
        agree(third, sums(x + 2 * y, y))
        agree(second, sums(x + y, y))
        agree(first, sums(x, y))
        del first, second, third, dx, dy
        exe.device.free_stream(mine)
        exe.device.free_stream(other)


def test_memory_that_another_stream_still_reads_is_not_used_again(fake):
    with opened(two_sums()) as exe, opened(two_sums()) as reader:
        mine, other = own_stream(exe), own_stream(exe)
        x, y = rand(5, 7), rand(5, 7, seed=1)
        dx, dy = placed(exe, x), placed(exe, y)
        found = []
        for _ in range(3):
            made = exe.run({"x": dx, "y": dy}, stream=mine)
            found.append(reader.run({"x": made["p"], "y": dy}, stream=other))
            del made
            exe.run({"x": dy, "y": dy}, stream=mine)  # would write into the memory of what is gone
        for got in found:
            agree(got, sums(x + y, y))
        del found, got, dx, dy
        for stream in (mine, other):
            exe.device.free_stream(stream)


def test_an_out_array_is_read_after_the_run_that_writes_it(fake):
    with opened(two_sums()) as exe:
        mine = own_stream(exe)
        x, y = rand(5, 7), rand(5, 7, seed=1)
        dx, dy, target = placed(exe, x), placed(exe, y), placed(exe, np.zeros((5, 7), np.float32))
        got = exe.run({"x": dx, "y": dy}, ["p"], out={"p": target}, stream=mine)
        assert got["p"] is target
        np.testing.assert_allclose(target.numpy(), x + y)
        del dx, dy, target, got
        exe.device.free_stream(mine)


def test_other_libraries_read_and_are_read_without_copies(fake):
    with opened(two_sums()) as exe:
        x, y = rand(5, 7), rand(5, 7, seed=1)
        dx, dy = placed(exe, x), placed(exe, y)
        plain = types.SimpleNamespace(__cuda_array_interface__=dy.__cuda_array_interface__)
        uploads, downloads = fake.uploads, fake.downloads
        got = exe.run({"x": _Foreign(dx), "y": plain})
        assert (fake.uploads, fake.downloads) == (uploads, downloads)
        taken = exe.run({"x": _Foreign(got["p"]), "y": dy})
        agree(taken, sums(x + y, y))
        assert got["p"].__cuda_array_interface__["data"][0] == got["p"].address
        del dx, dy, plain, got, taken


def test_threads_need_no_context_and_keep_theirs(fake):
    with opened(two_sums()) as exe:

        def work(seed):
            x, y = rand(seed % 5 + 1, 7, seed=seed), rand(seed % 5 + 1, 7, seed=seed + 100)
            got = exe.run([x, y], on_device=bool(seed % 2))
            assert fake.library.fake_depth() == 0
            return got, sums(x, y)

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(work, range(40)))
        for got, expected in results:
            agree(got, expected)
        assert exe.memory().sessions <= 4
        del results, got, expected


def test_a_model_that_is_dropped_gives_everything_back(fake):
    exe = opened(cache_step())
    exe.run({"past": rand(2, 3, 4, 4), "new": rand(2, 3, 1, 4)})
    del exe


def test_a_model_that_is_closed_during_a_run_ends_it_first(fake):
    exe = opened(two_sums())
    with exe._session():
        exe.close()
    with pytest.raises(tcompile.Error, match="is closed"):
        exe.run([rand(2, 7), rand(2, 7)])


def test_out_of_memory_is_told_and_smaller_runs_go_on(fake):
    with opened(two_sums()) as exe:
        exe.run([rand(2, 7), rand(2, 7)])
        fake.limit(fake.held[0] + 2048)
        with pytest.raises(OutOfMemory, match=r"bytes are wanted, \d+ of \d+ are free"):
            exe.run([rand(100, 7), rand(100, 7)])
        x, y = rand(2, 7), rand(2, 7)
        agree(exe.run([x, y]), sums(x, y))
    fake.limit(64)
    with pytest.raises(OutOfMemory):
        tcompile.compile(DIGITS, device=OnShim(0), device_code=False, cache=False)


def test_checks_on_the_device_stop_a_run(fake):
    with opened(picked()) as exe:
        x = rand(5)
        for _ in range(3):
            np.testing.assert_array_equal(exe.run([x, np.array([4, 1, 0])])["z"], x[[4, 1, 0]])
            with pytest.raises(ExecutionError, match="index out of range in kernel"):
                exe.run([x, np.array([4, 5, 0])])


def test_sizes_that_kernels_decide_come_to_the_host(fake):
    b = Builder("nonzero")
    b.symbols["n"] = Range(0, None)
    mask = b.input("mask", dtypes.BOOL, (N,))
    indices, count = b.emit_all("compact", (mask,))
    found = b.slice(indices, [0], [b.bind_dim(count, "k", 0, N)])
    graph = b.graph([b.map("add", found, found)], ["twice"])
    with opened(graph) as exe:
        for n in (0, 1, 9, 200, 3):
            inputs = {"mask": rand(n, seed=n) > 0}
            np.testing.assert_array_equal(exe.run(inputs)["twice"], interpret(graph, inputs)["twice"])


def test_profiles_wait_for_their_events(fake):
    with opened(two_sums()) as exe:
        x, y = rand(5, 7), rand(5, 7)
        assert exe.profile([x, y], runs=2).seconds > 0
        dx, dy = placed(exe, x), placed(exe, y)
        assert exe.seconds({"x": dx, "y": dy}, runs=3) > 0
        with pytest.raises(InputError, match="expected a CUDA stream"):
            exe.run([x, y], stream="fast")
        del dx, dy
