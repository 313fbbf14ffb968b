"""TensorRT before 11: its decoder only reads the cache, a kernel of ours (csrc/cuda) puts new keys and values there."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.runtime.engines.gpu.device import Gpu
from mgpt_edge.runtime.engines.gpu.kernels import BLOCK, HALF, Kernels, kernel_library
from mgpt_edge.runtime.engines.gpu.sequences import HALF_BYTES, SEQUENCES
from mgpt_edge.runtime.engines.gpu.tensorrt import JETPACK, TensorRtEngine, TensorRtSequences
from mgpt_edge.runtime.engines.kind import Compiler, EngineKind

if TYPE_CHECKING:
    from mgpt_edge.runtime.engines.gpu.sequences import Context


# New keys and values are outputs, so each token of a pass takes memory.
COMPILER = Compiler(title="TensorRT", module="tensorrt", install=JETPACK, widest=64, since=(10, 3))


class TensorRt10Engine(TensorRtEngine):
    """A bundle of engine "tensorrt10"; as `TensorRtEngine`, and without our kernels there is none."""

    kernels: Kernels

    def _kernels(self) -> Kernels:
        return Kernels(self.gpu)

    def _sequences(self) -> TensorRtSequences:
        return TensorRt10Sequences(self)


class TensorRt10Sequences(TensorRtSequences):
    """As `TensorRtSequences`, with room for the new keys and values of a pass."""

    def __init__(self, engine: TensorRt10Engine) -> None:
        d, gpu, self.kernels = engine.bundle.manifest.dimensions, engine.gpu, engine.kernels
        fresh_bytes = SEQUENCES * d.kv_heads * engine.widest * d.head_dim * HALF_BYTES
        self.fresh = [gpu.allocate(fresh_bytes) for _ in range(2 * d.layers)]
        self.shape = np.array([SEQUENCES, d.kv_heads, engine.capacity, d.head_dim, 0, HALF], np.uint32)
        super().__init__(engine)
        blocks = np.array(
            [(new.address, block.address, 0) for new, block in zip(self.fresh, self.cache.values(), strict=True)], BLOCK
        )
        self.blocks = gpu.constant(blocks)

    def _bind_cache(self, context: Context) -> None:
        for (name, block), new in zip(self.cache.items(), self.fresh, strict=True):
            context.bind({f"past.{name}": block.address, f"fresh.{name}": new.address})

    def place(self, width: int) -> None:
        """What the pass computed of each sequence's own tokens; not of those after them."""
        self.shape[4] = width
        self.kernels.append(self.blocks.address, len(self.fresh), self.shape, self.starts, self.ends)


KIND = EngineKind(
    name="tensorrt10",
    order=5,
    lowering="tensorrt10",
    on_gpu=True,
    element_bytes=2,
    load=partial(TensorRt10Engine, compiler=COMPILER),
    check=lambda: (Gpu(), COMPILER.load(), kernel_library()),
    compiler=COMPILER,
)
