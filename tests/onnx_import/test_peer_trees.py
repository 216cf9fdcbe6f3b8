"""Tree ensembles against ONNX Runtime: every mode, missing values on either side, limits as thresholds and samples."""

import numpy as np
import pytest
from onnx import numpy_helper

from tests.onnx_import.peer import Single, check

pytest.importorskip("onnxruntime")
MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT")
EQUALITIES = ("BRANCH_EQ", "BRANCH_NEQ")
FREE = pytest.mark.parametrize("free", [{}, {0: (0,)}], ids=["static", "symbolic"])
POINTS = np.array([0.0, -0.0, 0.5, -0.5, 1.0, 2.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e-45, -1e-45])


def samples(rng, dtype, rows, features):
    drawn = rng.choice(POINTS, (rows, features)).astype(dtype)
    return np.where(rng.random(drawn.shape) < 0.3, rng.standard_normal(drawn.shape).astype(dtype), drawn)


def forest(rng, dtype, *, trees, leaves, features, modes, prefix="target", targets=1):
    """Attributes of random trees of up to ``leaves`` leaves; each leaf has a weight for one or two targets."""
    nodes, weights = [], []
    for tree in range(trees):
        count = [0]

        def grow(size, tree=tree, count=count):
            number = count[0]
            count[0] += 1
            row = len(nodes)
            nodes.append(None)
            if size == 1:
                nodes[row] = (tree, number, 0, "LEAF", 0.0, 0, 0, 0)
                named = rng.choice(targets, min(targets, int(rng.integers(1, 3))), replace=False)
                weights.extend((tree, number, int(target), rng.standard_normal()) for target in named)
                return number
            left = int(rng.integers(1, size))
            true, false = grow(left), grow(size - left)
            value = samples(rng, dtype, 1, 1).item()
            value = 0.25 if np.isnan(value) else value
            nodes[row] = (tree, number, int(rng.integers(features)), str(rng.choice(modes)), value, true, false, int(rng.integers(2)))
            return number

        grow(int(rng.integers(1, leaves + 1)))
    names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids", "missing_value_tracks_true")
    attrs = {f"nodes_{name}": list(column) for name, column in zip(names, zip(*nodes, strict=True), strict=True)}
    attrs |= {
        f"{prefix}_{name}": list(c) for name, c in zip(("treeids", "nodeids", "ids", "weights"), zip(*weights, strict=True), strict=True)
    }
    return attrs


@FREE
@pytest.mark.parametrize("how", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("leaves", [2, 9, 32, 50, 90])
def test_regressor(free, how, leaves):
    rng = np.random.default_rng(leaves)
    for targets, modes in ((1, MODES[:1]), (1, MODES), (3, MODES), (2, MODES + EQUALITIES)):
        attrs = forest(rng, np.float32, trees=5, leaves=leaves, features=4, modes=modes, targets=targets)
        x = samples(rng, np.float32, 33, 4)
        attrs |= {"n_targets": targets, "aggregate_function": how}
        check(Single("TreeEnsembleRegressor", [x], attrs, domain="ai.onnx.ml", free=free))


@pytest.mark.parametrize("mode", MODES + EQUALITIES)
def test_each_mode_alone(mode):
    rng = np.random.default_rng(3)
    attrs = forest(rng, np.float32, trees=4, leaves=8, features=3, modes=[mode])
    check(Single("TreeEnsembleRegressor", [samples(rng, np.float32, 40, 3)], attrs | {"n_targets": 1}, domain="ai.onnx.ml"))


@pytest.mark.parametrize("tensors", [False, True])
def test_double(tensors):
    rng = np.random.default_rng(5)
    attrs = forest(rng, np.float32, trees=3, leaves=12, features=3, modes=MODES) | {"n_targets": 1}
    if tensors:
        for name in ("nodes_values", "target_weights"):
            attrs[f"{name}_as_tensor"] = numpy_helper.from_array(np.array(attrs.pop(name), np.float64))
    x = samples(rng, np.float64, 40, 3)
    check(Single("TreeEnsembleRegressor", [x], attrs, domain="ai.onnx.ml"))


@FREE
@pytest.mark.parametrize("classes", [3, 5])
def test_classifier(free, classes):
    rng = np.random.default_rng(classes)
    attrs = forest(rng, np.float32, trees=7, leaves=20, features=5, modes=MODES, prefix="class", targets=classes)
    attrs["classlabels_int64s"] = list(range(10, 10 + classes))
    x = samples(rng, np.float32, 21, 5)
    check(Single("TreeEnsembleClassifier", [x], attrs, domain="ai.onnx.ml", outputs=2, free=free))
