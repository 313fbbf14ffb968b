"""Sequences whose caches, tokens and logits lie in the GPU's memory, whichever engine computes the passes.

As all that needs a GPU, it ran on none yet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mgpt_edge.runtime.bundle.folder import Bundle
    from mgpt_edge.runtime.engines.base import Head, Segment
    from mgpt_edge.runtime.engines.gpu.device import Buffer, Gpu
    from mgpt_edge.runtime.engines.gpu.kernels import Kernels

SEQUENCES = 2
FLOAT_BYTES, HALF_BYTES = 4, 2


class Context(Protocol):
    """A graph ready to run on arrays of the device."""

    def bind(self, addresses: dict[str, int]) -> None:
        """Where inputs and outputs lie, from now on."""

    def run(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Enqueues a run with inputs of these shapes."""

    def enqueue(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """As `run`, and never as a CUDA graph: for what is itself part of one."""


class DeviceEngine(Protocol):
    """An engine with such sequences."""

    bundle: Bundle
    gpu: Gpu
    lock: threading.Lock
    widest: int
    """Tokens a sequence of one pass."""
    kernels: Kernels | None
    """Ours, with which pictures draw themselves; without them each code goes through the host."""
    captures: bool
    """Whether passes may become part of a CUDA graph."""

    def tables(self, positions: int) -> dict[str, Buffer]:
        """cos and sin of at least so many positions."""


class DeviceSequences(ABC):
    """Two sequences' caches and the arrays of their passes; `engines.base.Sequences`.

    Args:
        engine: shared with others; its lock keeps a pass whole.
        capacities: tokens that each sequence's cache holds; what idles writes one past its end.
    """

    streams = 1

    def __init__(self, engine: DeviceEngine, capacities: tuple[int, int]) -> None:
        manifest, gpu = engine.bundle.manifest, engine.gpu
        d, self.engine, self.gpu, self.capacities = manifest.dimensions, engine, gpu, capacities
        self.lengths = [0] * SEQUENCES
        self.line = d.hidden_size * FLOAT_BYTES
        self.ids: dict[Head, int] = {"image": manifest.vocabulary.codes, "text": manifest.vocabulary.size}
        self.token_bytes = d.head_dim * HALF_BYTES
        self.heads = d.kv_heads
        names = [f"{layer}.{kind}" for layer in range(d.layers) for kind in ("key", "value")]
        self.sequence_bytes = [d.kv_heads * capacity * self.token_bytes for capacity in capacities]
        self.cache = {name: gpu.allocate(sum(self.sequence_bytes)) for name in names}
        self.tokens, self.spans = (
            gpu.pinned((SEQUENCES * engine.widest,), np.int32),
            gpu.pinned((2, SEQUENCES), np.int32),
        )
        self.fed, self.places = gpu.allocate(self.tokens.nbytes), gpu.allocate(self.spans.nbytes)
        self.starts = self.places.address  # of each sequence, its tokens before a pass
        self.ends = self.starts + self.spans[0].nbytes  # and after it
        self.hidden, self.selected = (gpu.allocate(SEQUENCES * engine.widest * self.line) for _ in range(2))
        self.logits: dict[Head, tuple[NDArray[np.float32], Buffer]] = {}
        self.tables = engine.tables(max(capacities))
        self._decoders = [self.decoder(profile) for profile in (0, 1)]
        self._heads: dict[tuple[Head, int], Context] = {}

    @abstractmethod
    def context(self, graph: str, profile: int) -> Context:
        """A new one, for one token of each sequence (0) or for others (1)."""

    def decoder(self, profile: int) -> Context:
        """A context of the decoder that reads and writes the sequences' arrays."""
        context = self.context("decoder", profile)
        context.bind({"tokens": self.fed.address, "lengths": self.starts, "hidden": self.hidden.address})
        context.bind({name: table.address for name, table in self.tables.items()})
        self._bind_cache(context)
        return context

    def _bind_cache(self, context: Context) -> None:
        """The decoder writes the new keys and values where they belong."""
        for name, block in self.cache.items():
            context.bind({f"past.{name}": block.address, f"present.{name}": block.address})

    def length(self, sequence: int) -> int:
        return self.lengths[sequence]

    def forward(self, feeds: Sequence[Segment], head: Head) -> list[NDArray[np.float32]]:
        ends = list(accumulate(fed.last for fed in feeds))
        with self.engine.lock:
            out, address = self._out(head, ends[-1])
            start = 0
            while start < max(len(fed.tokens) for fed in feeds):
                widths = self.widths(feeds, start)
                self._run(feeds, start, widths)
                self._read(feeds, start, widths, head, out, address)
                start += max(widths)
        return [out[end - fed.last : end] for fed, end in zip(feeds, ends, strict=True)]

    @abstractmethod
    def widths(self, feeds: Sequence[Segment], start: int) -> tuple[int, ...]:
        """Tokens of each sequence in the pass that begins with the tokens at `start`, at least 1."""

    def _run(self, feeds: Sequence[Segment], start: int, widths: tuple[int, ...]) -> None:
        """One pass of the decoder; a sequence with fewer tokens computes others after them, which nothing counts."""
        tokens = self.tokens[: sum(widths)]
        tokens[:] = 0
        parts = [(fed.sequence, fed.tokens[start : start + widths[fed.sequence]]) for fed in feeds]
        for sequence, part in parts:
            first = sum(widths[:sequence])
            tokens[first : first + len(part)] = part
        self.gpu.upload(tokens, self.fed.address)
        self.upload_lengths({sequence: len(part) for sequence, part in parts})
        self._decoders[max(widths) > 1].run(self.shapes(widths))
        self.place(max(widths))
        for sequence, part in parts:
            self.lengths[sequence] += len(part)

    def upload_lengths(self, fed: dict[int, int]) -> None:
        """Tokens of each sequence before a pass, and after one that is fed so many of some."""
        self.spans.T[:] = [(length, length + fed.get(sequence, 0)) for sequence, length in enumerate(self.lengths)]
        self.gpu.upload(self.spans, self.starts)

    @abstractmethod
    def shapes(self, widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Of what the decoder takes."""

    def head_shapes(self, count: int) -> dict[str, tuple[int, ...]]:
        """Of what a head takes for the logits of so many tokens."""
        return {"hidden": (1, count, self.line // FLOAT_BYTES)}

    def place(self, width: int) -> None:  # noqa: B027
        """Enqueues what brings a pass' keys and values into the cache: nothing, they are there."""

    def _read(
        self,
        feeds: Sequence[Segment],
        start: int,
        widths: tuple[int, ...],
        head: Head,
        out: NDArray[np.float32],
        address: int,
    ) -> None:
        """The wanted logits of one pass into their places in `out`."""
        spans, first = [], 0  # of each sequence: lines of the hidden states, and the first place in `out`
        for fed in feeds:
            end = min(len(fed.tokens), start + widths[fed.sequence])
            begin = max(len(fed.tokens) - fed.last, start)
            if begin < end:
                place = first + begin - (len(fed.tokens) - fed.last)
                spans.append((sum(widths[: fed.sequence]) + begin - start, end - begin, place))
            first += fed.last
        if spans:
            count = sum(lines for _, lines, _ in spans)
            context = self._head(head, count)
            context.bind({"hidden": self._gather(spans), "logits": address})
            context.run(self.head_shapes(count))
            done = 0
            for _, lines, place in spans:
                self.gpu.download(address + done * out[0].nbytes, out[place : place + lines])
                done += lines
        self.gpu.wait()  # the next pass writes the arrays of this one

    def _gather(self, spans: Sequence[tuple[int, int, int]]) -> int:
        """Address of the wanted lines, one after another: where they are, if they are so already."""
        lines = [line for first, count, _ in spans for line in range(first, first + count)]
        if lines == list(range(lines[0], lines[0] + len(lines))):
            return self.hidden.address + lines[0] * self.line
        done = 0
        for first, count, _ in spans:
            source, target = self.hidden.address + first * self.line, self.selected.address + done * self.line
            self.gpu.copy(source, target, count * self.line)
            done += count
        return self.selected.address

    def _head(self, head: Head, count: int) -> Context:
        profile = int(count != SEQUENCES)
        if (head, profile) not in self._heads:
            self._heads[head, profile] = self.context(f"head_{head}", profile)
        return self._heads[head, profile]

    def _out(self, head: Head, wanted: int) -> tuple[NDArray[np.float32], int]:
        """Room for logits here and on the device; it grows to what the largest pass wants."""
        if head not in self.logits or len(self.logits[head][0]) < wanted:
            out = self.gpu.pinned((wanted, self.ids[head]), np.float32)
            self.logits[head] = out, self.gpu.allocate(out.nbytes)
        out, buffer = self.logits[head]
        return out[:wanted], buffer.address

    def rollback(self, sequence: int, length: int) -> None:
        self.lengths[sequence] = length

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        for block in self.cache.values():
            places = [
                (block.address + sum(self.sequence_bytes[:sequence]), self.capacities[sequence] * self.token_bytes)
                for sequence in (source, target)
            ]
            self.gpu.copy_lines(places[0], places[1], length * self.token_bytes, self.heads)
        self.gpu.wait()
        self.lengths[target] = length
