"""Loads compiled models and runs them. Needs NumPy only."""

from tcompile.runtime.executable import Executable, Memory
from tcompile.runtime.host_types import HostSpec
from tcompile.runtime.hosted import HostedExecutable
from tcompile.runtime.load import load
from tcompile.runtime.measure import CallProfile, Profile
from tcompile.runtime.pool import Pool
from tcompile.runtime.specs import TensorSpec

__all__ = ["CallProfile", "Executable", "HostSpec", "HostedExecutable", "Memory", "Pool", "Profile", "TensorSpec", "load"]
