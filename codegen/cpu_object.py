"""LLVM IR text to objects and assembly, by llvmlite. Imports nothing heavy: worker processes start with this module.

LLVM's passes add little to code that is vectorised, hoisted and in SSA form as written, so few run: none that
turns loops into calls of memcpy, and no vectoriser.
"""

from __future__ import annotations

from functools import lru_cache

from tcompile.errors import Error
from tcompile.ir.target import Target

VERSION = 2  # of the passes run here; part of every cache key


class CodegenError(Error):
    """LLVM refused the text of a module, or failed on it: a bug of ours, named after the module."""


def llvm_version() -> str:
    """The version of LLVM in use."""
    from llvmlite import binding

    return ".".join(map(str, binding.llvm_version_info))


def features_text(target: Target) -> str:
    """Features as LLVM writes them: ``+avx512vnni,+bf16``."""
    return ",".join(f"+{name}" for name in target.features)


def compile_module(ir_text: str, target: Target) -> bytes:
    """The relocatable object of a module. Raises CodegenError with LLVM's words."""
    return _machine(target).emit_object(_optimised(ir_text, target))


def assembly(ir_text: str, target: Target) -> str:
    """The assembly text of a module. Raises CodegenError with LLVM's words."""
    return _machine(target).emit_assembly(_optimised(ir_text, target))


def optimised_text(ir_text: str, target: Target) -> str:
    """The LLVM IR of a module as instruction selection sees it."""
    return str(_optimised(ir_text, target))


def _optimised(ir_text: str, target: Target):
    from llvmlite import binding

    machine = _machine(target)
    try:
        module = binding.parse_assembly(ir_text)
        module.verify()
    except RuntimeError as error:
        raise CodegenError(f"LLVM refuses the module: {error}", hint="this is a bug in the CPU code generator") from error
    builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=2))
    passes = binding.create_new_function_pass_manager()
    passes.add_sroa_pass()
    passes.add_simplify_cfg_pass()
    for function in module.functions:
        if not function.is_declaration:
            passes.run(function, builder)
    return module


@lru_cache(maxsize=16)
def _machine(target: Target):
    from llvmlite import binding

    initialise()
    made = binding.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=features_text(target), opt=2, reloc="pic", codemodel="small"
    )
    made.set_asm_verbosity(False)
    return made


@lru_cache(maxsize=1)
def initialise() -> None:
    """Makes LLVM know its targets; once a process."""
    from llvmlite import binding

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    # it adds products before it adds them to a sum, for which no register is left
    binding.set_option("tcompile", "-x86-machine-combiner=false")
