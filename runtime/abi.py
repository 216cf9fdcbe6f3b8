"""``runtime/native/tcompile.h`` for ctypes: its structures, and its functions with their types."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_size_t, c_void_p

import numpy as np

from tcompile.errors import Error

OK, MEMORY, CANCELLED, INTERRUPTED, INPUT, ARTIFACT, MACHINE = 0, 5, 6, 7, 8, 9, 10
CONST = 0  # tc_extent_kind
_ROW_MAJOR, _ALIGNED = 0x1, 0x100  # NumPy's flags of an array
CLOCKS = {"wall": 1, "cpu": 2}  # tc_clock


class Extent(ctypes.Structure):
    """tc_extent."""

    _fields_ = (("text", c_char_p), ("value", c_int64), ("kind", c_int32), ("first_term", c_int32), ("term_count", c_int32))


class Symbol(ctypes.Structure):
    """tc_symbol."""

    _fields_ = (("name", c_char_p), ("lo", Extent), ("hi", Extent))


class Tensor(ctypes.Structure):
    """tc_tensor."""

    _fields_ = (
        ("name", c_char_p), ("extents", POINTER(Extent)), ("dtype", c_int32), ("rank", c_int32),
        ("element_bytes", c_int32), ("growing", c_int32), ("pitch_axis", c_int32), ("pitch_symbol", c_int32),
    )  # fmt: skip


class Site(ctypes.Structure):
    """tc_site."""

    _fields_ = (
        ("name", c_char_p), ("sources", POINTER(c_char_p)), ("source_count", c_int64),
        ("flops", Extent), ("bytes", Extent), ("cycles", Extent), ("record", c_char_p),
    )  # fmt: skip


class Weight(ctypes.Structure):
    """tc_weight."""

    _fields_ = (("name", c_char_p), ("offset", c_int64), ("bytes", c_int64), ("dtype", c_int32))


class Share(ctypes.Structure):
    """tc_share."""

    _fields_ = (("output", c_int32), ("input", c_int32))


class Note(ctypes.Structure):
    """tc_note."""

    _fields_ = (("key", c_char_p), ("value", c_char_p))


class ModuleInfo(ctypes.Structure):
    """tc_module_info."""

    _fields_ = (
        ("name", c_char_p), ("target", c_char_p), ("arch", c_char_p), ("code_sha256", c_void_p), ("weights_sha256", c_void_p),
        *((name, c_int64) for name in (
            "code_bytes", "weights_bytes", "arena_bytes", "scratch_bytes", "symbol_count", "entry_symbol_count", "input_count",
            "output_count", "call_count", "requirement_count", "weight_count", "note_count", "feature_count",
            "growing_count", "share_count",
        )),
        ("symbols", POINTER(Symbol)), ("inputs", POINTER(Tensor)), ("outputs", POINTER(Tensor)), ("calls", POINTER(Site)),
        ("requirements", POINTER(Site)), ("weights", POINTER(Weight)), ("notes", POINTER(Note)), ("features", POINTER(c_char_p)),
        ("growing", POINTER(Site)), ("shares", POINTER(Share)),
    )  # fmt: skip


class Shape(ctypes.Structure):
    """tc_shape."""

    _fields_ = (("extents", c_void_p), ("rank", c_int32), ("dtype", c_int32))


class Memory(ctypes.Structure):
    """tc_memory."""

    _fields_ = tuple(
        (name, c_int64) for name in ("arena_bytes", "scratch_bytes", "growing_bytes", "spare_bytes", "peak_bytes", "allocations")
    )


class _Hooks(ctypes.Structure):
    """tc_hooks."""

    _fields_ = (("release", c_void_p), ("acquire", c_void_p), ("check", c_void_p), ("data_offset", c_int64))


_FUNCTIONS = {
    "tc_open": (c_int32, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p, c_size_t, POINTER(c_void_p), c_char_p, c_size_t),
    "tc_close": (None, c_void_p),
    "tc_module_describe": (POINTER(ModuleInfo), c_void_p),
    "tc_pool_new": (c_void_p, c_int32),
    "tc_pool_free": (None, c_void_p),
    "tc_pool_threads": (c_int32, c_void_p),
    "tc_default_threads": (c_int32,),
    "tc_session_new": (c_void_p, c_void_p, c_void_p),
    "tc_session_free": (None, c_void_p),
    "tc_session_set_pitch": (c_int32, c_void_p, c_int32, c_int64),
    "tc_session_prepare": (c_int32, c_void_p, c_void_p),
    "tc_session_output_shapes": (c_void_p, c_void_p),
    "tc_session_run": (c_int32, c_void_p, c_void_p, c_void_p),
    "tc_session_cancel": (None, c_void_p),
    "tc_session_error": (c_char_p, c_void_p),
    "tc_session_hint": (c_char_p, c_void_p),
    "tc_session_set_hooks": (None, c_void_p, c_void_p),
    "tc_session_profile": (c_int32, c_void_p, c_int32),
    "tc_session_times": (POINTER(c_int64), c_void_p),
    "tc_session_counts": (POINTER(c_int64), c_void_p),
    "tc_session_busy": (c_int64, c_void_p, c_int64),
    "tc_session_span": (c_int64, c_void_p, c_int64),
    "tc_session_extent": (c_int64, c_void_p, POINTER(Extent)),
    "tc_session_memory": (None, c_void_p, POINTER(Memory)),
    "tc_cpu_has": (c_int32, c_char_p),
    "tc_cpu_arch": (c_char_p,),
}


def _load() -> ctypes.PyDLL:
    """The library, called with Python's lock held: a run gives it back through the hooks, and a pending exception is raised."""
    found = importlib.util.find_spec("tcompile.runtime._native")
    if found is None or found.origin is None:
        raise Error("tcompile's native library is not built", hint="install the package: pip install -e .")
    library = ctypes.PyDLL(found.origin)
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _address(function: object) -> int | None:
    return ctypes.cast(function, c_void_p).value


native = _load()


def _data_offset() -> int:
    """Where an array object holds its data's address: right after the object's header, in NumPy's C ABI since 1.0.

    -1 where that does not hold. The public ways to ask for the address take longer than a small model's run.
    """
    probes = (np.empty(3), np.empty((2, 0), np.int8), np.zeros((), np.float32), np.empty((4, 4))[1:, 2:])
    if sys.implementation.name != "cpython":
        return -1
    found = (ctypes.c_size_t.from_address(id(probe) + object.__basicsize__).value for probe in probes)
    return object.__basicsize__ if all(a == probe.ctypes.data for a, probe in zip(found, probes, strict=True)) else -1


# A run releases the interpreter's lock, and takes it now and then to let Python see signals: so Ctrl-C stops a run.
hooks = _Hooks(
    _address(ctypes.pythonapi.PyEval_SaveThread),
    _address(ctypes.pythonapi.PyEval_RestoreThread),
    _address(ctypes.pythonapi.PyErr_CheckSignals),
    _data_offset(),
)


def _runner() -> type | None:
    """What runs prepared sessions in one call (``extension/runner.c``); None where arrays are not as it takes them to be."""
    try:
        extension = importlib.import_module("tcompile.runtime._native")
    except ImportError as error:
        raise Error("tcompile's native library is of an older version", hint="install the package: pip install -e .") from error
    if hooks.data_offset < 0:
        return None
    probes = (np.empty((3, 2)), np.empty((0, 2), np.int8)[:, :1], np.zeros((), np.float32), np.empty((4, 4), np.int64)[1:, 2:])
    return extension.Runner if all(extension.describe(probe) == _head(probe) for probe in probes) else None


def _head(array: np.ndarray) -> tuple[object, ...]:
    """What ``extension.describe`` says, in NumPy's own words."""
    flags = array.flags.c_contiguous * _ROW_MAJOR | array.flags.aligned * _ALIGNED
    return array.ctypes.data, array.ndim, array.shape[0] if array.ndim else -1, array.dtype, flags


Runner = _runner()

# How an array is named to tc_session_run.
reference = id if hooks.data_offset >= 0 else lambda array: array.ctypes.data
