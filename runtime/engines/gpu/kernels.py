"""Our CUDA kernels (csrc/cuda/mgpt_cuda.h) on a stream: a library beside the native module, where it was built in.

As all that needs a GPU, it ran on none yet.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mgpt_edge.runtime import _native
from mgpt_edge.runtime.errors import IncompatibleEngine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mgpt_edge.runtime.engines.gpu.device import Gpu

LIBRARY = "libmgpt_cuda.so"
HALF = 0  # CacheFormat::half
POINTER, NUMBER = np.uint64, np.uint32
BLOCK = np.dtype([(name, POINTER) for name in ("fresh", "cache", "scales")])
"""CacheBlock of csrc/cuda/mgpt_cuda.h; then Picture, Cursor and Pictures of csrc/sampling/picture_step.h."""
PICTURE = np.dtype(
    [
        *((name, POINTER) for name in ("forced", "tokens")),
        *((name, NUMBER) for name in ("size", "offset", "low", "high", "top_k")),
        *((name, np.float32) for name in ("guidance", "temperature")),
        ("seed", np.uint64),
    ],
    align=True,
)
CURSOR = np.dtype([(name, NUMBER) for name in ("next", "waiting", "status")])
PICTURES = np.dtype(
    [
        *((name, POINTER) for name in ("pictures", "cursors", "fed", "positions", "lengths", "totals", "logits")),
        *((name, NUMBER) for name in ("first_id", "columns", "width", "guided")),
    ],
    align=True,
)
DRAWN, NOT_A_NUMBER = 0, 1  # SampleStatus


def kernel_library() -> Any:
    """The library, loaded.

    Raises:
        IncompatibleEngine: the native module was built without it.
    """
    path = Path(_native.__file__).with_name(LIBRARY)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        msg = (
            f"the CUDA kernels can't be loaded ({error}); build them where nvcc is: "
            "pip install . --config-settings cmake.define.MGPT_CUDA=ON"
        )
        raise IncompatibleEngine(msg) from error


class Kernels:
    """Launches on a GPU's stream; nothing waits.

    Raises:
        IncompatibleEngine: as `kernel_library`.
    """

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self._library = gpu, kernel_library()

    def append(self, blocks: int, count: int, shape: NDArray[np.uint32], lengths: int, totals: int) -> None:
        """New keys and values take their places in the cache.

        Args:
            blocks: address of `count` of `BLOCK`.
            count: of them.
            shape: CacheShape; read during the call.
            lengths: address of each sequence's tokens before the pass.
            totals: and of those after it.
        """
        self._call(
            "append", _address(blocks), ctypes.c_uint32(count), _data(shape), _address(lengths), _address(totals)
        )

    def step(self, pictures: NDArray[Any]) -> None:
        """One picture draws its next token and writes what the next pass reads; a `PICTURES`, read during the call."""
        self._call("step", _data(pictures), ctypes.c_uint32(1))

    def _call(self, name: str, *arguments: Any) -> None:
        error = getattr(self._library, f"mgpt_cuda_{name}")(*arguments, _address(self.gpu.stream))
        if error:
            msg = f"mgpt_cuda_{name} gives {error} on {self.gpu.name}; see: mgpt doctor"
            raise IncompatibleEngine(msg)


def kernels_if_built(gpu: Gpu) -> Kernels | None:
    """Ours, where the native module was built with them."""
    try:
        return Kernels(gpu)
    except IncompatibleEngine:
        return None


def _address(number: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(number)


def _data(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
