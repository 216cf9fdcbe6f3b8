"""Loops, lanes, masks, registers, scratch and checks as CUDA C under the shim: the cases of the LLVM tests."""

from __future__ import annotations

import inspect

import pytest

from tests.codegen import test_cpu_llvm as cases
from tests.cuda.kernel_runs import compare

# parts of a parallel loop, scratch of symbolic size, LLVM's own messages and cost are no matters of a GPU thread
LEFT_OUT = {
    "test_parallel_loop_runs_its_part",
    "test_scratch_buffers",
    "test_scratch_of_sibling_blocks_is_shared",
    "test_errors_name_what_is_wrong",
    "test_llvm_refusal_is_a_named_error",
}


def _compare(kernel, arrays, dims, *part, ulp=0):
    return compare(kernel, arrays, dims, ulp)


@pytest.fixture(autouse=True)
def under_the_shim(monkeypatch):
    """The cases compare CUDA C with the interpreter."""
    monkeypatch.setattr(cases, "compare", _compare)


def _takes_compare(function) -> bool:
    return "compare(" in inspect.getsource(function) and function.__name__ not in LEFT_OUT


for _name, _case in inspect.getmembers(cases, inspect.isfunction):
    if _name.startswith("test_") and _takes_compare(_case):
        globals()[_name] = _case
