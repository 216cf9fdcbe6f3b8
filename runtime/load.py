"""Opening an artifact, whatever it holds."""

from __future__ import annotations

from tcompile.runtime.executable import Executable
from tcompile.runtime.hosted import PLAN, HostedExecutable
from tcompile.runtime.loader import Archive, Source
from tcompile.runtime.pool import Pool


def load(source: Source, threads: int | Pool | None = None) -> Executable | HostedExecutable:
    """Loads an artifact from a path, its bytes or a mapped file, and checks its code; the weights stay in the file, see ``verify_weights``.

    A model with host ops (strings, sequences, images) gives a ``HostedExecutable``, which is used in the same way.
    ``threads``: a number, or a ``Pool`` to share; None uses the physical cores that this process may use.
    Raises ArtifactError for an artifact that is damaged, of another version, or for another machine.
    """
    archive = Archive(source)
    return HostedExecutable(archive, threads=threads) if PLAN in archive else Executable(archive, threads=threads)
