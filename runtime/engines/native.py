"""Our own decoder on the CPU (`csrc/cpu`): weights of 8 or 4 bits mapped from the file, an int8 cache, one call a pass.

The logits of a token are the same bits whatever shares its pass, on any number of threads and any CPU.
ONNX Runtime is left with the VQ model.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.runtime._native import CpuDecoder
from mgpt_edge.runtime.bundle.tensors import map_tensors
from mgpt_edge.runtime.engines.graphs import Graphs, onnxruntime
from mgpt_edge.runtime.engines.kind import EngineKind
from mgpt_edge.runtime.errors import BundleError, OutOfMemory
from mgpt_edge.runtime.family.rotary import rotary_tables

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mgpt_edge.runtime.bundle.folder import Bundle
    from mgpt_edge.runtime.bundle.manifest import Dimensions
    from mgpt_edge.runtime.engines.base import Head, Segment

FILE = "decoder.safetensors"


def load_decoder(path: Path, d: Dimensions, vocabulary: int, threads: int, kernels: str = "") -> CpuDecoder:
    """Maps the weights and starts the threads.

    Raises:
        BundleError: the file is damaged, or of a model of other dimensions.
    """
    tensors, said = map_tensors(path)
    try:
        sizes = {
            "layers": d.layers,
            "hidden_size": d.hidden_size,
            "heads": d.heads,
            "kv_heads": d.kv_heads,
            "head_dim": d.head_dim,
            "intermediate_size": int(said["intermediate_size"]),
            "vocabulary": vocabulary,
        }
        return CpuDecoder(sizes, float(said["norm_eps"]), said["norm_after"] == "true", tensors, threads, kernels)
    except RuntimeError as error:  # std::system_error
        msg = f"{threads} threads can't be started ({error}); ulimit -u or the container allows fewer: give --threads 1"
        raise OutOfMemory(msg) from error
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{path} does not fit its manifest: {error}; export the checkpoint again (mgpt export)"
        raise BundleError(msg) from error


class NativeEngine(Graphs):
    """A `native` bundle.

    Args:
        bundle: opened, of engine "native".
        threads: of every pass.
        kernels: one of `instruction_sets()`; the fastest of this machine unless given.

    Raises:
        BundleError: the decoder's file is damaged.
    """

    most_streams = 8  # a pass of sixteen tokens: more gain little (mgpt bench latency), and each needs a cache

    def __init__(self, bundle: Bundle, threads: int, kernels: str = "") -> None:
        super().__init__(bundle, threads)
        manifest = bundle.manifest
        self.decoder = load_decoder(bundle.path(FILE), manifest.dimensions, manifest.vocabulary.size, threads, kernels)

    def open(self, capacities: tuple[int, int], streams: int = 1) -> NativeSequences:
        d = self.bundle.manifest.dimensions
        with self.lock:
            if self.decoder.positions < max(capacities):
                self.decoder.rotate(*rotary_tables(max(capacities), d.head_dim, d.rope_theta))
        return NativeSequences(self, capacities, streams)


class NativeSequences:
    """Streams' caches, and the arrays that passes read and write; `engines.base.Sequences`.

    Args:
        engine: shared with others; a lock keeps each pass whole.
        capacities: tokens that each stream's two sequences can hold.
        streams: that share passes.
    """

    drawer = None

    def __init__(self, engine: NativeEngine, capacities: tuple[int, int], streams: int) -> None:
        vocabulary = engine.bundle.manifest.vocabulary
        self.decoder, self.streams = engine.decoder, streams
        self.ids: dict[Head, tuple[int, int]] = {"image": vocabulary.code_range, "text": (0, vocabulary.size)}
        self.logits: dict[Head, NDArray[np.float32]] = {}
        self.plan = np.zeros((2 * streams, 3), np.int64)
        self.tokens = np.zeros(sum(capacities) * streams, np.int64)
        try:
            self.cache = engine.decoder.cache(list(capacities) * streams)
        except MemoryError as error:
            msg = f"no memory for the K/V of {streams} x ({capacities[0]} + {capacities[1]}) tokens; see: mgpt estimate"
            raise OutOfMemory(msg) from error

    def length(self, sequence: int) -> int:
        return self.cache.length(sequence)

    def forward(self, feeds: Sequence[Segment], head: Head) -> list[NDArray[np.float32]]:
        count = wanted = 0
        for number, fed in enumerate(feeds):
            self.plan[number] = fed.sequence, len(fed.tokens), fed.last
            self.tokens[count : count + len(fed.tokens)] = fed.tokens
            count, wanted = count + len(fed.tokens), wanted + fed.last
        out = self._out(head, wanted)
        self.decoder.forward(self.cache, self.plan[: len(feeds)], self.tokens[:count], *self.ids[head], out=out)
        ends = accumulate(fed.last for fed in feeds)
        return [out[end - fed.last : end] for fed, end in zip(feeds, ends, strict=True)]

    def _out(self, head: Head, wanted: int) -> NDArray[np.float32]:
        """Room for logits; it grows to what the largest pass wants."""
        if head not in self.logits or len(self.logits[head]) < wanted:
            low, high = self.ids[head]
            self.logits[head] = np.zeros((wanted, high - low), np.float32)
        return self.logits[head][:wanted]

    def rollback(self, sequence: int, length: int) -> None:
        self.cache.rollback(sequence, length)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        self.cache.copy_prefix(source, target, length)


KIND = EngineKind(
    name="native",
    order=0,
    lowering="native",
    on_gpu=False,
    element_bytes=1,
    scale_bytes=4,
    load=NativeEngine,
    check=onnxruntime,  # for the VQ model
    arithmetic=2,  # 1 added floats in the order of a CPU's lanes
)
