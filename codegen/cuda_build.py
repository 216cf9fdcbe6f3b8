"""Program -> code for a GPU: memory plan, CUDA C of all kernels, cubin and PTX, and the plan that the runtime walks."""

from __future__ import annotations

from math import prod
from typing import Any

from tcompile.codegen import cuda_compile
from tcompile.codegen.build import Progress, readable_arena
from tcompile.codegen.cuda_artifact import PTX, TEXT, CudaBuild
from tcompile.codegen.cuda_c import emit_limited, function_name, launch
from tcompile.codegen.cuda_limits import dim_ranges, with_limits
from tcompile.codegen.cuda_model import occupancy
from tcompile.codegen.cuda_program import KernelFacts, encode_program
from tcompile.codegen.memory import plan
from tcompile.ir.loops import Kernel
from tcompile.ir.program import Program
from tcompile.ir.program_text import program_kernels
from tcompile.ir.target import GpuTarget


def build_cuda(
    program: Program, target: GpuTarget, *, device_code: bool = True, cache: bool = True, progress: Progress | None = None
) -> CudaBuild:
    """Compiles a program. ``device_code`` False keeps the text of the kernels alone, which no driver takes.

    Raises UnsupportedError where no CUDA compiler is found or the one that is does not know the target; CodegenError for text that
    it refuses, which is a bug of ours.
    """
    places, kernels = plan(program), program_kernels(program)
    known = dim_ranges(program)
    emitted = emit_limited(kernels, known)
    text, program = emitted.text, with_limits(program, emitted.limits)
    code = {TEXT: text.encode()}
    facts: dict[Kernel, dict[str, Any]] = {kernel: {} for kernel in kernels}
    notes, ptx = readable_arena(places.arena_bytes), 0
    if device_code:
        if progress is not None:
            progress.stage("compile", len(kernels))
        made = cuda_compile.compile_text(text, target.sm, cache=cache)
        spilling = {name for name, facts in made.resources.items() if facts["spill"]}
        if spilling:
            # the assembler gives up registers to let more blocks run at once: these kernels are better off with fewer
            text = emit_limited(kernels, known, spilling).text
            code[TEXT], made = text.encode(), cuda_compile.compile_text(text, target.sm, cache=cache)
        code[f"code/sm_{target.sm}.cubin"], code[PTX], ptx = made.cubin, made.ptx, made.ptx_sm
        facts = {kernel: _facts(kernel, made.resources.get(function_name(kernel), {}), target) for kernel in kernels}
        notes["compiler"] = made.compiler.split(" (")[0]  # not where it stands: equal models are equal bytes
        if progress is not None:
            progress.advance(len(kernels))
    encoded = encode_program(program, places, {kernel: KernelFacts(launch(kernel), facts[kernel]) for kernel in kernels})
    return CudaBuild(encoded, code, places.weights, ptx, notes)


def _facts(kernel: Kernel, resources: dict[str, int], target: GpuTarget) -> dict[str, Any]:
    """What reports tell of a kernel: what the CUDA compiler says, and the share of a multiprocessor's threads that can run at once."""
    if not resources:
        return {}
    shape = launch(kernel)
    share = occupancy(target, prod(shape.block), resources["registers"], shape.shared_bytes + shape.static_bytes)
    return {**resources, "occupancy": round(share, 3)}
