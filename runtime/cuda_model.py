"""A CUDA artifact on a device: its plan checked, its code loaded, its weights uploaded once for all sessions."""

from __future__ import annotations

import hashlib
import weakref

import numpy as np

from tcompile.errors import ArtifactError
from tcompile.runtime.cuda_device import Device
from tcompile.runtime.cuda_plan import CudaPlan, read_cuda_plan
from tcompile.runtime.cuda_walk import Shared
from tcompile.runtime.loader import Archive
from tcompile.runtime.segments import CUDA_PLAN

DIGEST = "cuda.sha256"
TEXT, PTX = "code/kernels.cu", "code/kernels.ptx"


def read_plan_of(archive: Archive) -> CudaPlan:
    """The plan of an artifact, checked against its hash. Raises ArtifactError."""
    return read_cuda_plan(archive.checked(CUDA_PLAN, DIGEST, "CUDA plan"))


def code_entry(plan: CudaPlan, device: Device) -> str:
    """Which of the artifact's codes a device takes: a cubin of its generation, else the PTX, which its driver compiles.

    A cubin runs on devices of the same major compute capability and at least its minor one. Raises ArtifactError where none fits.
    """
    if device.takes_text:
        return TEXT
    cubin = f"code/sm_{plan.sm}.cubin"
    if cubin in plan.code and device.sm // 10 == plan.sm // 10 and device.sm >= plan.sm:
        return cubin
    if PTX in plan.code and device.sm >= plan.ptx:
        return PTX
    raise ArtifactError(
        f"the model is compiled for {plan.target}, and {device.name} is sm_{device.sm}", hint=f"compile it with --target cuda-sm{device.sm}"
    )


class CudaModel:
    """What all sessions share. ``shared`` holds the device, the plan, its kernels' functions and the weights' address."""

    def __init__(self, archive: Archive, device: Device) -> None:
        """Loads the code and uploads the weights. Raises ArtifactError for a damaged artifact or one for another device."""
        self.archive, self.device = archive, device
        self.plan = read_plan_of(archive)
        with device.active():
            self._load(device)

    def _load(self, device: Device) -> None:
        self._module = device.module(self._code(code_entry(self.plan, device)))
        functions = [self._module.function(kernel.function) for kernel in self.plan.kernels]
        self.shared = Shared(device, self.plan, functions)
        weights = self._weights()
        if weights.size:
            self.shared.weights = device.allocate(weights.size)
            weakref.finalize(self, device.free, self.shared.weights).atexit = False
            device.upload(self.shared.weights, weights, 0)
            device.synchronize(0)

    def verify_weights(self) -> None:
        """Hashes the weights in the file. Raises ArtifactError where they are not those that the model was compiled with."""
        _check(self._weights(), self.plan.weights_sha256, "weights")

    def code_bytes(self) -> int:
        """The size of the code that the device runs."""
        return self.archive.part(code_entry(self.plan, self.device)).size

    def _code(self, name: str) -> bytes:
        found = self.archive.part(name)
        _check(found, self.plan.code.get(name, ""), name)
        return found.tobytes()

    def _weights(self) -> np.ndarray:
        found = self.archive.part("weights.bin")
        if found.size != self.plan.weights_bytes:
            message = f"the artifact holds {found.size} bytes of weights, its plan says {self.plan.weights_bytes}"
            raise ArtifactError(message, hint="compile the model again, or copy the file again")
        return found


def _check(found: np.ndarray, expected: str, what: str) -> None:
    if hashlib.sha256(found).hexdigest() != expected:
        message = f"the artifact's {what} is damaged: its SHA-256 does not match"
        raise ArtifactError(message, hint="compile the model again, or copy the file again")
