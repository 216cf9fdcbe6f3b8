"""Running a model: what it takes, what it gives, and who owns the memory."""

import gc
import subprocess
import sys
import types
import weakref

import numpy as np
import pytest

from tcompile import runtime
from tcompile.codegen.artifact import Build, write_artifact
from tcompile.errors import Error, ExecutionError, InputError
from tcompile.ir import dtypes
from tcompile.ir.program import Buffer, Program, Role
from tcompile.runtime.dtypes import element, tagged
from tests.runtime import native_models as models
from tests.runtime.native_models import TARGET, WEIGHT


@pytest.fixture(scope="module")
def adder():
    return runtime.load(models.add_artifact(), threads=1)


def _pair(n, seed=0):
    return list(np.random.default_rng(seed).standard_normal((2, n, 3), dtype=np.float32))


def _sum(x, y):
    return x + y + WEIGHT


def test_inputs_by_name_and_in_order(adder):
    x, y = _pair(5)
    for inputs in ({"x": x, "y": y}, {"y": y, "x": x}, [x, y], (x, y)):
        assert np.array_equal(adder.run(inputs)["sum"], _sum(x, y))


def test_the_signature_is_told(adder):
    assert [str(spec) for spec in (*adder.inputs, *adder.outputs)] == ["x: f32[n, 3]", "y: f32[n, 3]", "sum: f32[n, 3]"]
    assert adder.inputs[0].ranges == {"n": (1, models.ADD_LIMIT)}
    assert adder.inputs[0].dtype == np.float32
    assert adder.notes == {"made": "by hand"}
    assert adder.calls[0].nodes == ("node_add", "node_bias")
    assert adder.output_shapes({"x": (7, 3), "y": (7, 3)}) == {"sum": (7, 3)}
    report = adder.report()
    assert (report["target"], report["symbols"], report["growing"]) == ("test", {"n": [1, models.ADD_LIMIT]}, [])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (lambda x, y: {"x": x}, "input 'y' is missing"),
        (lambda x, y: {"x": x, "z": y}, "input 'y' is missing"),
        (lambda x, y: {"x": x, "y": y, "yy": y}, "no input 'yy'\n  hint: did you mean 'y'"),
        (lambda x, y: [x], "inputs are 1, expected 2"),
        (lambda x, y: x, "inputs are a ndarray, expected 2"),
        (lambda x, y: [x, y.astype(np.float64)], "input 'y' has element type float64, expected float32\n  hint: convert it: x.astype"),
        (lambda x, y: [x, y.astype(">f4")], "input 'y' has element type >f4, expected float32"),
        (lambda x, y: [x, y[0]], "input 'y' has shape (3,), expected 2 dimensions: [n, 3]"),
        (lambda x, y: [x, y[:, :2]], "input 'y' has extent 2 on axis 1, expected 3"),
        (lambda x, y: [x, y[:4]], "input 'y' has extent 4 on axis 0, expected n = 5 as in input 'x'"),
        (lambda x, y: [x[:0], y[:0]], "input 'x' has extent 0 on axis 0, where n in 1..100000 is expected"),
        (lambda x, y: [np.zeros((100001, 3), np.float32)] * 2, "input 'x' has extent 100001 on axis 0, where n in 1..100000"),
        (lambda x, y: [x, y.tolist()], "input 'y' is a list, expected an array of float32"),
        (lambda x, y: [x, None], "input 'y' is a NoneType, expected an array of float32"),
    ],
)
def test_wrong_inputs_are_refused_by_name(adder, inputs, message):
    """Nothing is cast or broadcast; the next run is not harmed."""
    x, y = _pair(5)
    with pytest.raises(InputError) as error:
        adder.run(inputs(x, y))
    assert message in str(error.value)
    assert np.array_equal(adder.run([x, y])["sum"], _sum(x, y))


def _misaligned(array):
    raw = np.empty(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


@pytest.mark.parametrize(
    "form",
    [
        lambda a: a[::-1],
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: np.broadcast_to(a[:1], a.shape),
        _misaligned,
        lambda a: a.view(type("Sub", (np.ndarray,), {})),
    ],
)
def test_arrays_of_any_layout(adder, form):
    x, y = _pair(6)
    assert np.array_equal(adder.run([form(x), y])["sum"], _sum(form(x), y))


def test_read_only_inputs(adder):
    x, y = _pair(6)
    x.flags.writeable = False
    assert np.array_equal(adder.run([x, y])["sum"], _sum(x, y))


def test_dlpack_inputs(adder):
    """Arrays of other libraries come without a copy through their ``__dlpack__``."""

    class Foreign:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    class Elsewhere(Foreign):
        def __dlpack__(self, **options):
            raise BufferError("on another device")

    x, y = _pair(3)
    result = adder.run([Foreign(x), Foreign(y)])["sum"]
    assert np.array_equal(result, _sum(x, y))
    assert np.array_equal(np.from_dlpack(result), result)
    with pytest.raises(InputError, match="input 'y' cannot be read through DLPack: on another device"):
        adder.run([x, Elsewhere(y)])


def test_outputs_belong_to_the_caller(adder):
    """A later run, or the end of the executable, leaves an output as it was."""
    x, y = _pair(4)
    first = adder.run([x, y])["sum"]
    kept = first.copy()
    adder.run([y * 2, y])
    assert np.array_equal(first, kept)
    with runtime.load(models.positive_artifact()) as exe:
        grown = exe.run([np.array([3, -1, 4])])["kept"]
        exe.run([np.array([9, 9, 9])])
    gc.collect()
    assert grown.tolist() == [3, 4]


def test_shapes_change_from_run_to_run(adder):
    for n in (1, 100, 3, 100000, 2, 100):
        x, y = _pair(n)
        assert np.array_equal(adder.run([x, y])["sum"], _sum(x, y))


def test_out_is_written_in_place(adder):
    x, y = _pair(4)
    out = np.empty((4, 3), np.float32)
    result = adder.run([x, y], out={"sum": out})
    assert result["sum"] is out
    assert np.array_equal(out, _sum(x, y))


def test_out_may_overlap_an_input(adder):
    """As if the output had been made apart and copied."""
    memory = np.arange(18, dtype=np.float32).reshape(6, 3)
    expected = _sum(memory[:5], memory[:5])
    result = adder.run([memory[:5], memory[:5]], out={"sum": memory[1:]})["sum"]
    assert np.array_equal(result, expected)
    assert np.array_equal(memory[1:], expected)


def test_out_of_any_layout(adder):
    x, y = _pair(4)
    out = np.zeros((8, 3), np.float32)
    adder.run([x, y], out={"sum": out[::2]})
    assert np.array_equal(out[::2], _sum(x, y))
    assert not out[1::2].any()


@pytest.mark.parametrize("out", [np.empty((4, 3)), np.empty((4, 4), np.float32), np.empty((3, 3), np.float32), [0.0]])
def test_a_wrong_out_is_refused(adder, out):
    with pytest.raises(InputError, match=r"out\['sum'\]"):
        adder.run(_pair(4), out={"sum": out})


def test_a_read_only_out_is_refused(adder):
    out = np.empty((4, 3), np.float32)
    out.flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        adder.run(_pair(4), out={"sum": out})


def test_some_outputs_only(adder):
    x, y = _pair(4)
    assert adder.run([x, y], ["sum"]).keys() == {"sum"}
    assert adder.run([x, y], []) == {}
    with pytest.raises(InputError, match="no output 'som'\n  hint: did you mean 'sum'"):
        adder.run([x, y], ["som"])
    with pytest.raises(InputError, match="no out array 'other'"):
        adder.run([x, y], out={"other": x})


def test_a_growing_output():
    """Its shape is known after the run; with ``out`` it must have that shape."""
    exe = runtime.load(models.positive_artifact())
    assert exe.outputs[0].growing
    assert exe.report()["growing"] == [{"name": "kept", "nodes": ["node_nonzero"]}]
    assert exe.output_shapes({"x": (9,)}) == {"kept": (-1,)}
    rng = np.random.default_rng(3)
    for n in (0, 1, 10, 1500, 3):
        x = rng.integers(-5, 5, n)
        assert np.array_equal(exe.run([x])["kept"], x[x > 0])
    out = np.empty(2, np.int64)
    assert exe.run([np.array([0, 7, 8])], out={"kept": out})["kept"] is out
    assert out.tolist() == [7, 8]
    with pytest.raises(InputError, match=r"out\['kept'\] is int64 of shape \(2,\), the output is int64 of shape \(3,\)"):
        exe.run([np.array([1, 7, 8])], out={"kept": out})
    assert exe.run([np.array([1])], []) == {}


def test_a_requirement_that_fails_names_its_node():
    exe = runtime.load(models.positive_artifact())
    with pytest.raises(ExecutionError, match=r"out of its declared range: m in 0\.\.1000 \(value 1001\), of node node_nonzero"):
        exe.run([np.ones(1001, np.int64)])
    assert exe.run([np.array([5])])["kept"].tolist() == [5]


def test_a_kernel_that_fails_names_its_nodes():
    exe = runtime.load(models.failing_artifact())
    with pytest.raises(ExecutionError, match="index out of range in kernel gather, of node node_gather, node_relu"):
        exe.run([np.float32(1)])


def test_a_steady_run_allocates_nothing():
    """Memory grows with the largest shapes so far and is used again below them."""
    exe = runtime.load(models.add_artifact(), threads=2)
    exe.run(_pair(1000))
    after_first = exe.memory()
    for n in (1000, 1, 999, 1000):
        exe.run(_pair(n))
        exe.run(_pair(n), [])
    spare_made = exe.memory()
    assert spare_made.allocations == after_first.allocations + 1  # the output that nobody asked for
    exe.run(_pair(5), [])
    assert exe.memory() == spare_made
    assert after_first.arena == 12000
    exe.run(_pair(1001))
    grown = exe.memory()
    assert grown.arena == 18000  # by half: few growths on the way to any size
    assert grown.peak >= 18000


def test_a_profile_names_calls_and_nodes():
    with runtime.load(models.add_artifact(), threads=1) as exe:
        profile = exe.profile(_pair(500), runs=3)
        (call,) = profile.calls
        assert (call.kernel, call.nodes, call.turns, call.flops) == ("add", ("node_add", "node_bias"), 1, 3000)
        assert 0 < call.seconds < profile.seconds
        again = exe.profile(_pair(500), runs=5)
        assert again.calls[0].turns == 1


def test_a_closed_model_is_refused_and_frees_its_memory():
    exe = runtime.load(models.add_artifact())
    exe.run(_pair(4))
    module = weakref.ref(exe._module)
    exe.close()
    exe.close()
    gc.collect()
    assert module() is None
    with pytest.raises(Error, match="the model adder is closed"):
        exe.run(_pair(4))


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=str)
def test_every_element_type_has_its_array_type(dtype):
    """The runtime's table agrees with the compiler's, and inputs and outputs of the type come and go."""
    assert element(dtype.onnx).name == dtype.name
    assert element(dtype.onnx).numpy == dtype.numpy
    x, y = Buffer("x", dtype, (2,), Role.INPUT), Buffer("y", dtype, (), Role.OUTPUT)
    program = Program("p", (x,), (y,), ("y",), (), {}, ())
    exe = runtime.load(write_artifact(program, Build(models.image(models.NOTHING)), TARGET))
    assert exe.run([np.zeros(2, dtype.numpy)])["y"].dtype == dtype.numpy
    wrong = np.zeros(2, np.uint16 if dtype.numpy.itemsize == 1 else np.uint8)
    with pytest.raises(InputError, match="element type"):
        exe.run([wrong])


def test_without_ml_dtypes_bits_come_tagged(tmp_path):
    """bf16 in and out as raw bits, in a process that cannot import ml_dtypes."""
    x, y = Buffer("x", dtypes.BF16, (2,), Role.INPUT), Buffer("y", dtypes.BF16, (3,), Role.OUTPUT)
    program = Program("p", (x,), (y,), ("y",), (), {}, ())
    (tmp_path / "model.tcm").write_bytes(write_artifact(program, Build(models.image(models.NOTHING)), TARGET))
    code = f"""
import sys
import types
sys.modules["ml_dtypes"] = None
import numpy as np
from tcompile import runtime
exe = runtime.load({str(tmp_path / "model.tcm")!r})
y = exe.run([np.zeros(2, exe.inputs[0].dtype)])["y"]
print(y.dtype.names, y.dtype.itemsize, y["bf16"].dtype, exe.inputs[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "('bf16',) 2 uint16 x: bf16[2]\n"


def test_tagged_types_are_told_from_plain_ones():
    """What arrays hold without ml_dtypes: raw bits under the type's name."""
    bf16 = tagged("bf16", np.uint16)
    array = np.array([0x3F80], np.uint16).view(bf16)
    assert array.dtype.names == ("bf16",)
    assert array["bf16"].tolist() == [0x3F80]
    assert array.dtype == bf16 and array.itemsize == 2


def test_prepared_shapes_and_others_in_turn(adder):
    """The call for prepared arrays takes those alone: other shapes, layouts and containers go the long way to the same sums."""
    for n in (4, 4, 6, 4):
        x, y = _pair(n, n)
        for a, b in ((x, y), (np.asfortranarray(x), y), (x[::-1], y), (x.view(np.memmap), y)):
            assert np.array_equal(adder.run({"x": a, "y": b})["sum"], _sum(a, b))
        assert np.array_equal(adder.run(types.MappingProxyType({"x": x, "y": y}))["sum"], _sum(x, y))
    read_only = x.copy()
    read_only.flags.writeable = False
    assert np.array_equal(adder.run({"x": read_only, "y": y})["sum"], _sum(x, y))


def test_prepared_shapes_still_check(adder):
    x, y = _pair(5)
    adder.run({"x": x, "y": y})
    with pytest.raises(InputError, match="element type float64"):
        adder.run({"x": x, "y": y.astype(np.float64)})
    with pytest.raises(InputError, match="missing"):
        adder.run({"x": x, "z": y})
    with pytest.raises(InputError):
        adder.run({"x": x, "y": y[:4]})


def test_outputs_are_new_arrays_and_inputs_are_let_go(adder):
    x, y = _pair(5)
    first = adder.run({"x": x, "y": y})["sum"]
    kept, count = first.copy(), sys.getrefcount(x)
    second = adder.run({"x": y, "y": y})["sum"]
    assert np.array_equal(first, kept) and not np.shares_memory(first, second)
    assert sys.getrefcount(x) == count and sys.getrefcount(first) == sys.getrefcount(second)
    watch = weakref.ref(second)
    del second
    assert watch() is None
