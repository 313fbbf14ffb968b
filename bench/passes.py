"""How long a pass takes by its number of guesses, kept for the adaptive window (--speculate auto) to start from."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

import mgpt_edge
from mgpt_edge.runtime.decoding.costs import PassCosts
from mgpt_edge.runtime.decoding.window import WIDTHS
from mgpt_edge.runtime.engines.base import Segment
from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.machine import processor
from mgpt_edge.runtime.sampling.sampler import Sampler

if TYPE_CHECKING:
    from mgpt_edge.runtime.model import Model

PROMPT_TOKENS = 32
ROUNDS = 15


def passes(
    model: Annotated[Path | None, typer.Option(help="Bundle; the small model unless given.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure, print and keep the costs of one bundle on this machine."""
    measured = measure(mgpt_edge.load(model))
    path = measured.save()
    if as_json:
        print(json.dumps({"path": str(path), **asdict(measured)}))
        return
    print(f"{measured.machine}, {measured.threads} threads, context {measured.context}")
    for width, seconds in measured.seconds.items():
        print(f"{width:3} guesses  {1000 * seconds:8.3f} ms  {seconds / measured.seconds[0]:6.2f} x")
    print(f"kept in {path}")


def measure(model: Model) -> PassCosts:
    """Times passes of a guided stream half through a picture of the model's own size, and the drawing of their guesses.

    Raises:
        InvalidRequest: the bundle's pictures depend on the window, so that none is chosen by itself.
    """
    if not model.manifest.width_invariant:
        msg = f"{model.bundle.folder}: --speculate auto never guesses with it, since its pictures depend on the window"
        raise InvalidRequest(msg)
    layout, bos = model.intake.usual, model.manifest.vocabulary.bos
    low, high = model.manifest.vocabulary.code_range
    usual = model.manifest.tasks["text-to-image"]
    sampler = Sampler(usual.guidance, usual.top_k, usual.temperature, 0)
    begun = len(layout) // 2
    held = PROMPT_TOKENS + begun, begun
    sequences = model.engine.open((held[0] + max(WIDTHS) + 1, held[1] + max(WIDTHS) + 1))
    sequences.forward([Segment(0, [bos] * PROMPT_TOKENS + [low] * begun), Segment(1, [low] * begun)], "image")
    cond, uncond = np.random.default_rng(0).normal(size=(2, high - low)).astype(np.float32)
    seconds: dict[int, list[float]] = {width: [] for width in WIDTHS}
    for _ in range(ROUNDS + 1):  # widths take turns; the first round warms up
        for width, times in seconds.items():
            started = time.perf_counter()
            guesses = [sampler(cond, uncond, low, low, high, position) for position in range(width)]
            tokens = [low, *guesses]
            sequences.forward([Segment(0, tokens, 1 + width), Segment(1, tokens, 1 + width)], "image")
            times.append(time.perf_counter() - started)
            for sequence in (0, 1):
                sequences.rollback(sequence, held[sequence])
    return PassCosts(
        bundle=model.bundle.digest,
        threads=model.engine.threads,
        context=held[0],
        # The fastest of each: whatever makes a pass slower is other work.
        seconds={width: min(times[1:]) for width, times in seconds.items()},
        machine=processor(),
    )
