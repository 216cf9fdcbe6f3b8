"""Loads compiled models and runs them. Needs NumPy only."""

from tcompile.runtime.executable import CallProfile, Executable, Memory, Profile, load
from tcompile.runtime.pool import Pool
from tcompile.runtime.specs import TensorSpec

__all__ = ["CallProfile", "Executable", "Memory", "Pool", "Profile", "TensorSpec", "load"]
