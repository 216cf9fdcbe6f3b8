"""What is in a CUDA artifact, told without a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tcompile.runtime.cuda_model import TEXT, read_plan_of
from tcompile.runtime.cuda_plan import Allocate, Bind, CudaPlan, If, Loop, walk
from tcompile.runtime.loader import Archive
from tcompile.runtime.names import tensor_report


def cuda_report(archive: Archive) -> dict[str, Any]:
    """The signature, target, sizes in bytes, kernels and launches, as JSON can hold them; the fields of ``Executable.report``.

    ``kernels`` tells of each kernel its block, and what the compiler knows: registers, shared memory, spills, bytes moved,
    occupancy. ``reads_back`` names what the host reads in a run, each of which waits for the device.
    """
    plan = read_plan_of(archive)
    code = {name: archive.part(name).size for name in plan.code}
    loaded = next((size for name, size in code.items() if name.endswith(".cubin")), code.get(TEXT, 0))
    arena = plan.arena_bound
    inputs, outputs = plan.input_specs(), plan.output_specs()
    return {
        "name": plan.name,
        "target": plan.target,
        "arch": f"sm_{plan.sm}",
        "features": [name.removeprefix("code/") for name in plan.code],
        "inputs": list(map(tensor_report, inputs)),
        "outputs": list(map(tensor_report, outputs)),
        "symbols": {name: list(plan.bounds[name]) for name, *_ in plan.symbols},
        "growing": _growing(plan),
        "shares": {outputs[k].name: [inputs[i].name for i in positions] for k, positions in plan.shares.items()},
        "code_bytes": loaded,
        "weights_bytes": plan.weights_bytes,
        "arena_bytes": arena,
        "scratch_bytes": 0,
        "threads": 1,
        "peak_bytes": None if arena is None else loaded + plan.weights_bytes + arena,
        "calls": [{"kernel": launch.kernel.name, "nodes": list(launch.nodes)} for launch in plan.launches],
        "kernels": [_kernel(kernel) for kernel in plan.kernels],
        "reads_back": _reads_back(plan),
        "notes": dict(plan.notes),
    }


def source_of(archive: Archive) -> str:
    """The CUDA C text of all kernels."""
    return archive.part(TEXT).tobytes().decode()


def _kernel(kernel: Any) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "block": list(kernel.block),
        "dynamic_shared": kernel.shared,
        **kernel.facts,
        "record": dict(kernel.record),
    }


def _growing(plan: CudaPlan) -> list[Mapping[str, Any]]:
    names = dict(zip(plan.outputs, plan.output_names, strict=True))
    found: dict[int, dict[str, None]] = {step.buffer: {} for step in walk(plan.steps) if isinstance(step, Allocate)}
    for launch in plan.launches:
        for number in launch.buffers:
            if number in found:
                found[number].update(dict.fromkeys(launch.nodes))
    return [{"name": names.get(number, plan.buffers[number].name), "nodes": list(nodes)} for number, nodes in found.items()]


def _reads_back(plan: CudaPlan) -> list[str]:
    found = []
    for step in walk(plan.steps):
        if isinstance(step, Bind):
            found.append(f"{step.text}{f' ({chr(44).join(step.nodes)})' if step.nodes else ''}")
        elif isinstance(step, If):
            found.append(f"the condition of If: {plan.buffers[step.condition].name}")
        elif isinstance(step, Loop) and step.condition is not None:
            found.append(f"the condition of a loop: {plan.buffers[step.condition].name}")
    return found
