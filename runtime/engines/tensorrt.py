"""TensorRT: plans, caches and logits in the GPU's memory; tokens go there and logits come back.

As its parts (`plans`, `gpu`), it ran on no GPU yet.
"""

from __future__ import annotations

import threading
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from mgpt_edge.runtime.engines.kernels import Kernels
from mgpt_edge.runtime.engines.picture_loop import PictureLoop
from mgpt_edge.runtime.engines.plans import Plans
from mgpt_edge.runtime.errors import IncompatibleEngine, OutOfMemory
from mgpt_edge.runtime.rotary import rotary_tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mgpt_edge.runtime.bundle import Bundle
    from mgpt_edge.runtime.engines.base import Drawing, Fed, Head
    from mgpt_edge.runtime.engines.plans import Chain, Context
    from mgpt_edge.runtime.gpu import Buffer

ROWS = 2
WIDEST = {"rtx": 512, "tensorrt": 512, "tensorrt10": 64}
"""Tokens a row of one pass, as compiled: where new keys and values are outputs, each takes memory."""
FLOAT_BYTES, HALF_BYTES = 4, 2


class TensorRtEngine:
    """A bundle that was built for this machine's GPU.

    Args:
        bundle: opened, of engine "rtx" or "tensorrt".
        threads: unused, no pass runs on the CPU.

    Raises:
        IncompatibleEngine: no GPU, no TensorRT, or no plan for them.
    """

    most_streams = 1

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.widest = WIDEST[bundle.manifest.engine]
        self.bundle, self.threads, self.lock = bundle, threads, threading.Lock()
        self.plans = Plans(bundle)
        self._contexts: dict[tuple[str, int], Context | Chain] = {}
        self.gpu = self.plans.gpu
        self.kernels = self._kernels()
        self.capacity = int(self.plans.engines("decoder")[0].get_tensor_shape("past.0.key")[2])
        self.most_tokens = self.capacity - 1  # what idles writes a token past its end
        d = bundle.manifest.dimensions
        self.tables = {}
        for name, table in zip(("cos", "sin"), rotary_tables(self.capacity, d.head_dim, d.rope_theta), strict=True):
            self.tables[name] = self.gpu.allocate(table.nbytes)
            self.gpu.upload(table, self.tables[name].address)
            self.gpu.wait()

    def _kernels(self) -> Kernels | None:
        """Ours, with which pictures draw themselves; without them each code goes through the host."""
        try:
            return Kernels(self.gpu)
        except IncompatibleEngine:
            return None

    def free_bytes(self) -> int:
        return self.gpu.free_bytes()

    def open(self, capacities: tuple[int, int], streams: int = 1) -> TensorRtRows:
        if streams != 1:
            msg = f"plans have the rows of one stream, not of {streams}"
            raise ValueError(msg)
        if max(capacities) > self.most_tokens:
            msg = (
                f"{max(capacities)} tokens wanted, the plans of {self.bundle.folder} hold {self.most_tokens}; "
                "a larger --target-size at mgpt export gives them room"
            )
            raise OutOfMemory(msg)
        return self._rows()

    def _rows(self) -> TensorRtRows:
        return TensorRtRows(self)

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


class TensorRtRows:
    """Two rows' caches and the arrays of their passes; `engines.base.Rows`.

    Args:
        engine: shared with others; its lock keeps a pass whole.
    """

    streams = 1

    def __init__(self, engine: TensorRtEngine) -> None:
        manifest, gpu = engine.bundle.manifest, engine.gpu
        d, self.engine, self.gpu = manifest.dimensions, engine, gpu
        self.lengths = [0] * ROWS
        self.line = d.hidden_size * FLOAT_BYTES
        self.ids: dict[Head, int] = {"image": manifest.vocabulary.codes, "text": manifest.vocabulary.size}
        self.token_bytes = d.head_dim * HALF_BYTES
        self.heads = d.kv_heads
        names = [f"{layer}.{kind}" for layer in range(d.layers) for kind in ("key", "value")]
        cache_bytes = ROWS * d.kv_heads * engine.capacity * self.token_bytes
        self.cache = {name: gpu.allocate(cache_bytes) for name in names}
        self.tokens, self.spans = gpu.pinned((ROWS * engine.widest,), np.int32), gpu.pinned((2, ROWS), np.int32)
        self.fed, self.places = gpu.allocate(self.tokens.nbytes), gpu.allocate(self.spans.nbytes)
        self.starts = self.places.address  # of each row, its tokens before a pass
        self.ends = self.starts + self.spans[0].nbytes  # and after it
        self.hidden, self.selected = (gpu.allocate(ROWS * engine.widest * self.line) for _ in range(2))
        self.logits: dict[Head, tuple[NDArray[np.float32], Buffer]] = {}
        self.between = {name: gpu.allocate(self.hidden.count) for name in engine.plans.residuals("decoder")}
        self._decoders = [self.decoder(profile) for profile in (0, 1)]
        self._heads: dict[tuple[Head, int], Context | Chain] = {}
        self._loop: PictureLoop | None = None

    def decoder(self, profile: int) -> Context | Chain:
        """A context of the decoder that reads and writes the rows' arrays."""
        context = self.engine.plans.context("decoder", profile)
        context.bind({name: buffer.address for name, buffer in self.between.items()})
        context.bind({"tokens": self.fed.address, "lengths": self.starts, "hidden": self.hidden.address})
        context.bind({name: table.address for name, table in self.engine.tables.items()})
        self._bind_cache(context)
        return context

    def _bind_cache(self, context: Context | Chain) -> None:
        """The decoder writes the new keys and values where they belong."""
        for name, block in self.cache.items():
            context.bind({f"past.{name}": block.address, f"present.{name}": block.address})

    def length(self, row: int) -> int:
        return self.lengths[row]

    def forward(self, feeds: Sequence[Fed], head: Head) -> list[NDArray[np.float32]]:
        ends = list(accumulate(fed.last for fed in feeds))
        with self.engine.lock:
            out, address = self._out(head, ends[-1])
            for start, width in self._passes(feeds):
                self._run(feeds, start, width)
                self._read(feeds, start, width, head, out, address)
        return [out[end - fed.last : end] for fed, end in zip(feeds, ends, strict=True)]

    def _passes(self, feeds: Sequence[Fed]) -> Iterator[tuple[int, int]]:
        """First token of each pass and how many a row it takes: no row may be written past the cache's end."""
        start, count = 0, max(len(fed.tokens) for fed in feeds)
        while start < count:
            width = min(count - start, self.engine.widest, self.engine.capacity - max(self.lengths))
            yield start, width
            start += width

    def _run(self, feeds: Sequence[Fed], start: int, width: int) -> None:
        """One pass of the decoder; a row with fewer tokens computes others after them, which nothing counts."""
        tokens = self.tokens[: ROWS * width].reshape(ROWS, width)
        tokens[:] = 0
        parts = [(fed.row, fed.tokens[start : start + width]) for fed in feeds]
        for row, part in parts:
            tokens[row, : len(part)] = part
        self.gpu.upload(tokens, self.fed.address)
        self.upload_lengths({row: len(part) for row, part in parts})
        self._decoders[width > 1].run(self.shapes(width))
        self.place(width)
        for row, part in parts:
            self.lengths[row] += len(part)

    def upload_lengths(self, fed: dict[int, int]) -> None:
        """Tokens of each row before a pass, and after one that is fed so many of some."""
        self.spans.T[:] = [(length, length + fed.get(row, 0)) for row, length in enumerate(self.lengths)]
        self.gpu.upload(self.spans, self.starts)

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Of what the decoder takes."""
        passed = dict.fromkeys(self.between, (ROWS, width, self.line // FLOAT_BYTES))
        return {"tokens": (ROWS, width), "lengths": (ROWS,), **passed}

    def head_shapes(self, count: int) -> dict[str, tuple[int, ...]]:
        """Of what a head takes for the logits of so many tokens."""
        return {"hidden": (1, count, self.line // FLOAT_BYTES)}

    def place(self, width: int) -> None:
        """Enqueues what brings a pass' keys and values into the cache: nothing, they are there."""

    def _read(
        self, feeds: Sequence[Fed], start: int, width: int, head: Head, out: NDArray[np.float32], address: int
    ) -> None:
        """The wanted logits of one pass into their places in `out`."""
        spans, first = [], 0  # of each row: lines of the hidden states, and the first place in `out`
        for fed in feeds:
            end = min(len(fed.tokens), start + width)
            begin = max(len(fed.tokens) - fed.last, start)
            if begin < end:
                place = first + begin - (len(fed.tokens) - fed.last)
                spans.append((fed.row * width + begin - start, end - begin, place))
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

    def _head(self, head: Head, count: int) -> Context | Chain:
        """The first profile is for one token of each row."""
        profile = int(count != ROWS)
        if (head, profile) not in self._heads:
            self._heads[head, profile] = self.engine.plans.context(f"head_{head}", profile)
        return self._heads[head, profile]

    def _out(self, head: Head, wanted: int) -> tuple[NDArray[np.float32], int]:
        """Room for logits here and on the device; it grows to what the largest pass wants."""
        if head not in self.logits or len(self.logits[head][0]) < wanted:
            out = self.gpu.pinned((wanted, self.ids[head]), np.float32)
            self.logits[head] = out, self.gpu.allocate(out.nbytes)
        out, buffer = self.logits[head]
        return out[:wanted], buffer.address

    @property
    def drawer(self) -> TensorRtRows | None:
        return self if self.engine.kernels is not None else None

    def draw(self, drawing: Drawing) -> list[int]:
        """As `engines.base.Drawer`."""
        assert self.engine.kernels is not None
        with self.engine.lock:
            if self._loop is None:
                self._loop = PictureLoop(self, self.engine.kernels)
            return self._loop.draw(self, drawing)

    def rollback(self, row: int, length: int) -> None:
        self.lengths[row] = length

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        pitch = self.engine.capacity * self.token_bytes
        for block in self.cache.values():
            first = [(block.address + row * self.heads * pitch, pitch) for row in (source, target)]
            self.gpu.copy_lines(first[0], first[1], length * self.token_bytes, self.heads)
        self.gpu.wait()
        self.lengths[target] = length
