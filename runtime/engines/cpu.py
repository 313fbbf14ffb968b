"""ONNX Runtime on the CPU: buffers bound once, the cache updated in place."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from mgpt_edge.runtime._native import FloatCache
from mgpt_edge.runtime.engines.graphs import Graphs, onnxruntime
from mgpt_edge.runtime.engines.kind import EngineKind
from mgpt_edge.runtime.errors import OutOfMemory
from mgpt_edge.runtime.family.rotary import rotary_tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mgpt_edge.runtime.bundle.folder import Bundle
    from mgpt_edge.runtime.engines.base import Head, Segment

SEQUENCES = 2


class CpuEngine(Graphs):
    """The graphs of a `cpu` bundle, the decoder among them.

    Args:
        bundle: opened, of engine "cpu".
        threads: of every pass.
    """

    most_streams = 1

    def __init__(self, bundle: Bundle, threads: int) -> None:
        super().__init__(bundle, threads)
        self.session("decoder")
        self._tables = self._rotary(0)

    def open(self, capacities: tuple[int, int], streams: int = 1) -> CpuSequences:
        if streams != 1:
            msg = f"the graphs of engine 'cpu' have the sequences of one stream, not of {streams}"
            raise ValueError(msg)
        return CpuSequences(self, capacities)

    def rotary(self, positions: int) -> tuple[Any, Any]:
        """Tables of at least `positions`, wrapped; they grow and are shared by all streams."""
        tables = self._tables
        if tables[0].shape()[0] < positions:
            self._tables = tables = self._rotary(positions)
        return tables

    def _rotary(self, positions: int) -> tuple[Any, Any]:
        d = self.bundle.manifest.dimensions
        cos, sin = rotary_tables(positions, d.head_dim, d.rope_theta)
        return wrap(cos), wrap(sin)


@dataclass(slots=True)
class _Pass:
    """Buffers of a pass of one shape, bound to the decoder's inputs and outputs."""

    binding: Any
    tokens: tuple[NDArray[np.int64], NDArray[np.int64]]
    hidden: NDArray[np.float32]
    last: list[int]


class CpuSequences:
    """One stream's cache and buffers; `engines.base.Sequences`.

    Args:
        engine: shared with others; its lock keeps a pass whole.
        capacities: tokens each sequence can hold.
    """

    streams = 1
    drawer = None

    def __init__(self, engine: CpuEngine, capacities: tuple[int, int]) -> None:
        self.engine = engine
        # One slot more: an idle sequence still feeds a token, past its end, that is never counted.
        slots, d = [capacity + 1 for capacity in capacities], engine.bundle.manifest.dimensions
        try:
            self.cache = FloatCache(d.layers, d.kv_heads, d.head_dim, slots)
        except MemoryError as error:
            msg = f"no memory for the K/V of {capacities[0]} + {capacities[1]} tokens; see: mgpt estimate"
            raise OutOfMemory(msg) from error
        self.seqlen = [np.zeros(1, np.int32) for _ in range(SEQUENCES)]
        self.total = [np.zeros((), np.int32) for _ in range(SEQUENCES)]
        self.selected = np.zeros((1, SEQUENCES, d.hidden_size), np.float32)
        # Shared by the bindings of all passes: ONNX Runtime takes 16 us to wrap an array.
        self.shared = dict(self._values(max(slots)))
        # Through a proxy: were the caches to hold these sequences, their memory would wait for the garbage collector.
        itself = weakref.proxy(self)
        self._pass = lru_cache(maxsize=8)(partial(CpuSequences._bind_pass, itself))
        self._head = lru_cache(maxsize=2)(partial(CpuSequences._bind_head, itself))

    def length(self, sequence: int) -> int:
        return self.cache.length(sequence)

    def forward(self, feeds: Sequence[Segment], head: Head) -> list[NDArray[np.float32]]:
        binding, logits = self._head(head, os.getpid())
        tokens: list[Sequence[int]] = [(), ()]
        for fed in feeds:
            tokens[fed.sequence] = fed.tokens
        with self.engine.lock:
            work = self._run(tokens)
            if all(fed.last == 1 for fed in feeds):
                self.selected[0] = work.hidden[0, work.last]
                self.engine.session(f"head_{head}").run_with_iobinding(binding)
                return [logits[fed.sequence : fed.sequence + 1] for fed in feeds]
            wanted = [np.arange(fed.last) + work.last[fed.sequence] + 1 - fed.last for fed in feeds]
            (every,) = self.engine.session(f"head_{head}").run(None, {"hidden": work.hidden[:, np.concatenate(wanted)]})
        ends = accumulate(fed.last for fed in feeds)
        return [every[0, end - fed.last : end] for fed, end in zip(feeds, ends, strict=True)]

    def _run(self, tokens: Sequence[Sequence[int]]) -> _Pass:
        """A pass of the decoder; the caller holds the engine's lock."""
        counts = len(tokens[0]), len(tokens[1])
        work = self._pass(counts[0] or 1, counts[1] or 1, os.getpid())
        for sequence in range(SEQUENCES):
            work.tokens[sequence][0, :] = tokens[sequence] or 0
            end = self.cache.length(sequence) + (counts[sequence] or 1)
            self.seqlen[sequence][0] = end - 1
            self.total[sequence][()] = end
            self.cache.append(sequence, counts[sequence])
        self.engine.session("decoder").run_with_iobinding(work.binding)
        return work

    def rollback(self, sequence: int, length: int) -> None:
        self.cache.rollback(sequence, length)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        self.cache.copy_prefix(source, target, length)

    def _values(self, positions: int) -> Iterator[tuple[str, Any]]:
        """Inputs of the decoder that do not depend on a pass's widths, by name."""
        yield from zip(("cos", "sin"), self.engine.rotary(positions), strict=True)
        for sequence in range(SEQUENCES):
            yield f"seqlen.{sequence}", wrap(self.seqlen[sequence])
            yield f"total.{sequence}", wrap(self.total[sequence])
            for layer in range(self.engine.bundle.manifest.dimensions.layers):
                yield f"past.{layer}.key.{sequence}", wrap(self.cache.k(layer, sequence))
                yield f"past.{layer}.value.{sequence}", wrap(self.cache.v(layer, sequence))

    def _bind_pass(self, count0: int, count1: int, _process: int) -> _Pass:
        """A forked child binds to sessions of its own."""
        binding = self.engine.session("decoder").io_binding()
        counts = count0, count1
        tokens = np.zeros((1, count0), np.int64), np.zeros((1, count1), np.int64)
        hidden = np.zeros((1, count0 + count1, self.selected.shape[2]), np.float32)
        for sequence in range(SEQUENCES):
            binding.bind_ortvalue_input(f"tokens.{sequence}", wrap(tokens[sequence]))
        for name, value in self.shared.items():
            binding.bind_ortvalue_input(name, value)
            if name.startswith("past."):
                binding.bind_ortvalue_output(name.replace("past.", "present.", 1), value)
        binding.bind_ortvalue_output("hidden", wrap(hidden))
        return _Pass(binding, tokens, hidden, [counts[0] - 1, sum(counts) - 1])

    def _bind_head(self, head: Head, _process: int) -> tuple[Any, NDArray[np.float32]]:
        vocabulary = self.engine.bundle.manifest.vocabulary
        binding = self.engine.session(f"head_{head}").io_binding()
        logits = np.zeros((1, SEQUENCES, vocabulary.codes if head == "image" else vocabulary.size), np.float32)
        binding.bind_ortvalue_input("hidden", wrap(self.selected))
        binding.bind_ortvalue_output("logits", wrap(logits))
        return binding, logits[0]


def wrap(array: NDArray[Any]) -> Any:
    """ONNX Runtime's view of an array: the same memory, which it keeps alive."""
    return onnxruntime().OrtValue.ortvalue_from_numpy(array)


KIND = EngineKind(name="cpu", order=1, lowering="cpu", on_gpu=False, element_bytes=4, load=CpuEngine, check=onnxruntime)
