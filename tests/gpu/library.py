"""The C library of kernels (csrc/cuda/mgpt_cuda.h) over ctypes, and memory that it can reach: a GPU's or the host's."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

POINTER = np.uint64
REQUEST = np.dtype(
    [
        ("cond", POINTER),
        ("uncond", POINTER),
        ("low", np.uint32),
        ("count", np.uint32),
        ("top_k", np.uint32),
        ("guidance", np.float32),
        ("temperature", np.float32),
        ("seed", np.uint64),
        ("position", np.uint32),
    ],
    align=True,
)
RESULT = np.dtype([("status", np.uint32), ("id", np.uint32)])
PICTURE = np.dtype(
    [
        ("forced", POINTER),
        ("tokens", POINTER),
        ("size", np.uint32),
        ("offset", np.uint32),
        ("low", np.uint32),
        ("high", np.uint32),
        ("top_k", np.uint32),
        ("guidance", np.float32),
        ("temperature", np.float32),
        ("seed", np.uint64),
    ],
    align=True,
)
CURSOR = np.dtype([("next", np.uint32), ("waiting", np.uint32), ("status", np.uint32)])
PICTURES = np.dtype(
    [
        ("pictures", POINTER),
        ("cursors", POINTER),
        ("tokens", POINTER),
        ("positions", POINTER),
        ("lengths", POINTER),
        ("totals", POINTER),
        ("logits", POINTER),
        ("first_id", np.uint32),
        ("columns", np.uint32),
        ("width", np.uint32),
        ("guided", np.uint32),
    ],
    align=True,
)
BLOCK = np.dtype([("fresh", POINTER), ("cache", POINTER), ("scales", POINTER)])
SHAPE = np.dtype([(name, np.uint32) for name in ("rows", "heads", "capacity", "dim", "width", "format")])

TOKEN, NOT_A_NUMBER, NOTHING_LEFT = range(3)
FORMATS = ("half", "int8", "e4m3")
INVALID = 1


class Buffer:
    """An array in the memory that the kernels see.

    Args:
        copy: takes an array of bytes to that memory: `numpy.copy` or `cupy.asarray`.
        array: what it holds at first.
    """

    def __init__(self, copy: Callable[[Any], Any], array: np.ndarray) -> None:
        self.dtype, self.shape = array.dtype, array.shape
        self.bytes = copy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    @property
    def address(self) -> int:
        return self.bytes.ctypes.data if isinstance(self.bytes, np.ndarray) else self.bytes.data.ptr

    def part(self, start: int) -> ctypes.c_void_p:
        """A pointer to its byte `start`."""
        return ctypes.c_void_p(self.address + start)

    def read(self) -> np.ndarray:
        raw = self.bytes if isinstance(self.bytes, np.ndarray) else self.bytes.get()
        return raw.view(self.dtype).reshape(self.shape).copy()

    def write(self, array: np.ndarray) -> None:
        raw = np.ascontiguousarray(array, self.dtype).reshape(-1).view(np.uint8)
        if isinstance(self.bytes, np.ndarray):
            self.bytes[:] = raw
        else:
            self.bytes.set(raw)


class Library:
    """Calls take NumPy arrays for what the host passes, and buffers for what lies in the kernels' memory.

    Args:
        path: the shared library.
        copy: as `Buffer`.
        stream: a cudaStream_t as a number; 0 is the default stream.
    """

    def __init__(self, path: Path, copy: Callable[[Any], Any], stream: int = 0) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.mgpt_cuda_error.restype = ctypes.c_char_p
        self.copy, self.stream = copy, stream

    def put(self, array: np.ndarray) -> Buffer:
        return Buffer(self.copy, array)

    def call(self, name: str, *arguments: Argument) -> int:
        """The error number of one call; the stream goes last."""
        return getattr(self.library, f"mgpt_cuda_{name}")(*map(_argument, arguments), ctypes.c_void_p(self.stream))

    def run(self, name: str, *arguments: Argument) -> None:
        """One call, which must launch."""
        error = self.call(name, *arguments)
        if error:
            msg = f"mgpt_cuda_{name}: error {error}, {self.library.mgpt_cuda_error(error).decode()}"
            raise RuntimeError(msg)

    def synchronize(self) -> None:
        """Waits for what was launched: a read of any buffer does."""
        self.put(np.zeros(1, np.uint8)).read()

    def blocks(self, parts: Sequence[tuple[Buffer, Buffer, Buffer | None]]) -> Buffer:
        """Fresh keys or values, cache and scales of each block."""
        rows = [(fresh.address, cache.address, scales.address if scales else 0) for fresh, cache, scales in parts]
        return self.put(np.array(rows, BLOCK))


Argument = Buffer | np.ndarray | ctypes.c_void_p | int
"""What lies in the kernels' memory, what lies in the host's, a pointer, a number."""


def _argument(value: Argument) -> ctypes.c_void_p | ctypes.c_uint32:
    if isinstance(value, Buffer):
        return value.part(0)
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    return value if isinstance(value, ctypes.c_void_p) else ctypes.c_uint32(value)
