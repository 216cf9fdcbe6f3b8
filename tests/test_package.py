"""What a built wheel holds."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = {"tcompile": "tcompile", "ir": "tcompile/ir", "passes": "tcompile/passes", "codegen": "tcompile/codegen"}
ROOMS |= {"runtime": "tcompile/runtime", "benchmarks": "tcompile/benchmarks"}


def test_the_wheel_holds_every_module_and_the_runtime(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    expected = {f"{ROOMS[Path(f).parts[0]]}/{'/'.join(Path(f).parts[1:])}" for f in tracked if Path(f).parts[0] in ROOMS}
    assert expected <= names, sorted(expected - names)
    for extra in ("py.typed", "demo/digits.onnx", "demo/digits.npz", "runtime/native/tcompile.h", "edge/CMakeLists.txt", "edge/main.c"):
        assert f"tcompile/{extra}" in names
    assert any(name.startswith("tcompile/runtime/_native") and name.endswith((".so", ".pyd", ".dylib")) for name in names)
    roots = {name.split("/")[0] for name in names}
    assert roots == {"tcompile", next(root for root in roots if root.endswith(".dist-info"))}
