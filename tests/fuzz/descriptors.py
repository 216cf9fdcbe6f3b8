"""Mutated descriptors, opened by the runtime in C under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import onnx

import tcompile
from tcompile import runtime
from tcompile.pipeline import compile_artifact

_NATIVE = Path(runtime.__file__).parent / "native"
_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ("-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")

MODELS = {
    "two inputs, a constraint": "g (float[n, 3] a, float[n, m] b) => (float[n, k] y) { y = Concat<axis = 1>(a, b) }",
    "a growing output": "g (float[n, m] x) => (int64[2, k] y) { y = NonZero(x) }",
    "weights": "g (float[n, 4] x) => (float[n, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = MatMul(x, w) }",
    "requirements and sources": """g (float[n, m] x, int64[2] shape) => (float[?, ?] y) {
        r = Reshape(x, shape)
        y = Softmax<axis = 1>(r)
    }""",
}


def compiler() -> str | None:
    """The C compiler, where it has the sanitizers."""
    found = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) or shutil.which("cc")
    command = (found, "-fsanitize=address,undefined", "-x", "c", "-", "-o", "/dev/null")
    if found is None or subprocess.run(command, input=b"int main(void) { return 0; }", capture_output=True).returncode:
        return None
    return found


def build(folder: Path) -> Path:
    """The program that mutates and opens."""
    sources = [_SOURCE, *sorted(_NATIVE.glob("*.c"))]
    program = folder / "descriptors"
    subprocess.run([compiler(), *_FLAGS, f"-I{_NATIVE}", *map(str, sources), "-pthread", "-o", program], check=True)
    return program


def open_mutants(program: Path, folder: Path, count: int, seed: int) -> dict[str, str]:
    """What the program says of ``count`` mutants of each model. Raises CalledProcessError where a sanitizer stops it."""
    said = {}
    for k, (name, body) in enumerate(MODELS.items()):
        model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]>\n{body}')
        package = tcompile.package(compile_artifact(model), folder / f"model{k}") / "model"
        parts = [package / f"{part}.bin" for part in ("descriptor", "code", "weights")]
        done = subprocess.run([program, *parts, str(seed), str(count)], check=True, capture_output=True, text=True)
        said[name] = done.stdout.strip()
    return said
