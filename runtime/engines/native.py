"""Our own decoder on the CPU (`csrc/cpu`): int8 weights mapped from the file, an int8 cache, one call a pass.

The logits of a token are the same bits whatever shares its pass, on any number of threads and any CPU.
ONNX Runtime is left with the VQ model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.runtime._native import CpuDecoder
from mgpt_edge.runtime.engines.graphs import Graphs
from mgpt_edge.runtime.errors import BundleError, OutOfMemory
from mgpt_edge.runtime.rotary import rotary_tables
from mgpt_edge.runtime.tensors import map_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mgpt_edge.runtime.bundle import Bundle
    from mgpt_edge.runtime.engines.base import Head
    from mgpt_edge.runtime.manifest import Dimensions

FILE = "decoder.safetensors"
ROWS = 2


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
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{path} does not fit its manifest: {error}; export the checkpoint again (mgpt export)"
        raise BundleError(msg) from error


class NativeEngine(Graphs):
    """A `native` bundle.

    Args:
        bundle: opened, of engine "native".
        threads: of every pass.
        kernels: one of `decoder_kernels()`; the fastest of this machine unless given.

    Raises:
        BundleError: the decoder's file is damaged.
    """

    def __init__(self, bundle: Bundle, threads: int, kernels: str = "") -> None:
        super().__init__(bundle, threads)
        manifest = bundle.manifest
        self.decoder = load_decoder(bundle.path(FILE), manifest.dimensions, manifest.vocabulary.size, threads, kernels)

    def open(self, capacities: tuple[int, int]) -> NativeRows:
        d = self.bundle.manifest.dimensions
        if self.decoder.positions < max(capacities):
            with self.lock:
                self.decoder.rotate(*rotary_tables(max(capacities), d.head_dim, d.rope_theta))
        return NativeRows(self, capacities)


class NativeRows:
    """One stream's cache and logits; `engines.base.Rows`.

    Args:
        engine: shared with other streams; a lock keeps each pass whole.
        capacities: tokens each row can hold.
    """

    def __init__(self, engine: NativeEngine, capacities: tuple[int, int]) -> None:
        vocabulary = engine.bundle.manifest.vocabulary
        self.decoder = engine.decoder
        self.ids: dict[Head, tuple[int, int]] = {"image": vocabulary.code_range, "text": (0, vocabulary.size)}
        self.logits: dict[Head, NDArray[np.float32]] = {}
        try:
            self.cache = engine.decoder.cache(list(capacities))
        except MemoryError as error:
            msg = f"no memory for the K/V of {capacities[0]} + {capacities[1]} tokens; see: mgpt estimate"
            raise OutOfMemory(msg) from error

    @property
    def lengths(self) -> tuple[int, int]:
        return self.cache.length(0), self.cache.length(1)

    def forward(self, tokens: tuple[Sequence[int], Sequence[int]], head: Head) -> NDArray[np.float32]:
        low, high = self.ids[head]
        if head not in self.logits:
            self.logits[head] = np.zeros((ROWS, high - low), np.float32)
        logits = self.logits[head]
        fed = [row for row in range(ROWS) if len(tokens[row])]
        out = logits[fed[0] : fed[-1] + 1]
        self.decoder.forward(self.cache, [(row, list(tokens[row])) for row in fed], low, high, last=1, out=out)
        return logits

    def forward_every(
        self, tokens: tuple[Sequence[int], Sequence[int]], last: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        low, high = self.ids["image"]
        fed = [row for row in range(ROWS) if len(tokens[row])]
        out = np.empty((len(fed), last, high - low), np.float32)
        rows = [(row, list(tokens[row])) for row in fed]
        self.decoder.forward(self.cache, rows, low, high, last=last, out=out.reshape(-1, high - low))
        return out[0], out[1] if len(fed) == ROWS else None

    def rollback(self, lengths: tuple[int, int]) -> None:
        for row, length in enumerate(lengths):
            self.cache.rollback(row, length)
