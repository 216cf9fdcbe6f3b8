"""Which folder may import which: the direction of the architecture, held by a test over every import statement."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("tcompile", "ir", "passes", "codegen", "runtime", "benchmarks")
ALLOWED = {
    "ir": {"ir"},
    "passes": {"passes", "ir"},
    "codegen": {"codegen", "ir"},
    "runtime": {"runtime"},
    "tcompile": {"tcompile", "ir", "passes", "codegen", "runtime", "benchmarks"},
    "benchmarks": {"tcompile", "ir", "passes", "codegen", "runtime", "benchmarks"},
}
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(name: str) -> str | None:
    """The room a dotted name of ours lies in; the errors module belongs to none."""
    parts = name.split(".")
    if parts[0] != "tcompile" or parts[:2] == ["tcompile", "errors"]:
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "tcompile"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(path):
    room = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        assert name.split(".")[0] not in set(ROOMS) - {"tcompile"}, f"{name} would make a twin of tcompile.{name}"
        target = room_of(name)
        assert target is None or target in ALLOWED[room], f"{room} may not import {name}"


def test_the_errors_module_imports_nothing():
    assert imported(ROOT / "tcompile" / "errors.py") == {"__future__.annotations"}


def test_loading_an_artifact_imports_no_compiler():
    code = "import sys, tcompile.runtime, tcompile; tcompile.load; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    banned = ("onnx", "llvmlite", "tcompile.ir", "tcompile.passes", "tcompile.codegen", "pycuda", "click", "rich")
    assert [name for name in loaded if name.startswith(banned)] == []
