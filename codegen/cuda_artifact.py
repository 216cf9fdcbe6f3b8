"""Writes the artifact of a model for a GPU: the same container as for a CPU, with a plan in place of a native entry.

Entries: ``cuda.json`` (``cuda_program.py``) and its SHA-256, ``code/kernels.cu`` (the text of all kernels), ``code/sm_90.cubin``,
``code/kernels.ptx`` for devices to come, and ``weights.bin``. The plan holds the hashes of the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from tcompile.codegen.artifact import Sums, placed_weights, stored, weights_entry, write_weighted
from tcompile.codegen.container import StoredEntry
from tcompile.codegen.signature import Weight
from tcompile.ir.target import GpuTarget

TEXT, PTX = "code/kernels.cu", "code/kernels.ptx"


@dataclass(frozen=True, eq=False)
class CudaBuild:
    """What a program was compiled to. ``plan``: see ``encode_program``. ``code``: entry names to bytes, the text among them.

    ``ptx``: the compute capability (times ten) that the PTX needs, 0 where there is none. ``compiler`` names what made the code.
    """

    plan: Mapping[str, Any]
    code: Mapping[str, bytes]
    weights: Sequence[Weight]
    ptx: int = 0
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights_bytes(self) -> int:
        """The size of the weights with the gaps between them."""
        return max((weight.offset + weight.bytes for weight in self.weights), default=0)

    @property
    def code_bytes(self) -> int:
        """The size of what a device of the target loads."""
        return len(next((data for name, data in self.code.items() if name.endswith(".cubin")), self.code[TEXT]))


def write_cuda(stream: BinaryIO, build: CudaBuild, target: GpuTarget) -> None:
    """Writes into an empty stream that can seek; the same build gives the same bytes."""
    placed = placed_weights(build.weights)
    write_weighted(stream, placed, lambda sums: _entries(build, target, sums))


def _entries(build: CudaBuild, target: GpuTarget, sums: Sums) -> list[StoredEntry]:
    size = build.weights_bytes
    content = {
        **build.plan,
        "target": target.name,
        "sm": target.sm,
        "ptx": build.ptx,
        "code": {name: hashlib.sha256(data).hexdigest() for name, data in build.code.items()},
        "notes": {**build.plan["notes"], **build.notes},
        "weights_bytes": size,
        "weights_sha256": (sums.sha256 if size else hashlib.sha256().digest()).hex(),
    }
    plan = json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    small = {"cuda.json": plan, "cuda.sha256": hashlib.sha256(plan).digest(), **build.code}
    return [*(stored(name, data) for name, data in small.items()), *weights_entry(size, sums)]
