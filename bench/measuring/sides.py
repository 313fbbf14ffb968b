"""A guided code of random weights: our engines, and how any number of sides are timed against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mgpt_edge.bench.measuring.spread import summary
from mgpt_edge.bench.models.roofline import PRECISIONS, Decode, Precision
from mgpt_edge.export.bundle import export_bundle
from mgpt_edge.runtime._native import read_bandwidth
from mgpt_edge.runtime.engines import load_engine
from mgpt_edge.runtime.engines.base import Segment
from mgpt_edge.runtime.sampling.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.runtime.engines.base import Engine

Step = Callable[[], None]

GUIDANCE, TOP_K = 3.0, 2000
STREAMS = 4
ROOM = 8  # tokens that a cache holds beyond the context
REST = 0.1  # seconds until threads of peers that spin after a step have gone to sleep; genai's take half of that
BUNDLES = {
    ("native", "int8"): (PRECISIONS["int8"], "our decoder: int8 weights, 8-bit activations and K/V"),
    ("native", "int4"): (PRECISIONS["int4"], "our decoder: int4 weights, 8-bit activations and K/V"),
    ("cpu", "int8"): (Precision(8, 4), "our graph in ONNX Runtime: int8 weights and activations, float32 K/V"),
}
"""By engine and precision: what it holds its numbers in."""
BASE_BUNDLE = "native", "int8"
BASE = ", ".join(BASE_BUNDLE)
"""The side that the others are ratios to."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """What every side does: one guided code behind so many tokens of both sequences.

    Attributes:
        checkpoint: whose dimensions and, as far as a side has a place for them, whose weights.
        folder: for what a side writes.
        context: tokens in both sequences.
        threads: of every side.
    """

    checkpoint: Checkpoint
    folder: Path
    context: int
    threads: int

    @property
    def codes(self) -> NDArray[np.int64]:
        """The context, counted from the first image code."""
        return np.random.default_rng(0).integers(0, self.checkpoint.vocabulary.codes, self.context)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way to a guided code.

    Attributes:
        step: draws a code of each stream, and forgets it.
        precision: of the weights and of the cache.
        description: how it is set up.
        passes: in a step, each of which reads the weights.
        streams: that share a pass.
        peer: whether others wrote it.
    """

    step: Step
    precision: Precision
    description: str
    passes: int = 1
    streams: int = 1
    peer: bool = False

    def work(self, case: Case) -> dict[str, float]:
        """Operations of a step, and the bytes that it reads at least."""
        decode = Decode(case.checkpoint.config, case.checkpoint.vocabulary.codes, self.precision)
        cache = decode.step_bytes(case.context) - decode.weight_bytes
        return {
            "operations": self.streams * decode.step_operations(case.context),
            "bytes": self.passes * decode.weight_bytes + self.streams * cache,
        }


def ours(
    case: Case, bundles: Iterable[tuple[str, str]] = BUNDLES, streams: Sequence[int] = (1, STREAMS)
) -> Iterator[tuple[str, Side]]:
    """Each bundle with each number of streams that its engine takes."""
    for name, precision in bundles:
        held, description = BUNDLES[name, precision]
        bundle = export_bundle(case.checkpoint, case.folder / f"{name}-{precision}", precision=precision, engine=name)
        engine = load_engine(bundle, case.threads)
        for count in streams:
            if count <= engine.most_streams:
                title = f"{name}, {precision}" + (f", {count} streams" if count > 1 else "")
                step = _step(case, engine, count)
                yield title, Side(step=step, precision=held, description=description, streams=count)


def _step(case: Case, engine: Engine, streams: int) -> Step:
    low, high = case.checkpoint.vocabulary.code_range
    context, tokens = case.context, (low + case.codes).tolist()
    sequences, every = engine.open((context + ROOM, context + ROOM), streams), range(2 * streams)
    for start in range(0, context, 64):
        sequences.forward([Segment(sequence, tokens[start : start + 64]) for sequence in every], "image")
    sampler = Sampler(GUIDANCE, TOP_K, 1.0, 0)

    def step() -> None:
        logits = sequences.forward([Segment(sequence, [low]) for sequence in every], "image")
        for cond, uncond in zip(logits[::2], logits[1::2], strict=True):
            sampler(cond[0], uncond[0], low, low, high, context)
        for sequence in every:
            sequences.rollback(sequence, context)

    return step


def measure(case: Case, sides: dict[str, Side], rounds: int) -> dict[str, Any]:
    """Median milliseconds of each side, its ratio to the native engine round by round, and the memory's own speed."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    bandwidths = []
    for number in range(rounds + 2):
        bandwidth = 1e9 * read_bandwidth(1 << 29, case.threads, 0.15)
        for name, side in sides.items():
            time.sleep(REST)
            side.step()  # the step before was another side's: caches hold its weights
            started = time.perf_counter()
            side.step()
            if number >= 2:
                seconds[name].append(time.perf_counter() - started)
        if number >= 2:
            bandwidths.append(bandwidth)
    base, least = seconds[BASE], sides[BASE].work(case)["bytes"]
    shares = [least / bandwidth / took for bandwidth, took in zip(bandwidths, base, strict=True)]
    return {
        **summary("read_gb_s", [bandwidth / 1e9 for bandwidth in bandwidths]),
        "least_ms": statistics.median(least / bandwidth for bandwidth in bandwidths) * 1e3,
        **summary("native_share", shares),
        "sides": {name: _facts(case, side, seconds[name], base) for name, side in sides.items()},
    }


def _facts(case: Case, side: Side, seconds: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    return {
        "description": side.description,
        "peer": side.peer,
        **side.work(case),
        **summary("ms", [1e3 * took for took in seconds]),
        **summary("times_native", [took / other for took, other in zip(seconds, base, strict=True)]),
    }
