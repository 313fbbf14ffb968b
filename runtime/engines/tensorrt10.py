"""TensorRT before 11: its decoder only reads the cache, a kernel of ours (csrc/cuda) puts new keys and values there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.runtime.engines.device_rows import HALF_BYTES, ROWS
from mgpt_edge.runtime.engines.kernels import BLOCK, HALF, Kernels
from mgpt_edge.runtime.engines.tensorrt import TensorRtEngine, TensorRtRows

if TYPE_CHECKING:
    from mgpt_edge.runtime.engines.device_rows import Context


class TensorRt10Engine(TensorRtEngine):
    """A bundle of engine "tensorrt10"; as `TensorRtEngine`, and without our kernels there is none."""

    kernels: Kernels

    def _kernels(self) -> Kernels:
        return Kernels(self.gpu)

    def _rows(self) -> TensorRtRows:
        return TensorRt10Rows(self)


class TensorRt10Rows(TensorRtRows):
    """As `TensorRtRows`, with room for the new keys and values of a pass."""

    def __init__(self, engine: TensorRt10Engine) -> None:
        d, gpu, self.kernels = engine.bundle.manifest.dimensions, engine.gpu, engine.kernels
        fresh_bytes = ROWS * d.kv_heads * engine.widest * d.head_dim * HALF_BYTES
        self.fresh = [gpu.allocate(fresh_bytes) for _ in range(2 * d.layers)]
        self.shape = np.array([ROWS, d.kv_heads, engine.capacity, d.head_dim, 0, HALF], np.uint32)
        super().__init__(engine)
        blocks = np.array(
            [(new.address, block.address, 0) for new, block in zip(self.fresh, self.cache.values(), strict=True)], BLOCK
        )
        self.blocks = gpu.constant(blocks)

    def _bind_cache(self, context: Context) -> None:
        for (name, block), new in zip(self.cache.items(), self.fresh, strict=True):
            context.bind({f"past.{name}": block.address, f"fresh.{name}": new.address})

    def place(self, width: int) -> None:
        """What the pass computed of each row's own tokens; not of those after them."""
        self.shape[4] = width
        self.kernels.append(self.blocks.address, len(self.fresh), self.shape, self.starts, self.ends)
