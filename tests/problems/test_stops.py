"""What stops a run: indices outside, dimensions outside their range, extents that do not fit. The next run is right again."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.errors import Error, ExecutionError
from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import F32, I32, I64
from tcompile.ir.interpret import interpret
from tests.problems.compiled import executable


class Stops:
    """One graph of nodes that may each stop the run; ``good`` runs, and each of ``bad`` changes it so that it stops."""

    def __init__(self) -> None:
        self.builder = Builder("stops")
        self.good: dict[str, np.ndarray] = {}
        self.bad: dict[str, tuple[dict[str, np.ndarray], str]] = {}
        self.outputs = []
        self.indices()
        self.bindings()
        self.extents()
        self.graph = self.builder.graph(self.outputs, [f"y{k}" for k in range(len(self.outputs))])

    def input(self, name: str, array: np.ndarray, shape=None):
        """An input with the value that runs."""
        dtype = {"f": F32, "i": I32 if array.dtype == np.int32 else I64}[array.dtype.kind]
        self.good[name] = array
        return self.builder.input(name, dtype, array.shape if shape is None else shape)

    def stop(self, case: str, message: str, **changed: object) -> None:
        """A change that stops the run, and what the message says."""
        self.bad[case] = ({name: np.asarray(value) for name, value in changed.items()}, message)

    def indices(self) -> None:
        b, x = self.builder, self.input("x", np.arange(15, dtype=np.float32).reshape(5, 3))
        points = self.input("points", np.array([[4, 2], [0, 0]]))
        rows, updates = self.input("rows", np.array([0, 4, 2], np.int32)), self.input("updates", np.ones(2, np.float32))
        columns = self.input("columns", np.array([[2, 0]] * 5))
        made = self.input("made", np.ones((5, 2), np.float32))
        self.outputs += [b.emit("gather", x, rows, axis=0), b.emit("gather_nd", x, points, batch=0)]
        self.outputs += [b.emit("scatter_nd", x, points, updates, combiner="add"), b.emit("gather_elements", x, columns, axis=1)]
        self.outputs.append(b.emit("scatter_elements", x, columns, made, axis=1, combiner="set"))
        for bad in (-1, 5, 2**31 - 1):
            self.stop(f"gather {bad}", "gather", rows=np.array([0, bad, 2], np.int32))
        for bad in ([[5, 0], [0, 0]], [[0, 3], [0, 0]], [[0, 0], [0, -1]], [[2**62, 0], [0, 0]]):
            self.stop(f"points {bad}", "_nd", points=np.array(bad))
        for bad in (-1, 3):
            self.stop(f"columns {bad}", "_elements", columns=np.array([[2, 0]] * 4 + [[bad, 0]]))
        embedded, factor = self.input("embedded", np.array([[[3], [0]]], np.int32)), self.input("factor", np.ones((1, 2), np.float32))
        shapes = (2,), (1, 1, 16), (1, 1, 2, 1, 16)
        table, *known = (b.constant(np.ones(shape, np.float32)) for shape in ((4, 2), *shapes))
        self.outputs.append(b.emit("conv_gathered", table, embedded, factor, factor, *known, pool="none"))
        for bad in (-1, 4):
            self.stop(f"embedded {bad}", "conv_gathered", embedded=np.array([[[2], [bad]]], np.int32))

    def bindings(self) -> None:
        b = self.builder
        free, limited = self.input("free", np.array(3)), self.input("limited", np.array(2))
        n, m = b.bind_dim(free, "free"), b.bind_dim(limited, "limited", 1, 4)
        self.outputs += [b.iota((n,)), b.iota((m, 2), 1)]
        self.stop("negative", "free", free=-1)
        self.stop("too small", "limited", limited=0)
        self.stop("too large", "limited", limited=5)
        self.window(n)

    def window(self, size) -> None:
        long = self.input("long", np.arange(6, dtype=np.float32))
        self.outputs.append(self.builder.slice(long, (0,), (size,)))
        self.stop("slice", "slice", free=7)

    def extents(self) -> None:
        b = self.builder
        n, m, k = (dims.symbol(name) for name in "nmk")
        b.symbols.update({name: Range(0, None) for name in "nmk"})
        wide = self.input("wide", np.zeros((4, 2), np.float32), (n, m))
        tall = self.input("tall", np.zeros((2, 3), np.float32), (k, 3))
        self.outputs.append(b.emit("dot_general", wide, tall, batch=((), ()), contract=((1,), (0,)), dtype=F32))
        self.outputs += [b.reshape(wide, (2 * k, 2)), b.concat([b.transpose(tall, (1, 0)), b.slice(wide, (0, 0), (3, m))], 0)]
        self.outputs.append(b.emit("broadcast", tall, shape=(m, 3), axes=(0, 1)))
        self.outputs.append(b.emit("pad", wide, b.constant(np.float32(1)), low=(n - 3, 0), high=(0, 0), mode="constant"))
        self.stop("terms", "dot_general|reshape|broadcast", tall=np.zeros((3, 3), np.float32))
        self.stop("elements", "reshape", wide=np.zeros((5, 2), np.float32))
        self.stop("few", "slice|reshape|pad", wide=np.zeros((2, 2), np.float32))


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "passes"])
def compiled(request):
    """The graph, compiled without and with the passes."""
    stops = Stops()
    return stops, executable(stops.graph, optimised=request.param)


@pytest.mark.parametrize("case", Stops().bad)
def test_a_run_stops_and_the_next_is_right(compiled, case):
    stops, exe = compiled
    expected = interpret(stops.graph, stops.good)
    change, message = stops.bad[case]
    with pytest.raises(Error):
        interpret(stops.graph, {**stops.good, **change})
    with pytest.raises(ExecutionError, match=message):
        exe.run({**stops.good, **change})
    for name, array in exe.run(stops.good).items():
        np.testing.assert_array_equal(array, expected[name])
