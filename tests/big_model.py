"""A model of more than 2 GB, compiled and run by a process that tells its peak memory: ``python tests/big_model.py FOLDER``.

Its weights lie in a sparse file: a table that is only looked up, and a matrix that is packed.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

ROWS, WIDTH, OUT = 2_100_000, 256, 24_000
MARKED = (0, 1_234_567, ROWS - 1)
TABLE_BYTES, MATRIX_BYTES = ROWS * WIDTH * 4, WIDTH * OUT * 4


def row(number: int) -> np.ndarray:
    """What stands in a marked row of the table."""
    return np.random.default_rng(number).standard_normal(WIDTH).astype(np.float32)


def matrix() -> np.ndarray:
    """The factor behind the table."""
    return np.random.default_rng(1).standard_normal((WIDTH, OUT)).astype(np.float32)


def write_model(folder: Path) -> Path:
    """y = table[tokens] @ matrix."""
    with open(folder / "weights", "wb") as file:
        for number in MARKED:
            file.seek(number * WIDTH * 4)
            file.write(row(number).tobytes())
        file.seek(TABLE_BYTES)
        file.write(matrix().tobytes())
    tensors = []
    for name, shape, offset in (("table", (ROWS, WIDTH), 0), ("matrix", (WIDTH, OUT), TABLE_BYTES)):
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "weights"), ("offset", str(offset))):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"], "lookup"),
        helper.make_node("MatMul", ["rows", "matrix"], ["y"], "project"),
    ]
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", OUT])
    model = helper.make_model(helper.make_graph(nodes, "big", [tokens], [y], tensors), opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def peak_bytes() -> int:
    """The most memory that this process has had, files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(folder: Path) -> None:
    """Compiles and runs; prints the sizes, the peak memory and the largest error."""
    import tcompile

    path = write_model(folder)
    start = peak_bytes()
    artifact = tcompile.compile_file(path, folder / "model.tcm")
    path.with_name("weights").unlink()
    with tcompile.load(artifact, threads=1) as exe:
        got = exe.run({"tokens": np.array(MARKED)})["y"]
    expected = np.stack([row(number) for number in MARKED]) @ matrix()
    sizes = {"weights": TABLE_BYTES + MATRIX_BYTES, "artifact": os.path.getsize(artifact), "start": start, "peak": peak_bytes()}
    print(json.dumps(sizes | {"error": float(np.abs(got - expected).max())}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
