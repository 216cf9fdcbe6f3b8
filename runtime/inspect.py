"""What is in an artifact of any kind, told without the device that it is for."""

from __future__ import annotations

from typing import Any

from tcompile.errors import ArtifactError
from tcompile.runtime.cuda_report import cuda_report, source_of
from tcompile.runtime.executable import Executable
from tcompile.runtime.host_plan import read_plan
from tcompile.runtime.hosted import DIGEST, hosted_report
from tcompile.runtime.loader import Archive, Source
from tcompile.runtime.pool import shared_pool
from tcompile.runtime.segments import CUDA_PLAN, HOST_PLAN


def describe(source: Source) -> dict[str, Any]:
    """The report of an artifact, as that of its executable; see ``Executable.report``, ``cuda_report`` and ``hosted_report``."""
    archive = Archive(source)
    if HOST_PLAN in archive:
        plan = read_plan(archive.checked(HOST_PLAN, DIGEST, "host steps"))
        reports = [describe(memoryview(archive.part(f"segments/{k}.tcm"))) for k in range(plan.segments)]
        return hosted_report(plan, reports, shared_pool(None).threads)
    return cuda_report(archive) if CUDA_PLAN in archive else Executable(archive).report()


def cuda_source(source: Source) -> str:
    """The CUDA C of an artifact's kernels. Raises ArtifactError for one that has none."""
    archive = Archive(source)
    if HOST_PLAN in archive:
        count = read_plan(archive.checked(HOST_PLAN, DIGEST, "host steps")).segments
        return "\n".join(cuda_source(memoryview(archive.part(f"segments/{k}.tcm"))) for k in range(count))
    if CUDA_PLAN not in archive:
        raise ArtifactError("the artifact is not for a GPU, and holds no CUDA C", hint="compile with --target cuda-sm90")
    return source_of(archive)
