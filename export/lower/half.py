"""Weights as float16, for lowerings whose products are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mgpt_edge.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

HALF = ir.DataType.FLOAT16
LARGEST_HALF = 65520.0  # from here on float16 rounds to infinity


def half(name: str, array: NDArray[np.float32]) -> NDArray[np.float16]:
    """The array of weight `name` in float16, C order.

    Raises:
        CheckpointError: as `finite`.
    """
    return np.ascontiguousarray(finite(name, array), np.float16)


def half_if_it_can(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """A float32 array in float16 where that can hold it; another as it is."""
    fits = array.dtype == np.float32 and np.abs(array).max() < LARGEST_HALF
    return array.astype(np.float16) if fits else array


def finite(name: str, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The array of weight `name`, if float16 can hold it.

    Raises:
        CheckpointError: NaN, or a value beyond float16.
    """
    largest = np.abs(array).max()
    if not largest < LARGEST_HALF:  # NaN is refused too
        msg = f"{name}: a weight is beyond float16 ({largest:.3g}); export with --engine cpu"
        raise CheckpointError(msg)
    return array
