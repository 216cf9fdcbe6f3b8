"""Opening an artifact, whatever it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcompile.runtime.cuda_device import Device
from tcompile.runtime.loader import Archive, Source
from tcompile.runtime.pool import Pool
from tcompile.runtime.segments import HOST_PLAN, open_native

if TYPE_CHECKING:
    from tcompile.runtime.hosted import HostedExecutable
    from tcompile.runtime.segments import AnyExecutable


def load(source: Source, threads: int | Pool | None = None, device: str | Device | None = None) -> AnyExecutable | HostedExecutable:
    """Loads an artifact from a path, its bytes or a mapped file, and checks its code; the weights stay in the file, see ``verify_weights``.

    A model with host ops (strings, sequences, images) gives a ``HostedExecutable``, one that was compiled for a GPU a
    ``CudaExecutable``; both are used in the same way. ``threads``: a number, or a ``Pool`` to share; None uses the physical
    cores that this process may use. ``device``: ``cuda:N`` for a model that was compiled for a GPU, ``cpu`` for others; by
    default ``cuda:0`` or ``cpu``.

    Raises ArtifactError for an artifact that is damaged, of another version, or for another machine; Error where the
    device's driver or PyCUDA is missing.
    """
    archive = Archive(source)
    if HOST_PLAN in archive:
        from tcompile.runtime.hosted import HostedExecutable

        return HostedExecutable(archive, threads=threads, device=device)
    return open_native(archive, threads, device)
