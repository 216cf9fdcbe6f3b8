"""Loads compiled models and runs them. Needs NumPy only.

What host ops need is imported with the first model that has some.
"""

from typing import TYPE_CHECKING, Any

from tcompile.runtime.executable import Executable, Memory
from tcompile.runtime.load import load
from tcompile.runtime.measure import CallProfile, Profile
from tcompile.runtime.pool import Pool
from tcompile.runtime.specs import TensorSpec

if TYPE_CHECKING:
    from tcompile.runtime.host_types import HostSpec
    from tcompile.runtime.hosted import HostedExecutable

_LAZY = {"HostSpec": "host_types", "HostedExecutable": "hosted"}

__all__ = ["CallProfile", "Executable", "HostSpec", "HostedExecutable", "Memory", "Pool", "Profile", "TensorSpec", "load"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"tcompile.runtime.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'tcompile.runtime' has no attribute {name!r}")
