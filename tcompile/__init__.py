"""tcompile: compiles trained ONNX models into native artifacts, and runs them.

    exe = tcompile.compile("model.onnx")
    outputs = exe.run({"x": x})
    exe.save("model.tcm")
    exe = tcompile.load("model.tcm")  # needs NumPy only

Names load on first use, so that ``tcompile.load`` never imports the compiler.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from tcompile.errors import ArtifactError, Error, ExecutionError, InputError, InvalidModelError, UnsupportedError

__version__ = "0.1.0"

_here = Path(__file__).resolve().parent
if not (_here / "ir").is_dir():  # a checkout or an editable install: the other folders stand beside this one
    __path__.append(str(_here.parent))

_LAZY = {
    **dict.fromkeys(("compile", "compile_file", "check", "host_calls", "targets", "check_target"), "api"),
    "load": "runtime",
    "Executable": "runtime",
    "package": "edge_package",
}

__all__ = [
    "ArtifactError",
    "Error",
    "Executable",
    "ExecutionError",
    "InputError",
    "InvalidModelError",
    "UnsupportedError",
    "check",
    "check_target",
    "compile",
    "compile_file",
    "host_calls",
    "load",
    "package",
    "targets",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"tcompile.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'tcompile' has no attribute {name!r}")
