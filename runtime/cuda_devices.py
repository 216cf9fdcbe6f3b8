"""Devices by name: ``cuda:0``. Each is opened once in a process."""

from __future__ import annotations

from functools import cache

from tcompile.errors import Error
from tcompile.runtime.cuda_device import Device


def open_device(device: str | Device) -> Device:
    """The device of a name ``cuda`` or ``cuda:N``, or the given one. Raises Error saying what is missing where it cannot be opened."""
    if not isinstance(device, str):
        return device
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdigit():
        raise Error(f"there is no device {device!r}", hint="cuda:0, cuda:1, ...")
    return _opened(int(number or 0))


@cache
def _opened(number: int) -> Device:
    from tcompile.runtime.cuda_pycuda import PyCudaDevice

    return PyCudaDevice(number)
