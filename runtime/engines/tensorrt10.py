"""TensorRT before 11: its decoder only reads the cache, a kernel of ours (csrc/cuda) puts new keys and values there."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mgpt_edge.runtime import _native
from mgpt_edge.runtime.engines.tensorrt import HALF_BYTES, ROWS, TensorRtEngine, TensorRtRows
from mgpt_edge.runtime.errors import IncompatibleEngine

if TYPE_CHECKING:
    from mgpt_edge.runtime.bundle import Bundle
    from mgpt_edge.runtime.engines.plans import Chain, Context

LIBRARY = "libmgpt_cuda.so"
HALF = 0  # CacheFormat::half
BLOCK = np.dtype([(name, np.uint64) for name in ("fresh", "cache", "scales")])
"""CacheBlock of csrc/cuda/mgpt_cuda.h."""


def kernels() -> Any:
    """The library of CUDA kernels that was built with the native module.

    Raises:
        IncompatibleEngine: it was built without.
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


class TensorRt10Engine(TensorRtEngine):
    """A bundle of engine "tensorrt10"; as `TensorRtEngine`."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.kernels = kernels()
        super().__init__(bundle, threads)

    def _rows(self) -> TensorRtRows:
        return TensorRt10Rows(self)


class TensorRt10Rows(TensorRtRows):
    """As `TensorRtRows`, with room for the new keys and values of a pass."""

    def __init__(self, engine: TensorRt10Engine) -> None:
        d, gpu = engine.bundle.manifest.dimensions, engine.gpu
        self.kernels = engine.kernels
        fresh_bytes = ROWS * d.kv_heads * engine.widest * d.head_dim * HALF_BYTES
        self.fresh = [gpu.allocate(fresh_bytes) for _ in range(2 * d.layers)]
        self.totals = gpu.pinned((ROWS,), np.int32)
        self.ends = gpu.allocate(self.totals.nbytes)
        self.shape = np.array([ROWS, d.kv_heads, engine.capacity, d.head_dim, 0, HALF], np.uint32)
        super().__init__(engine)
        blocks = np.array(
            [(new.address, block.address, 0) for new, block in zip(self.fresh, self.cache.values(), strict=True)], BLOCK
        )
        self.blocks = gpu.allocate(blocks.nbytes)
        gpu.upload(blocks, self.blocks.address)
        gpu.wait()

    def _bind_cache(self, context: Context | Chain) -> None:
        for (name, block), new in zip(self.cache.items(), self.fresh, strict=True):
            context.bind({f"past.{name}": block.address, f"fresh.{name}": new.address})

    def _append(self, width: int) -> None:
        """What the pass computed of each row's own tokens; not of those after them."""
        self.totals[:] = self.lengths
        self.shape[4] = width
        self.gpu.upload(self.totals, self.ends.address)
        error = self.kernels.mgpt_cuda_append(
            ctypes.c_void_p(self.blocks.address),
            ctypes.c_uint32(len(self.fresh)),
            ctypes.c_void_p(self.shape.ctypes.data),
            ctypes.c_void_p(self.placed.address),
            ctypes.c_void_p(self.ends.address),
            ctypes.c_void_p(self.gpu.stream),
        )
        if error:
            msg = f"mgpt_cuda_append gives {error} on {self.gpu.name}; see: mgpt doctor"
            raise IncompatibleEngine(msg)
