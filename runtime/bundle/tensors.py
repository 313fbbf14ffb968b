"""Reading a safetensors file without copying it: the tensors are views of the mapped file."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mgpt_edge.runtime.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

DTYPES = {"U8": np.uint8, "I8": np.int8, "BF16": np.uint16, "F32": np.float32}
"""bfloat16 comes as its bits: NumPy has no such type."""
LARGEST_HEADER = 100 << 20


def map_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Tensors by name, read-only, and what the file says of itself (github.com/huggingface/safetensors, "Format").

    Raises:
        BundleError: the file is missing, cut short, or not of this format.
    """
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        msg = f"{path} can't be mapped: {error}"
        raise BundleError(msg) from error
    length = int.from_bytes(bytes(data[:8]), "little")
    if not 2 <= length <= min(LARGEST_HEADER, len(data) - 8):
        msg = f"{path} is damaged: a header of {length} bytes in a file of {len(data)}; export the checkpoint again"
        raise BundleError(msg)
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
        body = data[8 + length :]
        said = header.pop("__metadata__", {})
        return {name: _view(body, entry) for name, entry in header.items()}, said
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path} is damaged: {error}; export the checkpoint again (mgpt export)"
        raise BundleError(msg) from error


def _view(body: NDArray[np.uint8], entry: dict[str, Any]) -> NDArray[Any]:
    start, end = entry["data_offsets"]
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), [int(size) for size in entry["shape"]]
    if not 0 <= start <= end <= len(body) or end - start != math.prod(shape) * dtype.itemsize:
        msg = f"a tensor of shape {shape} at bytes {start} to {end} of {len(body)}"
        raise ValueError(msg)
    return body[start:end].view(dtype).reshape(shape)
