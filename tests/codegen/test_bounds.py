"""Checked builds: an access outside of its buffer leaves the kernel with BOUNDS, one inside does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcompile.codegen.cpu_entry_frame import CODES
from tcompile.ir.dims import maximum, symbol
from tcompile.ir.dtypes import BOOL, F32
from tcompile.ir.loops import Access, For, Index, Kernel, Load, LoopKind, Op, Param, Status, Store
from tests.codegen.kernel_runs import NATIVE, load

n, i = symbol("n"), symbol("i")
BOUNDS = CODES[Status.BOUNDS]
WIDTHS = {"scalar": 1, "lanes": 8}
TARGETS = {"native": NATIVE, "masks": replace(NATIVE, mask_bytes=(1, 2, 4, 8)), "no-masks": replace(NATIVE, mask_bytes=())}


def copied(source, target, width: int, mask=None) -> Kernel:
    """out[target] = x[source] for i in 0 .. n-1."""
    kind = LoopKind.VECTOR if width > 1 else LoopKind.SERIAL
    store = Store("out", (target,), Load("x", (source,), F32, mask), mask)
    params = Param("x", F32, (n,)), Param("out", F32, (n,), Access.OUT)
    return Kernel("copied", params, ("n",), (For("i", n, (store,), kind, width),))


def status(kernel: Kernel, size: int, target) -> int:
    """What a checked build returns; the arrays have room around what the kernel is told of."""
    x, out = np.arange(size + 32, dtype=np.float32), np.zeros(size + 32, np.float32)
    return load(kernel, target=target, bounds=True).run(kernel, [x[16:], out[16:]], [size])


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("size", (0, 1, 7, 8, 19))
def test_inside(size, width, target):
    assert status(copied(i, n - 1 - i, width), size, target) == 0


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("size", (1, 7, 8, 19))
@pytest.mark.parametrize("places", ((i + 1, i), (i, i + 1), (i - 1, i), (i, n - i), (2 * i + 1, i)), ids=str)
def test_outside(places, size, width, target):
    assert status(copied(*places, width), size, target) == BOUNDS


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_what_a_mask_turns_off_is_no_access(width, target):
    mask = Op("lt", (Index(i + 1), Index(n)), BOOL)
    assert status(copied(i + 1, i + 1, width, mask), 19, target) == 0
    assert status(copied(i + 2, maximum(i, 0), width, mask), 19, target) == BOUNDS
