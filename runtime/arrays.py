"""Inputs brought into the form that compiled code reads."""

from __future__ import annotations

import numpy as np

from tcompile.errors import InputError
from tcompile.runtime import dlpack
from tcompile.runtime.pitch import rows_of
from tcompile.runtime.specs import TensorSpec


def as_input(value: object, spec: TensorSpec) -> np.ndarray:
    """``value`` as an aligned array of the spec's type, row-major or with the spec's pitch; a copy only where it is not.

    Takes arrays, NumPy scalars, and objects with ``__dlpack__``. Raises InputError for anything else, and for
    another element type: nothing is cast.
    """
    array = _to_array(value, spec)
    if array.dtype != spec.dtype:
        raise InputError(
            f"input '{spec.name}' has element type {array.dtype}, expected {spec.dtype}", hint=f"convert it: x.astype('{spec.dtype}')"
        )
    if array.ndim != len(spec.shape):
        raise InputError(
            f"input '{spec.name}' has shape {array.shape}, expected {len(spec.shape)} dimensions: [{', '.join(map(str, spec.shape))}]"
        )
    if spec.pitch is not None and array.flags.aligned and rows_of(array, spec.pitch[0]) is not None:
        return array
    return np.require(array, requirements=("C", "A"))


def _to_array(value: object, spec: TensorSpec) -> np.ndarray:
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        try:
            if spec.element.name in dlpack.CODES:
                return dlpack.from_dlpack(value, spec.element.name, spec.dtype)
            return np.from_dlpack(value)
        except (BufferError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            message = f"input '{spec.name}' cannot be read through DLPack: {error}"
            raise InputError(message, hint="move it to the CPU, as a NumPy array") from error
    raise InputError(
        f"input '{spec.name}' is a {type(value).__name__}, expected an array of {spec.dtype}", hint=f"np.asarray(x, dtype='{spec.dtype}')"
    )
