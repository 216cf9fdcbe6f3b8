"""Blocks of device memory: one that grows as runs need it, and arrays for results, which are kept for the next run."""

from __future__ import annotations

import heapq
import weakref

import numpy as np

from tcompile.runtime.cuda_arrays import DeviceArray
from tcompile.runtime.cuda_device import Device, Stream
from tcompile.runtime.dtypes import Element

_KEPT = 8  # free blocks of one size


class Block:
    """Memory of one owner. ``address`` changes when it grows. ``allocations`` counts how often it did."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.address = self.size = self.allocations = 0
        self._finalizer: weakref.finalize | None = None

    def hold(self, size: int, stream: Stream, keep: int = 0) -> int:
        """The address of at least ``size`` bytes, the first ``keep`` as they were. One that grows again grows by half."""
        if size <= self.size and self.address:
            return self.address
        wanted = max(size, self.size * 3 // 2 if self.allocations else 0, 1)
        fresh = self._device.allocate(wanted)
        if keep and self.address:
            self._device.copy(fresh, self.address, min(keep, self.size), stream)
        self.free(stream)
        self.address, self.size, self.allocations = fresh, wanted, self.allocations + 1
        self._finalizer = weakref.finalize(self, self._device.free, fresh)
        self._finalizer.atexit = False
        return fresh

    def free(self, stream: Stream) -> None:
        """Gives the memory back once the stream's work is done."""
        if self._finalizer is not None:
            self._device.synchronize(stream)
            self._finalizer()
        self.address, self.size, self._finalizer = 0, 0, None


class _Owned:
    """What keeps a result's memory."""


class Results:
    """Arrays that runs give to the caller. The memory of those that are gone is used again, unless others may still read it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._free: dict[int, list[int]] = {}
        weakref.finalize(self, _free_all, device, self._free).atexit = False

    def array(self, shape: tuple[int, ...], element: Element, stream: Stream, strides: tuple[int, ...] | None, size: int) -> DeviceArray:
        """An array on ``size`` bytes of its own."""
        size = max(-(-size // 256) * 256, 256)
        kept = self._free.get(size)
        # the lowest first: a run that follows one like it finds the same addresses, and so its captured graph
        address = heapq.heappop(kept) if kept else self._device.allocate(size)
        owner = _Owned()
        found = _Result(self._device, address, shape, element, owner, strides=strides, stream=stream)
        weakref.finalize(owner, _give_back, self._device, self._free, address, size, found.seen).atexit = False
        return found

    def drop(self) -> None:
        """Frees what is kept."""
        _free_all(self._device, self._free)


class _Result(DeviceArray):
    """An array that knows whether another library, or a view, has its address: such memory is not used again but freed."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.seen: list[bool] = []

    def __dlpack__(self, *, stream: int | None = None, **options: object) -> object:
        self.seen.append(True)
        return super().__dlpack__(stream=stream, **options)

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        self.seen.append(True)
        return super().__cuda_array_interface__

    def lend(self) -> None:
        self.seen.append(True)

    def _view(self, *args: object) -> DeviceArray:
        self.seen.append(True)
        return super()._view(*args)


def _give_back(device: Device, free: dict[int, list[int]], address: int, size: int, seen: list[bool]) -> None:
    kept = free.setdefault(size, [])
    if seen or len(kept) >= _KEPT:
        device.free(address)
    else:
        heapq.heappush(kept, address)


def _free_all(device: Device, free: dict[int, list[int]]) -> None:
    for addresses in free.values():
        while addresses:
            device.free(addresses.pop())


def words(device: Device, address: int, count: int, stream: Stream) -> np.ndarray:
    """32-bit status words from the device, after the stream's work."""
    found = np.empty(count, np.int32)
    device.download(found, address, stream)
    return found
