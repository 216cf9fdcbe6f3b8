"""Opening compiled code without host ops: for the CPU, or for a GPU. What kinds of artifacts are told apart by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcompile.errors import ArtifactError
from tcompile.runtime.cuda_device import Device
from tcompile.runtime.executable import Executable
from tcompile.runtime.loader import Archive
from tcompile.runtime.pool import Pool

if TYPE_CHECKING:
    from tcompile.runtime.cuda_executable import CudaExecutable

    AnyExecutable = Executable | CudaExecutable

CUDA_PLAN = "cuda.json"
HOST_PLAN = "host.json"  # of an artifact that has host ops


def open_native(archive: Archive, threads: int | Pool | None, device: str | Device | None) -> AnyExecutable:
    """The executable of an artifact. Raises ArtifactError where its code is not for the kind of device that is asked for."""
    if CUDA_PLAN in archive:
        from tcompile.runtime.cuda_executable import CudaExecutable

        if device == "cpu":
            raise ArtifactError("the model is compiled for a GPU, and cannot run on the CPU", hint="compile it with --target native")
        return CudaExecutable(archive, device="cuda:0" if device is None else device)
    if device not in (None, "cpu"):
        raise ArtifactError(f"the model is compiled for a CPU, and cannot run on {device}", hint="compile it with --target cuda-sm90")
    return Executable(archive, threads=threads)
