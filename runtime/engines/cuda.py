"""ONNX Runtime on the GPU: weights and caches in its memory, a pass' tokens and logits copied by ONNX Runtime.

What is particular to the GPU ran nowhere yet; the rest is `ort`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mgpt_edge.runtime.engines.graphs import onnxruntime
from mgpt_edge.runtime.engines.ort import OrtEngine
from mgpt_edge.runtime.errors import IncompatibleEngine
from mgpt_edge.runtime.gpu import Gpu

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mgpt_edge.runtime.bundle import Bundle
    from mgpt_edge.runtime.manifest import Dimensions

PROVIDER = "CUDAExecutionProvider"
HALF_BYTES = 2


def check_provider(gpu: Gpu, wanted: str = PROVIDER, got: list[str] | None = None) -> None:
    """Whether ONNX Runtime has the provider, or a session got it.

    Raises:
        IncompatibleEngine: no.
    """
    got = onnxruntime().get_available_providers() if got is None else got
    if wanted not in got:
        msg = (
            f"onnxruntime {onnxruntime().__version__} does not run on {gpu.name}, but on {', '.join(got)}; "
            "it takes ONNX Runtime's GPU package, alone: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'mgpt-edge[cuda]'"
        )
        raise IncompatibleEngine(msg)


class CudaEngine(OrtEngine):
    """The graphs of a `cuda` bundle.

    Args:
        bundle: opened, of engine "cuda".
        threads: of what is left on the CPU.

    Raises:
        IncompatibleEngine: no GPU, or an ONNX Runtime that does not run on it.
    """

    device, provider = "cuda", PROVIDER
    # Memory is taken as it is needed: by default it grows by powers of two, beyond what `mgpt estimate` says.
    providers = ((PROVIDER, {"device_id": 0, "arena_extend_strategy": "kSameAsRequested"}), "CPUExecutionProvider")

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.gpu = Gpu()
        check_provider(self.gpu, self.provider)
        super().__init__(bundle, threads)

    def session(self, name: str) -> Any:
        session = super().session(name)
        # Where its libraries can't be loaded, ONNX Runtime takes the CPU.
        check_provider(self.gpu, self.provider, session.get_providers())
        return session

    def free_bytes(self) -> int:
        return self.gpu.free_bytes()

    def constant(self, array: NDArray[np.float32]) -> Any:
        return onnxruntime().OrtValue.ortvalue_from_numpy(array.astype(np.float16), self.device, 0)

    def cache(self, slots: list[int]) -> CudaCache:
        d = self.bundle.manifest.dimensions
        need, free = 2 * d.layers * d.kv_heads * d.head_dim * HALF_BYTES * sum(slots), self.free_bytes()
        if need > free:
            msg = f"{need >> 20:,} MiB wanted on {self.gpu.name}, {free >> 20:,} MiB are free"
            raise MemoryError(msg)
        return CudaCache(self, d, slots)


class CudaCache:
    """`ort.Cache` in the GPU's memory, float16."""

    def __init__(self, engine: CudaEngine, d: Dimensions, slots: list[int]) -> None:
        self.gpu, self.slots = engine.gpu, slots
        self.heads, self.token_bytes = d.kv_heads, d.head_dim * HALF_BYTES
        self.lengths = [0] * len(slots)
        empty = onnxruntime().OrtValue.ortvalue_from_shape_and_type
        self._blocks = [
            [
                tuple(empty([1, d.kv_heads, count, d.head_dim], np.float16, engine.device, 0) for _ in "kv")
                for count in slots
            ]
            for _ in range(d.layers)
        ]

    def length(self, row: int) -> int:
        return self.lengths[row]

    def append(self, row: int, tokens: int) -> None:
        self.lengths[row] += tokens

    def rollback(self, row: int, length: int) -> None:
        self.lengths[row] = length

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        for layer in self._blocks:
            for one, other in zip(layer[source], layer[target], strict=True):
                self.gpu.copy_lines(
                    (one.data_ptr(), self.slots[source] * self.token_bytes),
                    (other.data_ptr(), self.slots[target] * self.token_bytes),
                    length * self.token_bytes,
                    self.heads,
                )
        self.gpu.wait()
        self.lengths[target] = length

    def blocks(self, layer: int, row: int) -> tuple[Any, Any]:
        return self._blocks[layer][row]
