"""The CUDA toolkit's compiler: the front end makes PTX once, the assembler makes the cubin from it, several kernels at a time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tcompile.codegen.cuda_compile import FLAGS, own_architecture, refused


@dataclass(frozen=True, eq=False)
class Nvcc:
    """One nvcc."""

    path: Path

    def __str__(self) -> str:
        return f"nvcc {self.version} ({self.path})"

    @cached_property
    def version(self) -> str:
        """Its release, ``13.0.88``."""
        found = re.search(r"V(\d+\.\d+\.\d+)", _output(self.path, "--version"))
        return found[1] if found else "of unknown version"

    @cached_property
    def _architectures(self) -> frozenset[int]:
        return frozenset(int(number) for number in re.findall(r"sm_(\d+)\b", _output(self.path, "--list-gpu-code")))

    def architectures(self) -> frozenset[int]:
        """The compute capabilities (times ten) that it makes cubins for."""
        return self._architectures

    def compile(self, text: str, sm: int) -> tuple[bytes, bytes, str]:
        """The cubin, the PTX and the assembler's log. Raises CodegenError."""
        with tempfile.TemporaryDirectory(prefix="tcompile-cuda-") as folder:
            source, ptx, cubin = (Path(folder) / name for name in ("kernels.cu", "kernels.ptx", "kernels.cubin"))
            source.write_text(text)
            self._run(*FLAGS, "-w", f"-arch=compute_{sm}", "-ptx", str(source), "-o", str(ptx))
            arch, exact = own_architecture(text, sm), ptx
            if arch != str(sm):
                exact = Path(folder) / "exact.ptx"
                self._run(*FLAGS, "-w", f"-arch=compute_{arch}", "-ptx", str(source), "-o", str(exact))
            jobs = min(os.cpu_count() or 1, 8)
            log = self._run(
                f"-arch=sm_{arch}", f"--split-compile={jobs}", "-fmad=false", "-Xptxas=-v", "-cubin", str(exact), "-o", str(cubin)
            )
            return cubin.read_bytes(), ptx.read_bytes(), log

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([str(self.path), *arguments], capture_output=True, text=True)
        if done.returncode:
            raise refused(str(self), done.stderr + done.stdout)
        return done.stderr + done.stdout


def _output(path: Path, argument: str) -> str:
    return subprocess.run([str(path), argument], capture_output=True, text=True).stdout


def find() -> Nvcc | None:
    """The nvcc of CUDA_HOME or CUDA_PATH, else that on PATH; None where there is none."""
    roots = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for candidate in (*(shutil.which("nvcc", path=str(Path(root) / "bin")) for root in roots), shutil.which("nvcc")):
        if candidate:
            return Nvcc(Path(candidate))
    return None
