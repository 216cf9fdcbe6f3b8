"""Artifacts: the same bytes each time, readable by any zip tool, and nothing damaged is run."""

import dataclasses
import hashlib
import io
import json
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from tcompile import runtime
from tcompile.codegen.artifact import WEIGHTS_ALIGN, Build, save_artifact, write_artifact
from tcompile.codegen.descriptor import Content, encode
from tcompile.codegen.link import LinkedImage
from tcompile.codegen.machine import Machine, machine
from tcompile.codegen.signature import Weight, place_weights, signature, symbol_order
from tcompile.errors import ArtifactError, Error, UnsupportedError
from tcompile.ir.dims import Range, bcast, floordiv, symbol
from tcompile.ir.dtypes import BOOL, F32, F64, I8
from tcompile.ir.program import Buffer, Call, If, Loop, Program, Require, Role
from tcompile.ir.program_text import walk
from tcompile.runtime import abi
from tests.runtime import native_models as models
from tests.runtime.native_models import TARGET, WEIGHT, add_artifact, add_image, add_program

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def _content(**changes):
    machine = Machine("test", models.ARCH)
    content = Content(machine, 0, 0, 1, bytes(32), 0, bytes(32), (), -1, -1)
    return dataclasses.replace(content, **changes)


def _program(inputs=(), outputs=(), symbols=None, entry=(), body=()):
    return Program("p", tuple(inputs), tuple(outputs), tuple(o.name for o in outputs), tuple(body), symbols or {}, tuple(entry))


def test_the_same_model_gives_the_same_bytes():
    assert add_artifact() == add_artifact()


def test_the_bytes_do_not_depend_on_the_hash_seed():
    code = "import hashlib; from tests.runtime.native_models import add_artifact; print(hashlib.sha256(add_artifact()).hexdigest())"
    for seed in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == hashlib.sha256(add_artifact()).hexdigest()


def test_a_zip_tool_reads_it():
    archive = zipfile.ZipFile(io.BytesIO(add_artifact()))
    assert archive.testzip() is None
    assert archive.namelist() == ["descriptor.bin", "code/test.bin", "manifest.json", "weights.bin"]
    assert archive.read("weights.bin") == WEIGHT.tobytes()
    assert archive.read("code/test.bin") == add_image().code


def test_the_manifest_tells_what_the_descriptor_does():
    archive = zipfile.ZipFile(io.BytesIO(add_artifact()))
    manifest = json.loads(archive.read("manifest.json"))
    assert manifest["inputs"] == [{"name": name, "dtype": "f32", "shape": ["n", 3]} for name in "xy"]
    assert manifest["symbols"] == {"n": [1, models.ADD_LIMIT]}
    assert manifest["sha256"] == {
        name: hashlib.sha256(archive.read(entry)).hexdigest()
        for name, entry in (("descriptor", "descriptor.bin"), ("code", "code/test.bin"), ("weights", "weights.bin"))
    }


@pytest.mark.parametrize("name_length", [1, 2, 3, 10, 200])
def test_the_weights_begin_where_they_can_be_mapped(name_length):
    """Whatever the length of what stands before them."""
    weights = place_weights([Buffer("w", F32, (3,), Role.WEIGHT, WEIGHT)])
    data = write_artifact(add_program(), Build(add_image(), weights), dataclasses.replace(TARGET, name="t" * name_length))
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert data.index(WEIGHT.tobytes()) % WEIGHTS_ALIGN == 0
    assert archive.read("weights.bin") == WEIGHT.tobytes()
    assert np.array_equal(runtime.load(data).run([X, X])["sum"], X + X + WEIGHT)


def test_saving_gives_the_bytes_of_writing(tmp_path):
    weights = place_weights([Buffer("w", F32, (3,), Role.WEIGHT, WEIGHT)])
    save_artifact(tmp_path / "model.tcm", add_program(), Build(add_image(), weights), TARGET)
    assert (tmp_path / "model.tcm").read_bytes() == add_artifact()
    assert [path.name for path in tmp_path.iterdir()] == ["model.tcm"]
    runtime.load(add_artifact()).save(tmp_path / "again.tcm")
    assert (tmp_path / "again.tcm").read_bytes() == add_artifact()


def test_a_failed_save_leaves_nothing(tmp_path):
    (tmp_path / "model.tcm").write_bytes(b"old")
    overlapping = [Weight("a", 0, WEIGHT), Weight("b", 4, WEIGHT)]
    with pytest.raises(Error, match="weight b overlaps"):
        save_artifact(tmp_path / "model.tcm", add_program(), Build(add_image(), overlapping), TARGET)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.tcm", b"old")]


def test_what_is_loaded_and_cannot_be_saved_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        runtime.load(add_artifact()).save(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_weights_are_aligned_and_shared():
    """Each begins at a multiple of 64; two buffers of one array share its bytes; scalars, empty and narrow arrays fit in."""
    shared = np.arange(5, dtype=np.float32)
    arrays = [(F32, shared), (I8, np.array([1, 2, 3], np.int8)), (F32, shared), (F32, np.zeros((0, 4), np.float32)), (F64, np.array(2.5))]
    buffers = [Buffer(f"w{i}", dtype, value.shape, Role.WEIGHT, value) for i, (dtype, value) in enumerate(arrays)]
    placed = place_weights(buffers)
    assert [weight.offset for weight in placed] == [0, 64, 0, 128, 128]
    data = write_artifact(add_program(), Build(add_image(), placed), TARGET)
    stored = zipfile.ZipFile(io.BytesIO(data)).read("weights.bin")
    for weight in placed:
        assert stored[weight.offset : weight.offset + weight.bytes] == weight.array.tobytes()


def test_a_strided_weight_is_stored_row_major():
    value = np.arange(12, dtype=np.float32).reshape(3, 4).T
    data = write_artifact(add_program(), Build(add_image(), [Weight("w", 0, value)]), TARGET)
    assert zipfile.ZipFile(io.BytesIO(data)).read("weights.bin") == value.tobytes()


def test_large_weights_keep_their_bytes():
    """More than one piece of the stream."""
    value = np.random.default_rng(0).integers(0, 255, 9_000_001, np.uint8)
    data = write_artifact(add_program(), Build(add_image(), [Weight("w", 64, value)]), TARGET)
    with runtime.load(data) as exe:
        exe.verify_weights()
    assert zipfile.ZipFile(io.BytesIO(data)).read("weights.bin")[64:] == value.tobytes()


def test_an_image_without_entries_is_refused():
    with pytest.raises(Error, match="no tc_prepare"):
        write_artifact(add_program(), Build(LinkedImage(models.ARCH, b"\0", {})), TARGET)


def test_a_symbol_that_no_axis_gives_is_refused():
    n = symbol("n")
    program = _program([Buffer("x", F32, (2 * n,), Role.INPUT)], symbols={"n": Range()}, entry=("n",))
    with pytest.raises(UnsupportedError, match="no input has the dimension n alone"):
        signature(program)


def test_sites_are_numbered_in_program_order():
    """Calls and requirements inside loops and branches count where they stand."""

    def call(name):
        return Call(models.kernel(name), (), (), (f"node_{name}",))

    flag = Buffer("flag", BOOL, (), Role.TEMP)
    loop = Loop("i", 3, None, (call("b"), If(flag, (call("c"), Require(1, "r1")), (call("d"),)), Require(2, "r2")))
    program = _program(body=(call("a"), Require(0, "r0"), loop, call("e")))
    signed = signature(program)
    assert [site.name for site in signed.calls] == ["a", "b", "c", "d", "e"]
    assert [site.name for site in signed.requirements] == ["r0", "r1", "r2"]
    assert len(list(walk(program.body))) == 10


def test_entry_symbols_come_first():
    program = _program(symbols={"m": Range(), "n": Range(), "k": Range()}, entry=("n",))
    assert symbol_order(program) == ("n", "m", "k")


def test_expressions_in_input_shapes_are_checked():
    """An axis that depends on symbols of other axes: C evaluates what Python wrote."""
    n, k = symbol("n"), symbol("k")
    expressions = (2 * n + floordiv(k, 3) - 1, bcast(n, k), n * n * k)
    inputs = [Buffer("x", F32, (n, k), Role.INPUT), *(Buffer(f"e{i}", F32, (e,), Role.INPUT) for i, e in enumerate(expressions))]
    program = _program(inputs, [Buffer("y", F32, (), Role.OUTPUT)], {"n": Range(1, 9), "k": Range(0, n + 1)}, ("n", "k"))
    exe = runtime.load(write_artifact(program, Build(models.image(models.NOTHING)), TARGET))
    assert exe.inputs[1].shape == (str(expressions[0]),)
    for n_value, k_value in ((4, 4), (5, 1), (1, 2), (3, 3)):
        sizes = (2 * n_value + k_value // 3 - 1, k_value if n_value == 1 else n_value, n_value * n_value * k_value)
        good = [np.zeros((n_value, k_value), np.float32), *(np.zeros(size, np.float32) for size in sizes)]
        exe.run(good)
        for wrong in range(3):
            bad = [*good]
            bad[1 + wrong] = np.zeros(sizes[wrong] + 1, np.float32)
            with pytest.raises(Error, match=f"'e{wrong}' has extent {sizes[wrong] + 1} on axis 0, expected .* = {sizes[wrong]}"):
                exe.run(bad)
    with pytest.raises(Error, match=r"axis 1, where k in 0\.\.n \+ 1 is expected"):
        exe.run([np.zeros((2, 4), np.float32), *good[1:]])


def test_names_with_zero_characters_are_refused():
    with pytest.raises(Error, match="zero character"):
        encode(signature(_program([Buffer("a\0b", F32, (), Role.INPUT)])), _content())


def test_another_machine_is_refused():
    other = "aarch64" if models.ARCH == "x86_64" else "x86_64"
    elsewhere = dataclasses.replace(TARGET, name="elsewhere", triple=f"{other}-unknown-linux-gnu")
    data = write_artifact(add_program(), Build(dataclasses.replace(add_image(), arch=other)), elsewhere)
    with pytest.raises(ArtifactError, match=f"compiled for {other} \\(target elsewhere\\)"):
        runtime.load(data)


def test_missing_cpu_features_are_named():
    data = write_artifact(add_program(), Build(add_image()), dataclasses.replace(TARGET, name="future", features=("warp-drive",)))
    with pytest.raises(ArtifactError, match="CPU feature warp-drive this runtime does not know"):
        runtime.load(data)


def test_a_levels_features_are_required():
    """The levels of x86-64 stand for their features, and a target adds its own."""
    level = dataclasses.replace(TARGET, triple="x86_64-unknown-linux-gnu", cpu="x86-64-v3", features=("avxvnni",))
    assert {"sse2", "sse4.2", "avx2", "fma", "f16c", "bmi2", "avxvnni"} <= set(machine(level).features)
    assert "avx512f" in machine(dataclasses.replace(level, cpu="x86-64-v4")).features
    with pytest.raises(UnsupportedError, match="'m68k'"):
        machine(dataclasses.replace(level, cpu="m68k"))


@pytest.mark.skipif(models.ARCH != "x86_64", reason="x86-64 feature names")
def test_the_runtime_knows_every_required_feature():
    """A feature that the runtime does not know would refuse every machine."""
    level = dataclasses.replace(TARGET, cpu="x86-64-v4", features=("avx512vnni", "avx512bf16", "avxvnni"))
    assert [name for name in machine(level).features if abi.native.tc_cpu_has(name.encode()) < 0] == []


def test_another_version_is_refused():
    descriptor = bytearray(encode(signature(add_program()), _content()))
    descriptor[8] += 1
    with pytest.raises(ArtifactError, match="format version 3, this runtime reads version 2"):
        runtime.load(_zip(bytes(descriptor[:-32]), b"\0"))


def _zip(descriptor, code, weights=b""):
    """An artifact whose descriptor's own hash is right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("descriptor.bin", descriptor + hashlib.sha256(descriptor).digest())
        archive.writestr("code/test.bin", code)
        archive.writestr("weights.bin", weights)
    return stream.getvalue()


@pytest.mark.parametrize("entry", ["descriptor.bin", "code/test.bin"])
def test_damage_is_found_at_load(entry):
    """One changed bit anywhere in the descriptor or the code."""
    data = add_artifact()
    part = zipfile.ZipFile(io.BytesIO(data)).read(entry)
    start = data.index(part)
    for position in range(start, start + len(part)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(ArtifactError):
            runtime.load(bytes(damaged))


def test_damaged_weights_are_found_by_verification():
    damaged = bytearray(add_artifact())
    damaged[damaged.index(WEIGHT.tobytes())] ^= 1
    exe = runtime.load(bytes(damaged))
    with pytest.raises(ArtifactError, match="weights is damaged"):
        exe.verify_weights()
    runtime.load(add_artifact()).verify_weights()


def test_a_damaged_zip_never_crashes():
    """Every byte that is no padding, changed: an ArtifactError at load or by verification, or a model that still is itself."""
    data = add_artifact()
    expected = X + X + WEIGHT
    for position in (i for i in range(len(data)) if data[i] or i > len(data) - 600):
        for change in (0x01, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= change
            try:
                exe = runtime.load(bytes(damaged))
                got = exe.run([X, X])["sum"]
                exe.verify_weights()
            except ArtifactError:
                continue
            assert np.array_equal(got, expected)


@pytest.mark.parametrize("size", [0, 1, 21, 22, 100, 1000, 65000])
def test_a_cut_off_artifact_is_refused(size):
    with pytest.raises(ArtifactError):
        runtime.load(add_artifact()[:size])


def test_a_descriptor_with_a_right_hash_and_wrong_contents_never_crashes():
    """Somebody's hash may be right and the contents nonsense: the C parser follows no offset that it has not checked."""
    descriptor = zipfile.ZipFile(io.BytesIO(add_artifact())).read("descriptor.bin")[:-32]
    code = add_image().code
    opened = 0
    for position in range(len(descriptor)):
        for value in (0x00, 0x7F, 0xFF, descriptor[position] ^ 1):
            try:
                changed = descriptor[:position] + bytes([value]) + descriptor[position + 1 :]
                exe = runtime.load(_zip(changed, code, WEIGHT.tobytes()))
            except ArtifactError:
                continue
            opened += 1
            assert str(exe) + str(exe.calls) + str(exe.notes)
    assert opened


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        runtime.load(tmp_path / "none.tcm")
    (tmp_path / "empty.tcm").touch()
    with pytest.raises(ArtifactError, match="is empty"):
        runtime.load(tmp_path / "empty.tcm")


@pytest.mark.parametrize("from_file", [True, False])
def test_an_executable_pickles(tmp_path, from_file):
    (tmp_path / "model.tcm").write_bytes(add_artifact())
    exe = runtime.load(tmp_path / "model.tcm" if from_file else add_artifact(), threads=2)
    again = pickle.loads(pickle.dumps(exe))
    assert again.threads == 2
    assert np.array_equal(again.run([X, X])["sum"], X + X + WEIGHT)


def test_the_runtime_needs_numpy_only():
    """What goes into applications imports neither the compiler nor its tools."""
    code = "import sys, tcompile.runtime; print([m for m in sys.modules if m.split('.')[0] in ('onnx', 'llvmlite', 'ml_dtypes')])"
    code += "; print([m for m in sys.modules if m.startswith('tcompile.') and m.split('.')[1] not in ('runtime', 'errors')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"
