"""Convolutions with constant weights on a GPU: terms by kernel elements, all precisions, images whose borders fill tiles partly."""

from __future__ import annotations

import pytest

from tcompile.ir.build import Builder
from tcompile.ir.dims import Range, symbol
from tcompile.ir.dtypes import BF16, F16, F32, I8, I32, U8
from tests.cuda.test_cuda_templates import run, values

ONES = {"strides": (1, 1), "lhs_dilation": (1, 1), "dilation": (1, 1), "low": (1, 1), "high": (1, 1), "groups": 1}


def convolution(shape, outputs, kernel=(3, 3), x_dtype=F32, w_dtype=None, result=None, **attrs):
    b = Builder()
    attrs = ONES | attrs
    x = b.input("x", x_dtype, shape)
    w = b.constant(values(w_dtype or x_dtype, (outputs, shape[1] // attrs["groups"], *kernel)))
    z = b.emit("conv", x, w, **attrs, dtype=result or x_dtype)
    return b.graph([b.map("add", z, z)], ["z"])


CASES = {
    "borders": ((1, 32, 9, 7), 24, (3, 3), {}),
    "steps of one image line": ((2, 16, 6, 6), 40, (3, 3), {"strides": (2, 2)}),
    "groups": ((1, 64, 5, 8), 32, (3, 3), {"groups": 2}),
    "dilated": ((1, 48, 9, 9), 16, (3, 3), {"dilation": (2, 1), "low": (2, 1), "high": (2, 0)}),
    "spread image": ((1, 16, 5, 4), 9, (2, 3), {"lhs_dilation": (2, 3), "high": (0, 2)}),
    "wide kernel": ((1, 16, 4, 11), 16, (1, 7), {"low": (0, 3), "high": (0, 3)}),
    "split sums": ((1, 256, 4, 4), 16, (3, 3), {}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("precision", ["f32", "tf32", "bf16"])
def test_terms_by_kernel_elements(case, precision):
    shape, outputs, kernel, attrs = case
    tolerance = {"f32": 3e-6, "tf32": 1e-3, "bf16": 1e-2}[precision]
    run(convolution(shape, outputs, kernel, **attrs), {"x": values(F32, shape)}, tolerance, precision)


@pytest.mark.parametrize(("dtypes", "result"), [((F16, F16), F16), ((BF16, BF16), F32), ((U8, I8), I32)])
@pytest.mark.parametrize("channels", [16, 64, 80])
def test_other_types(dtypes, result, channels):
    graph = convolution((1, channels, 6, 7), 24, x_dtype=dtypes[0], w_dtype=dtypes[1], result=result)
    run(graph, {"x": values(dtypes[0], (1, channels, 6, 7))}, 2e-3 if result is F16 else 2e-6)


def test_images_of_run_time_sizes():
    b = Builder()
    b.symbols.update(n=Range(0, None), h=Range(0, None))
    x = b.input("x", F32, (symbol("n"), 16, symbol("h"), 8))
    z = b.emit("conv", x, b.constant(values(F32, (24, 16, 3, 3))), **ONES, dtype=F32)
    graph = b.graph([z], ["z"])
    for images, height in ((1, 1), (2, 9), (3, 0), (0, 5)):
        run(graph, {"x": values(F32, (images, 16, height, 8))}, 3e-6)
