"""Convolutions, pools, normalisations and resizing against ONNX Runtime."""

import itertools

import numpy as np
import pytest

from tests.onnx_import.peer import Single, check

onnxruntime = pytest.importorskip("onnxruntime")
FREE = pytest.mark.parametrize("free", [{}, {0: (0, 2, 3)}], ids=["static", "symbolic"])


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


X = normal(2, 6, 13, 11)
AUTO = list(itertools.product(("SAME_UPPER", "SAME_LOWER", "VALID"), ((1, 1), (2, 3))))
CONVOLUTIONS = [{"auto_pad": pad, "strides": strides} for pad, strides in AUTO]
CONVOLUTIONS += [{"dilations": (2, 2), "pads": (1, 2, 3, 0), "strides": (2, 1)}, {"pads": (0, 1, 1, 0)}]


@FREE
@pytest.mark.parametrize("attrs", CONVOLUTIONS, ids=str)
def test_conv(attrs, free):
    check(Single("Conv", [X, normal(8, 3, 3, 4), normal(8)], {**attrs, "group": 2}, constants=(1, 2), free=free))


TRANSPOSED = [{"auto_pad": pad, "strides": strides} for pad, strides in AUTO]
TRANSPOSED += [
    {"dilations": (2, 1), "pads": (1, 2, 0, 1), "strides": (2, 3), "output_padding": (1, 2)},
    {"pads": (3, 3, 3, 3), "strides": (2, 2)},
]


@FREE
@pytest.mark.parametrize("attrs", TRANSPOSED, ids=str)
def test_conv_transpose(attrs, free):
    check(Single("ConvTranspose", [X, normal(6, 4, 3, 4), normal(8)], {**attrs, "group": 2}, constants=(1, 2), free=free))


WINDOWS = [{"auto_pad": pad, "strides": strides, "kernel_shape": (3, 2)} for pad, strides in AUTO]
WINDOWS += [{"ceil_mode": ceil, "kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 0, 1, 1)} for ceil in (0, 1)]


@FREE
@pytest.mark.parametrize("attrs", WINDOWS, ids=str)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pool(op, attrs, free):
    check(Single(op, [X], attrs, opset=19, free=free))


@FREE
@pytest.mark.parametrize("ceil", [0, 1])
def test_average_of_pads_too(ceil, free):
    attrs = {"ceil_mode": ceil, "count_include_pad": 1, "kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 0, 1, 1)}
    check(Single("AveragePool", [X], attrs, opset=19, free=free))


@FREE
@pytest.mark.parametrize("attrs", [{"ceil_mode": 1, "pads": (1, 0, 1, 1)}, {"storage_order": 1}, {"pads": (1, 1, 0, 0)}], ids=str)
def test_max_pool_indices(attrs, free):
    check(Single("MaxPool", [X], {"kernel_shape": (3, 2), "strides": (2, 2), **attrs}, outputs=2, opset=12, free=free))


@FREE
@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_global_pool(op, free):
    check(Single(op, [X], free=free))


@FREE
@pytest.mark.parametrize("opset", [7, 9, 15])
def test_batch_normalization(opset, free):
    operands = [X, normal(6), normal(6), normal(6), abs(normal(6))]
    check(Single("BatchNormalization", operands, constants=(1, 2, 3, 4), opset=opset, free=free))


@FREE
def test_instance_normalization(free):
    check(Single("InstanceNormalization", [X, normal(6), normal(6)], constants=(1, 2), free=free))


@FREE
@pytest.mark.parametrize("size", [3, 5])
def test_lrn(size, free):
    check(Single("LRN", [X], {"size": size, "alpha": 0.3, "beta": 0.6, "bias": 1.5}, free=free))


COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")
MODES = ("nearest", "linear", "cubic")


@FREE
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", MODES)
def test_resize_by_scales(mode, coordinates, free):
    scales = np.array((1, 1, 2, 2) if coordinates == "align_corners" else (1, 1, 0.6, 1.7), np.float32)
    check(Single("Resize", [X, None, scales], {"mode": mode, "coordinate_transformation_mode": coordinates}, (2,), opset=19, free=free))


@pytest.mark.parametrize("free", [{}, {0: (2, 3)}], ids=["static", "symbolic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", MODES)
def test_resize_to_sizes(mode, coordinates, free):
    attrs = {"mode": mode, "coordinate_transformation_mode": coordinates}
    check(Single("Resize", [X, None, None, np.array((2, 6, 7, 20))], attrs, (3,), opset=19, free=free))


@FREE
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_resize_rounding(rounding, free):
    check(Single("Resize", [X, None, np.array((1, 1, 0.7, 1.5), np.float32)], {"nearest_mode": rounding}, (2,), opset=13, free=free))


@pytest.mark.parametrize("free", [{}, {0: (2, 3)}], ids=["static", "symbolic"])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_antialias(mode, free):
    check(Single("Resize", [X, None, None, np.array((2, 6, 5, 6))], {"mode": mode, "antialias": 1}, (3,), opset=18, free=free))


@pytest.mark.parametrize("free", [{}, {0: (2, 3)}], ids=["static", "symbolic"])
def test_resize_crop(free):
    roi = np.array([0, 0, 0.2, 0.1, 1, 1, 0.8, 1.2], np.float32)
    attrs = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0}
    check(Single("Resize", [X, roi, None, np.array((2, 6, 5, 6))], attrs, (1, 3), opset=13, free=free))


@FREE
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("op", "opset", "scales"), [("Upsample", 9, (1, 1, 2, 3)), ("Resize", 10, (1, 1, 0.5, 3))])
def test_old_resizes(op, opset, scales, mode, free):
    check(Single(op, [X, np.array(scales, np.float32)], {"mode": mode}, (1,), opset=opset, free=free))


GRIDS = list(itertools.product(MODES, ("zeros", "border", "reflection"), (0, 1)))


@pytest.mark.parametrize("free", [{}, {0: (0, 1, 2, 3), 1: (1, 2)}], ids=["static", "symbolic"])
@pytest.mark.parametrize(("mode", "padding", "aligned"), GRIDS)
def test_grid_sample(mode, padding, aligned, free):
    grid = np.random.default_rng(1).uniform(-1.4, 1.4, (2, 5, 6, 2)).astype(np.float32)
    attrs = {"mode": mode, "padding_mode": padding, "align_corners": aligned}
    check(Single("GridSample", [normal(2, 3, 7, 8), grid], attrs, opset=20, free=free))


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("coordinates", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align(mode, coordinates, ratio):
    corners = np.sort(np.random.default_rng(2).random((5, 2, 2)).astype(np.float32) * 20, 1).reshape(5, 4)
    attrs = {"mode": mode, "coordinate_transformation_mode": coordinates, "sampling_ratio": ratio, "spatial_scale": 0.7}
    attrs |= {"output_height": 3, "output_width": 2}
    check(Single("RoiAlign", [normal(2, 3, 16, 16), corners, np.array([0, 1, 1, 0, 1])], attrs, free={0: (2, 3), 1: (0,), 2: (0,)}))
