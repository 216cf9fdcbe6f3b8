"""The device of the CUDA driver against a driver of our own that works on host memory (``fake_driver.c``): what reaches it, and what
its errors become. A PyCUDA of our own opens the device.
"""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from tcompile.errors import ArtifactError, Error, ExecutionError, OutOfMemory
from tcompile.runtime import cuda_devices, cuda_pycuda
from tcompile.runtime.cuda_driver import Driver

SOURCE = Path(__file__).with_name("fake_driver.c")


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    subprocess.run([compiler, "-std=gnu11", "-O1", "-shared", "-fPIC", "-o", str(path), str(SOURCE), "-ldl", "-lpthread"], check=True)
    return path


@pytest.fixture
def pycuda(monkeypatch):
    """A PyCUDA with one device."""
    made = types.ModuleType("pycuda.driver")
    made.Error = type("Error", (Exception,), {})
    made.init = lambda: None
    context = types.SimpleNamespace(handle=0x1234)

    class Device:
        def __init__(self, number):
            assert number == 0

        count = staticmethod(lambda: 1)
        name = staticmethod(lambda: "a device")
        compute_capability = staticmethod(lambda: (9, 0))
        retain_primary_context = staticmethod(lambda: context)

    made.Device = Device
    package = types.ModuleType("pycuda")
    package.driver = made
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", made)
    return made


@pytest.fixture
def device(library, pycuda, monkeypatch):
    monkeypatch.setattr(cuda_pycuda, "Driver", lambda: Driver(str(library)))
    found = cuda_pycuda.PyCudaDevice(0)
    with found.active():
        yield found


def test_memory_goes_there_and_back(device, library):
    fake = ctypes.CDLL(str(library))
    fake.fake_used.restype = ctypes.c_size_t
    before = fake.fake_used()
    a, b = device.allocate(1000), device.allocate(1000)
    data = np.arange(250, dtype=np.float32)
    device.upload(a, data, 0)
    device.copy(b, a, 1000, 0)
    got = np.empty_like(data)
    device.download(got, b, 0)
    np.testing.assert_array_equal(got, data)
    device.fill(b + 4, 0xFF, 4, 0)
    device.download(got, b, 0)
    assert np.isnan(got[1]) and got[2] == 2
    device.free(a)
    device.free(b)
    assert fake.fake_used() == before


def test_launches_and_graphs(device, library):
    fake = ctypes.CDLL(str(library))
    stream, address = device.new_stream(), device.allocate(64)
    function = device.module(b"text\0").function("add")
    device.fill(address, 0, 64, stream)
    device.launch(function, (3, 2, 1), (32, 4, 1), 64 << 10, (address, 64, -5), stream)
    assert list((ctypes.c_int * 3).in_dll(fake, "fake_last_grid")) == [3, 2, 1]
    assert list((ctypes.c_int * 3).in_dll(fake, "fake_last_block")) == [32, 4, 1]
    assert ctypes.c_int.in_dll(fake, "fake_last_shared").value == 64 << 10
    device.begin_capture(stream)
    for _ in range(2):
        device.launch(function, (1, 1, 1), (32, 1, 1), 0, (address, 8), stream)
    graph = device.end_capture(stream)
    for _ in range(3):
        graph.launch(stream)
    got = np.empty(64, np.uint8)
    device.download(got, address, stream)
    assert got.tolist() == [7] * 8 + [1] * 56
    del graph, function
    gc.collect()
    device.free(address)
    device.free_stream(stream)


def test_events_measure(device):
    begin, end = device.new_event(), device.new_event()
    device.record(begin, 0)
    device.record(end, 0)  # not waited for yet
    assert device.elapsed(begin, end) == pytest.approx(1e-3)


def test_errors_tell_what_the_driver_said(device):
    with pytest.raises(OutOfMemory, match=r"2097152 bytes are wanted, \d+ of 1048576 are free"):
        device.allocate(2 << 20)
    with pytest.raises(ArtifactError, match=r"CUDA_ERROR_INVALID_PTX(.|\n)*line 1: not PTX"):
        device.module(b"bad\0")
    with pytest.raises(ExecutionError, match="cuModuleGetFunction"):
        device.module(b"x\0").function("missing")


def test_a_device_is_found_by_name(library, pycuda, monkeypatch):
    monkeypatch.setattr(cuda_pycuda, "Driver", lambda: Driver(str(library)))
    cuda_devices._opened.cache_clear()
    assert cuda_devices.open_device("cuda:0") is cuda_devices.open_device("cuda")
    with pytest.raises(Error, match="has 1 CUDA devices"):
        cuda_devices.open_device("cuda:3")
    with pytest.raises(Error, match="no device 'gpu'"):
        cuda_devices.open_device("gpu")
    cuda_devices._opened.cache_clear()


def test_what_is_missing_is_named(monkeypatch, pycuda):
    with pytest.raises(Error, match=r"libnothing\.so cannot be used"):
        Driver("libnothing.so")
    pycuda.init = lambda: (_ for _ in ()).throw(pycuda.Error("cuInit failed: no CUDA-capable device is detected"))
    with pytest.raises(Error, match="the CUDA driver does not start: cuInit failed"):
        cuda_pycuda.PyCudaDevice(0)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "pycuda.driver")
    with pytest.raises(Error, match=r"PyCUDA(.|\n)*tcompile\[cuda\]|PyCUDA cannot be imported"):
        cuda_pycuda.PyCudaDevice(0)


def test_the_drivers_library_is_there_before_pycuda_asks_for_its_functions(monkeypatch, pycuda):
    opened = []
    monkeypatch.setattr(cuda_pycuda.ctypes, "CDLL", lambda name, mode: opened.append((name, mode)))
    cuda_pycuda._pycuda()
    assert opened == [("libcuda.so.1", ctypes.RTLD_GLOBAL)]
