"""What one guided image token costs: our engines, the family's own loop, and the least that memory allows.

mgpt bench step [--shape 375m] [--context 600] [--rounds 15] [--threads N] [--json]

Random weights, two rows, one new token each. All sides take turns in one process, round by round; medians, and the
median of each round's ratio to the native engine. Where an engine takes several streams, a pass of four pictures' rows
is timed too. The reference is what the family runs: transformers' inner Chameleon,
a batch-1 pass a row, a cache that grows, guidance and top-k in PyTorch.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer
from transformers import DynamicCache

from mgpt_edge.bench.peers import chameleon
from mgpt_edge.bench.random_checkpoint import SHAPES, write_checkpoint
from mgpt_edge.bench.roofline import PRECISIONS, Decode, Precision
from mgpt_edge.bench.spread import summary
from mgpt_edge.export.bundle import export_bundle
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.runtime import memory
from mgpt_edge.runtime._native import read_bandwidth
from mgpt_edge.runtime.engines import load_engine
from mgpt_edge.runtime.engines.base import Fed
from mgpt_edge.runtime.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mgpt_edge.runtime.engines.base import Engine

    Step = Callable[[], None]

GUIDANCE, TOP_K = 3.0, 2000
STREAMS = 4
SIDES = {
    "native, int8": (PRECISIONS["int8"], 1, 1),
    f"native, int8, {STREAMS} streams": (PRECISIONS["int8"], 1, STREAMS),
    "native, int4": (PRECISIONS["int4"], 1, 1),
    f"native, int4, {STREAMS} streams": (PRECISIONS["int4"], 1, STREAMS),
    "cpu, int8": (Precision(8, 4), 1, 1),
    "reference loop, float32": (Precision(32, 4), 2, 1),
    "reference loop, bfloat16": (Precision(16, 2), 2, 1),
}
"""What each holds its numbers in, how many passes a step takes, and the streams that share it."""


def step(
    shape: Annotated[str, typer.Option(help="One of the random checkpoints' shapes.")] = "375m",
    context: Annotated[int, typer.Option(min=1, help="Tokens that both rows hold already.")] = 600,
    rounds: Annotated[int, typer.Option(min=1)] = 15,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure a guided step of every side."""
    cores = threads or memory.physical_cores()
    torch.set_num_threads(cores)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder) / "checkpoint", SHAPES[shape], vq=False)
        checkpoint = Checkpoint.open(Path(folder) / "checkpoint")
        sides = dict(engines(checkpoint, Path(folder), context, cores))
        sides |= dict(_references(checkpoint, context))
        decode = Decode(checkpoint.config, checkpoint.vocabulary.codes, PRECISIONS["int8"])
        facts = measure(sides, rounds, decode.step_bytes(context), cores)
        for name, side in facts["sides"].items():
            side.update(_work(checkpoint, name, context))
    if as_json:
        print(json.dumps({"shape": shape, "context": context, "threads": cores, **facts}))
        return
    print(f"{shape}, two rows, context {context}, {cores} threads; memory reads {facts['read_gb_s']:.1f} GB/s")
    for name, side in facts["sides"].items():
        print(f"{name:28} {side['ms']:8.2f} ms  {side['times_native']:6.2f} x native")
    print(f"least time for the int8 bytes {facts['least_ms']:.2f} ms: {facts['native_share']:.0%} of the native step")


BUNDLES = (("native", "int8"), ("native", "int4"), ("cpu", "int8"))
"""Engine and precision of what is measured beside the references."""


def engines(
    checkpoint: Checkpoint, folder: Path, context: int, threads: int, bundles: Sequence[tuple[str, str]] = BUNDLES
) -> Iterator[tuple[str, Step]]:
    """Each bundle, made in `folder`, and where its engine takes several streams, several of them."""
    low, high = checkpoint.vocabulary.code_range
    tokens = np.random.default_rng(0).integers(low, high, context).tolist()
    sampler = Sampler(GUIDANCE, TOP_K, 1.0, 0)
    for name, precision in bundles:
        bundle = export_bundle(checkpoint, folder / f"{name}-{precision}", precision=precision, engine=name)
        engine = load_engine(bundle, threads)
        yield f"{name}, {precision}", _step(engine, 1, tokens, sampler, low, high)
        if engine.most_streams >= STREAMS:
            yield f"{name}, {precision}, {STREAMS} streams", _step(engine, STREAMS, tokens, sampler, low, high)


def _work(checkpoint: Checkpoint, name: str, context: int) -> dict[str, float]:
    """Operations of a step that draws a code for each stream, and the bytes that this side reads for it at least."""
    precision, passes, streams = SIDES[name]
    decode = Decode(checkpoint.config, checkpoint.vocabulary.codes, precision)
    cache = decode.step_bytes(context) - decode.weight_bytes
    return {
        "operations": streams * decode.step_operations(context),
        "bytes": passes * decode.weight_bytes + streams * cache,
    }


def _step(engine: Engine, streams: int, tokens: list[int], sampler: Sampler, low: int, high: int) -> Step:
    """One guided code of each stream, behind `tokens`."""
    context = len(tokens)
    rows, every = engine.open((context + 8, context + 8), streams), range(2 * streams)
    for start in range(0, context, 64):
        rows.forward([Fed(row, tokens[start : start + 64]) for row in every], "image")

    def run() -> None:
        logits = rows.forward([Fed(row, [low]) for row in every], "image")
        for cond, uncond in zip(logits[::2], logits[1::2], strict=True):
            sampler(cond[0], uncond[0], low, low, high, context)
        for row in every:
            rows.rollback(row, context)

    return run


@torch.inference_mode()
def _references(checkpoint: Checkpoint, context: int) -> Iterator[tuple[str, Step]]:
    low, high = checkpoint.vocabulary.code_range
    tokens = torch.from_numpy(np.random.default_rng(0).integers(low, high, (1, context)))
    for dtype in (torch.float32, torch.bfloat16):
        model, head = chameleon(checkpoint, dtype)
        caches = [DynamicCache(config=model.config) for _ in range(2)]
        for cache in caches:
            model(input_ids=tokens, past_key_values=cache, use_cache=True)

        def run(model: Any = model, head: Any = head, caches: Any = caches) -> None:
            with torch.inference_mode():
                token = torch.tensor([[low]])
                logits = [
                    (model(input_ids=token, past_key_values=cache, use_cache=True).last_hidden_state[:, -1] @ head.T)
                    for cache in caches
                ]
                cond, uncond = (row.float() for row in logits)
                guided = uncond + GUIDANCE * (cond - uncond)
                allowed = torch.full_like(guided, -torch.inf)
                allowed[:, low:high] = guided[:, low:high]
                kept = allowed.masked_fill(allowed < allowed.topk(min(TOP_K, high - low)).values[:, -1:], -torch.inf)
                torch.multinomial(kept.softmax(1), 1)
                for cache in caches:
                    cache.crop(-1)  # the token of this step

        yield f"reference loop, {str(dtype).removeprefix('torch.')}", run


def measure(sides: dict[str, Step], rounds: int, least: float, threads: int) -> dict[str, Any]:
    """Median milliseconds of each side, its ratio to the native engine round by round, and the memory's own speed."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    bandwidths = []
    for number in range(rounds + 2):
        bandwidth = 1e9 * read_bandwidth(1 << 29, threads, 0.15)
        for name, run in sides.items():
            run()  # the step before was another side's: caches hold its weights
            started = time.perf_counter()
            run()
            if number >= 2:
                seconds[name].append(time.perf_counter() - started)
        if number >= 2:
            bandwidths.append(bandwidth)
    native = seconds["native, int8"]
    shares = [least / bandwidth / took for bandwidth, took in zip(bandwidths, native, strict=True)]
    return {
        **summary("read_gb_s", [bandwidth / 1e9 for bandwidth in bandwidths]),
        "least_ms": statistics.median(least / bandwidth for bandwidth in bandwidths) * 1e3,
        **summary("native_share", shares),
        "sides": {
            name: {
                **summary("ms", [1e3 * one for one in taken]),
                **summary("times_native", [a / b for a, b in zip(taken, native, strict=True)]),
            }
            for name, taken in seconds.items()
        },
    }
