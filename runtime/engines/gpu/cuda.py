"""ONNX Runtime on the GPU: its runs are enqueued on our stream, over arrays that lie on the device.

What is particular to the GPU ran nowhere yet; the rest is `sequences`' and `graphs`'.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mgpt_edge.runtime.engines.gpu.device import Gpu
from mgpt_edge.runtime.engines.gpu.kernels import kernels_if_built
from mgpt_edge.runtime.engines.gpu.picture import DrawingSequences
from mgpt_edge.runtime.engines.gpu.sequences import SEQUENCES
from mgpt_edge.runtime.engines.graphs import Graphs, onnxruntime
from mgpt_edge.runtime.engines.kind import EngineKind
from mgpt_edge.runtime.errors import IncompatibleEngine
from mgpt_edge.runtime.family.rotary import rotary_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mgpt_edge.runtime.bundle.folder import Bundle
    from mgpt_edge.runtime.bundle.manifest import Dimensions
    from mgpt_edge.runtime.engines.base import Segment
    from mgpt_edge.runtime.engines.gpu.device import Buffer

PROVIDER = "CUDAExecutionProvider"
ID_BYTES = 4


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


class CudaEngine(Graphs):
    """The graphs of a `cuda` bundle.

    Args:
        bundle: opened, of engine "cuda".
        threads: of what is left on the CPU.

    Raises:
        IncompatibleEngine: no GPU, or an ONNX Runtime that does not run on it.
    """

    device, provider = "cuda", PROVIDER
    most_streams, widest = 1, 512
    captures = False  # attention reads how long a sequence is from the host's memory at each launch

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.gpu = Gpu()
        check_provider(self.gpu, self.provider)
        self.providers = self._providers()
        super().__init__(bundle, threads)
        self.kernels = kernels_if_built(self.gpu)
        self._tables: tuple[int, dict[str, Buffer]] = 0, {}
        self._no_wait = onnxruntime().RunOptions()
        self._no_wait.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._check_inputs()

    def _providers(self) -> list[Any]:
        """Memory is taken as it is needed: by default it grows by powers of two, beyond what `mgpt estimate` says."""
        options = {"arena_extend_strategy": "kSameAsRequested", "user_compute_stream": str(self.gpu.stream)}
        return [(PROVIDER, {"device_id": 0, **options}), "CPUExecutionProvider"]

    def session(self, name: str) -> Any:
        session = super().session(name)
        # Where its libraries can't be loaded, ONNX Runtime takes the CPU.
        check_provider(self.gpu, self.provider, session.get_providers())
        return session

    def _check_inputs(self) -> None:
        """Whether the decoder reads its inputs on the device; all but the lengths that attention reads here."""
        session = self.session("decoder")
        places = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
        elsewhere = (x.name for x, place in places if place.name.lower() != self.device)
        wrong = sorted(name for name in elsewhere if not name.startswith("total."))
        if wrong or any(x.name == "tokens.0" and x.type != "tensor(int32)" for x in session.get_inputs()):
            what = f"reads {', '.join(wrong)} elsewhere than on {self.gpu.name}" if wrong else "takes tokens of int64"
            msg = (
                f"the decoder of {self.bundle.folder} {what} (onnxruntime {onnxruntime().__version__}); "
                "export it again, and take the newest ONNX Runtime: pip install -U 'mgpt-edge[cuda]'"
            )
            raise IncompatibleEngine(msg)

    def free_bytes(self) -> int:
        return self.gpu.free_bytes()

    def open(self, capacities: tuple[int, int], streams: int = 1) -> CudaSequences:
        if streams != 1:
            msg = f"the graphs of engine 'cuda' have the sequences of one stream, not of {streams}"
            raise ValueError(msg)
        return CudaSequences(self, (capacities[0] + 1, capacities[1] + 1))

    def tables(self, positions: int) -> dict[str, Buffer]:
        if self._tables[0] < positions:
            d = self.bundle.manifest.dimensions
            tables = zip(("cos", "sin"), rotary_tables(positions, d.head_dim, d.rope_theta), strict=True)
            self._tables = positions, {name: self.gpu.constant(table.astype(np.float16)) for name, table in tables}
        return self._tables[1]

    def enqueue(self, graph: str, binding: Any) -> None:
        """Starts a run; nothing waits for it but what comes behind it on the stream."""
        self.session(graph).run_with_iobinding(binding, self._no_wait)


class CudaSequences(DrawingSequences):
    """Sequences whose passes ONNX Runtime computes."""

    engine: CudaEngine

    def context(self, graph: str, _profile: int) -> CudaContext:
        return CudaDecoder(self) if graph == "decoder" else CudaHead(self, graph)

    def widths(self, feeds: Sequence[Segment], start: int) -> tuple[int, ...]:
        """What each sequence is fed, and of what idles a token."""
        left = {fed.sequence: len(fed.tokens) - start for fed in feeds}
        return tuple(min(max(left.get(sequence, 0), 1), self.engine.widest) for sequence in range(SEQUENCES))

    def shapes(self, widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"tokens": widths}


class CudaContext(ABC):
    """A graph over arrays of the device; `sequences.Context`.

    Arrays are bound by their addresses: of one in this process' memory ONNX Runtime would take a copy when it is bound,
    and none at a run.
    """

    def __init__(self, sequences: CudaSequences, graph: str) -> None:
        # The sequences own this: were it to hold them, or itself, their memory would wait for the garbage collector.
        self.sequences: CudaSequences = weakref.proxy(sequences)
        self.engine, self.graph = sequences.engine, graph
        self.addresses: dict[str, int] = {}
        self._binding = lru_cache(maxsize=8)(partial(type(self).bound, weakref.proxy(self)))  # by what a pass takes

    def bind(self, addresses: dict[str, int]) -> None:
        if any(self.addresses.get(name) != address for name, address in addresses.items()):
            self.addresses.update(addresses)
            self._binding.cache_clear()

    def run(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.enqueue(shapes)

    @abstractmethod
    def enqueue(self, shapes: dict[str, tuple[int, ...]]) -> None: ...

    @abstractmethod
    def bound(self, counts: tuple[int, ...]) -> Any:
        """Every input and output, for a pass over so many tokens."""

    def _place(self, dtype: type[np.generic], shape: tuple[int, ...], address: int) -> tuple[Any, ...]:
        """What says of an array where it is."""
        return self.engine.device, 0, dtype, shape, address


class CudaHead(CudaContext):
    """A head: hidden states -> logits."""

    def enqueue(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.engine.enqueue(self.graph, self._binding(shapes["hidden"][:2]))

    def bound(self, counts: tuple[int, ...]) -> Any:
        binding = self.engine.session(self.graph).io_binding()
        ids = self.sequences.ids["image" if self.graph == "head_image" else "text"]
        width = self.engine.bundle.manifest.dimensions.hidden_size
        binding.bind_input("hidden", *self._place(np.float32, (*counts, width), self.addresses["hidden"]))
        binding.bind_output("logits", *self._place(np.float32, (*counts, ids), self.addresses["logits"]))
        return binding


class CudaDecoder(CudaContext):
    """The decoder: tokens of each of two sequences, the cache updated where it lies."""

    def __init__(self, sequences: CudaSequences) -> None:
        super().__init__(sequences, "decoder")
        self.totals = [np.zeros((), np.int32) for _ in range(SEQUENCES)]
        self.last = sequences.gpu.pinned((SEQUENCES,), np.int32)
        self.last_on_device = sequences.gpu.allocate(self.last.nbytes)

    def enqueue(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Attention wants two lengths: of each sequence its tokens after the pass, and, on the device, one less."""
        widths = shapes["tokens"]
        for total, length, width in zip(self.totals, self.sequences.lengths, widths, strict=True):
            total[()] = length + width
        if max(widths) > 1:
            self.last[:] = [total - 1 for total in self.totals]
            self.sequences.gpu.upload(self.last, self.last_on_device.address)
        self.engine.enqueue("decoder", self._binding(widths))

    def bound(self, counts: tuple[int, ...]) -> Any:
        binding, d, at = self.engine.session("decoder").io_binding(), self._dimensions, self.addresses
        # Of a single new token "one less" is what the sequence held before: the kernel that draws writes it.
        last = at["lengths"] if max(counts) == 1 else self.last_on_device.address
        for sequence, count in enumerate(counts):
            tokens = at["tokens"] + sum(counts[:sequence]) * ID_BYTES
            binding.bind_input(f"tokens.{sequence}", *self._place(np.int32, (1, count), tokens))
            binding.bind_input(f"seqlen.{sequence}", *self._place(np.int32, (1,), last + sequence * ID_BYTES))
            total = onnxruntime().OrtValue.ortvalue_from_numpy(self.totals[sequence])
            binding.bind_ortvalue_input(f"total.{sequence}", total)
            for name in self.sequences.cache:
                shape = 1, d.kv_heads, self.sequences.capacities[sequence], d.head_dim
                place = self._place(
                    np.float16, shape, at[f"past.{name}"] + sum(self.sequences.sequence_bytes[:sequence])
                )
                binding.bind_input(f"past.{name}.{sequence}", *place)
                binding.bind_output(f"present.{name}.{sequence}", *place)
        for name in ("cos", "sin"):
            table = self._place(np.float16, (max(self.sequences.capacities), d.head_dim // 2), at[name])
            binding.bind_input(name, *table)
        binding.bind_output("hidden", *self._place(np.float32, (1, sum(counts), d.hidden_size), at["hidden"]))
        return binding

    @property
    def _dimensions(self) -> Dimensions:
        return self.engine.bundle.manifest.dimensions


KIND = EngineKind(
    name="cuda",
    order=3,
    lowering="cuda",
    on_gpu=True,
    element_bytes=2,
    load=CudaEngine,
    check=lambda: check_provider(Gpu()),
)
