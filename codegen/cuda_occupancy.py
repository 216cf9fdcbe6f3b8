"""How many blocks of a kernel a multiprocessor runs at once, and so the share of its threads that are busy.

Source: CUDA C++ Programming Guide, "Hardware Multithreading" and the technical specifications per compute capability: registers
are given to warps by 256, and a block takes 1 KiB of shared memory for the system.
"""

from __future__ import annotations

from math import prod

from tcompile.codegen.cuda_c import Launch
from tcompile.ir.target import GpuTarget

_REGISTER_UNIT = 256  # of a warp
_SYSTEM_SHARED = 1024  # bytes of a block


def resident_blocks(launch: Launch, registers: int, target: GpuTarget) -> int:
    """Blocks of one multiprocessor; 0 where not even one fits. ``registers``: of a thread."""
    warps = -(-prod(launch.block) // target.warp)
    per_warp = -(-registers * target.warp // _REGISTER_UNIT) * _REGISTER_UNIT
    shared = launch.shared_bytes + launch.static_bytes
    limits = [target.blocks_per_sm, target.threads_per_sm // (warps * target.warp)]
    if per_warp:
        limits.append(target.registers_per_sm // (per_warp * warps))
    if shared:
        limits.append(target.shared_per_sm // (shared + _SYSTEM_SHARED))
    return min(limits)


def occupancy(launch: Launch, registers: int, target: GpuTarget) -> float:
    """The share of a multiprocessor's threads, from 0 to 1."""
    warps = -(-prod(launch.block) // target.warp)
    return resident_blocks(launch, registers, target) * warps * target.warp / target.threads_per_sm
