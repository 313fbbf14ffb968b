"""TensorRT: plans, caches and logits in the GPU's memory; tokens go there and logits come back.

As its parts (`plans`, `gpu`), it ran on no GPU yet.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mgpt_edge.runtime.engines.gpu.device import Gpu
from mgpt_edge.runtime.engines.gpu.kernels import Kernels, kernels_if_built
from mgpt_edge.runtime.engines.gpu.picture import DrawingSequences
from mgpt_edge.runtime.engines.gpu.plans import Plans
from mgpt_edge.runtime.engines.gpu.sequences import FLOAT_BYTES, SEQUENCES
from mgpt_edge.runtime.engines.kind import Compiler, EngineKind
from mgpt_edge.runtime.errors import OutOfMemory
from mgpt_edge.runtime.family.rotary import rotary_tables
from mgpt_edge.runtime.process import guard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mgpt_edge.runtime.bundle.folder import Bundle
    from mgpt_edge.runtime.engines.base import Segment
    from mgpt_edge.runtime.engines.gpu.device import Buffer
    from mgpt_edge.runtime.engines.gpu.sequences import Context

JETPACK = "JetPack brings it (apt install python3-libnvinfer), on other machines pip install tensorrt"
FOR_RTX = Compiler(
    title="TensorRT for RTX", module="tensorrt_rtx", install="pip install 'mgpt-edge[rtx]'", widest=512, for_rtx=True
)
TENSORRT11 = Compiler(title="TensorRT", module="tensorrt", install=JETPACK, widest=512, since=(11, 0))


class TensorRtEngine:
    """A bundle that was built for this machine's GPU.

    Args:
        bundle: opened, of engine "rtx" or "tensorrt".
        threads: unused, no pass runs on the CPU.
        compiler: of the plans.

    Raises:
        IncompatibleEngine: no GPU, no TensorRT, or no plan for them.
    """

    most_streams = 1

    def __init__(self, bundle: Bundle, threads: int, compiler: Compiler) -> None:
        self.bundle, self.threads, self.lock = bundle, threads, threading.Lock()
        guard(self)
        self.plans = Plans(bundle, compiler)
        self.widest = compiler.widest
        self._contexts: dict[tuple[str, int], Context] = {}
        self.gpu = self.plans.gpu
        self.captures = self.plans.captures
        self.kernels = self._kernels()
        self.capacity = int(self.plans.engines("decoder")[0].get_tensor_shape("past.0.key")[2])
        self.most_tokens = self.capacity - 1  # what idles writes a token past its end
        d = bundle.manifest.dimensions
        tables = rotary_tables(self.capacity, d.head_dim, d.rope_theta)
        self._tables = {name: self.gpu.constant(table) for name, table in zip(("cos", "sin"), tables, strict=True)}

    def prepare(self, *, draws: bool, reads: bool) -> None:
        with self.lock:
            for name in ("vq_decoder",) * draws + ("vq_encoder",) * reads:
                self.plans.engines(name)

    def forked(self) -> None:
        """The device says so when it is asked for anything."""

    def _kernels(self) -> Kernels | None:
        return kernels_if_built(self.gpu)

    def tables(self, positions: int) -> dict[str, Buffer]:
        assert positions <= self.capacity
        return self._tables

    def free_bytes(self) -> int:
        return self.gpu.free_bytes()

    def open(self, capacities: tuple[int, int], streams: int = 1) -> TensorRtSequences:
        if streams != 1:
            msg = f"plans have the sequences of one stream, not of {streams}"
            raise ValueError(msg)
        if max(capacities) > self.most_tokens:
            msg = (
                f"{max(capacities)} tokens wanted, the plans of {self.bundle.folder} hold {self.most_tokens}; "
                "a larger --target-size at mgpt export gives them room"
            )
            raise OutOfMemory(msg)
        return self._sequences()

    def _sequences(self) -> TensorRtSequences:
        return TensorRtSequences(self)

    def decode_pixels(self, codes: NDArray[np.int64]) -> NDArray[np.uint8]:
        side = self.bundle.manifest.pictures.stride
        pixels = np.empty((side * codes.shape[0], side * codes.shape[1], 3), np.uint8)
        self._vq("vq_decoder", {"codes": codes.astype(np.int32)}, {"pixels": pixels})
        return pixels

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        side = self.bundle.manifest.pictures.stride
        codes = np.empty((pixels.shape[0] // side, pixels.shape[1] // side), np.int32)
        self._vq("vq_encoder", {"pixels": np.ascontiguousarray(pixels)}, {"codes": codes})
        return codes.astype(np.int64)

    def _vq(self, graph: str, given: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]]) -> None:
        """Runs one of the VQ graphs, in the profile of the trained square if that is its size."""
        codes = (given | wanted)["codes"]
        usual = self.bundle.manifest.pictures.target_size // self.bundle.manifest.pictures.stride
        with self.lock:
            key = graph, int(codes.shape != (usual, usual))
            if key not in self._contexts:  # making one costs more than a run
                self._contexts[key] = self.plans.context(*key)
            context = self._contexts[key]
            memory = {name: self.gpu.allocate(array.nbytes) for name, array in (given | wanted).items()}
            context.bind({name: buffer.address for name, buffer in memory.items()})
            for name, array in given.items():
                self.gpu.upload(array, memory[name].address)
            context.run({name: (1, *array.shape) for name, array in given.items()})
            for name, array in wanted.items():
                self.gpu.download(memory[name].address, array)
            self.gpu.wait()


class TensorRtSequences(DrawingSequences):
    """Sequences whose passes are plans."""

    engine: TensorRtEngine

    def __init__(self, engine: TensorRtEngine) -> None:
        count = SEQUENCES * engine.widest * engine.bundle.manifest.dimensions.hidden_size * FLOAT_BYTES
        self.between = {name: engine.gpu.allocate(count) for name in engine.plans.residuals("decoder")}
        super().__init__(engine, (engine.capacity, engine.capacity))

    def context(self, graph: str, profile: int) -> Context:
        return self.engine.plans.context(graph, profile)

    def decoder(self, profile: int) -> Context:
        """Where it is in parts, each takes what the one before leaves."""
        context = super().decoder(profile)
        context.bind({name: buffer.address for name, buffer in self.between.items()})
        return context

    def widths(self, feeds: Sequence[Segment], start: int) -> tuple[int, ...]:
        """As many in each sequence; none may be written past the cache's end."""
        count = max(len(fed.tokens) for fed in feeds) - start
        return (min(count, self.engine.widest, self.engine.capacity - max(self.lengths)),) * SEQUENCES

    def shapes(self, widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        width = widths[0]
        passed = dict.fromkeys(self.between, (SEQUENCES, width, self.line // FLOAT_BYTES))
        return {"tokens": (SEQUENCES, width), "lengths": (SEQUENCES,), **passed}


RTX = EngineKind(
    name="rtx",
    order=2,
    lowering="tensorrt",
    on_gpu=True,
    element_bytes=2,
    load=partial(TensorRtEngine, compiler=FOR_RTX),
    check=lambda: (Gpu(), FOR_RTX.load()),
    compiler=FOR_RTX,
)
TENSORRT = EngineKind(
    name="tensorrt",
    order=4,
    lowering="tensorrt",
    on_gpu=True,
    element_bytes=2,
    load=partial(TensorRtEngine, compiler=TENSORRT11),
    check=lambda: (Gpu(), TENSORRT11.load()),
    compiler=TENSORRT11,
)
