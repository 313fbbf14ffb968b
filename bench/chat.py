"""What a turn of a conversation costs: its new tokens, hardly what lies behind them, and no more in a longer cache.

mgpt bench chat --model BUNDLE [--rounds N] [--json]

Prints ratios: medians over rounds, what is compared measured in the same round.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from PIL import Image

import mgpt_edge
from mgpt_edge.bench.measuring.spread import summary
from mgpt_edge.runtime.engines.base import Segment

if TYPE_CHECKING:
    from mgpt_edge.runtime.chat import Chat
    from mgpt_edge.runtime.model import Model

QUESTION = "What is in front?"
NEW, PICTURES = (16, 64, 256), (0, 4)
"""Tokens of a turn, and pictures behind it, whose times are compared."""


def chat(
    model: Annotated[Path | None, typer.Option(help="Bundle that was trained to converse.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 20,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure first tokens of turns, and steps in a short and a long cache."""
    loaded = mgpt_edge.load(model)
    share, ratios = _turns(loaded, rounds)
    ratios |= _growth(loaded, rounds)
    ratios["time of a step: cache of 10000 / of 1000"] = _capacity(loaded, rounds)
    timed = {name: summary("ratio", every, 3) for name, every in ratios.items()}
    facts = {"tokens: second turn / conversation": round(share, 3), "times": timed}
    if as_json:
        print(json.dumps(facts))
        return
    print(f"{'tokens: second turn / conversation':46} {share:.3f}")
    for name, of in timed.items():
        print(f"{name:46} {of['ratio']:.3f}")


def _turns(model: Model, rounds: int) -> tuple[float, dict[str, list[float]]]:
    """A question after pictures were shown, against the same conversation computed anew: share of its tokens, times."""
    picture = _picture(model)
    first, second, anew, counts = [], [], [], (0, 0)
    for seed in range(rounds):
        conversation = model.chat(seed=seed, max_tokens=1, temperature=0.0)
        first.append(_first_token(conversation, "<|image|> <|image|> " + QUESTION, [picture, picture]))
        before = conversation.tokens_left
        second.append(_first_token(conversation, QUESTION, []))
        counts = before - conversation.tokens_left, conversation.context - conversation.tokens_left
        assert 0 < counts[0] < counts[1], "the first turn was taken back"
        fresh = model.chat(seed=seed, max_tokens=1, temperature=0.0)
        anew.append(_first_token(fresh, f"<|image|> <|image|> {QUESTION} {QUESTION}", [picture, picture]))
    return counts[0] / counts[1], {
        "time: second turn / computed anew": [a / b for a, b in zip(second, anew, strict=True)],
        "time: second turn / first turn": [a / b for a, b in zip(second, first, strict=True)],
    }


def _growth(model: Model, rounds: int) -> dict[str, list[float]]:
    """First tokens of turns of several lengths, at a conversation's beginning and behind pictures."""
    tokens, vocabulary = model.intake.look(_picture(model)), model.manifest.vocabulary
    seconds: dict[tuple[int, int], list[float]] = {(new, shown): [] for new in NEW for shown in PICTURES}
    for _ in range(rounds):
        for (new, shown), times in seconds.items():
            rows = model.engine.open((max(PICTURES) * len(tokens) + max(NEW) + 1, 0))
            rows.forward([Segment(0, [vocabulary.bos, *tokens * shown])], "text")
            started = time.perf_counter()
            rows.forward([Segment(0, [vocabulary.bos] * new)], "text")
            times.append(time.perf_counter() - started)
    small, middle, large = NEW
    none, many = PICTURES

    def ratio(above: tuple[int, int], below: tuple[int, int]) -> list[float]:
        return [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]

    return {
        f"time: {middle} new tokens / {small}": ratio((middle, none), (small, none)),
        f"time: {large} new tokens / {small}": ratio((large, none), (small, none)),
        f"time: {middle} new tokens, {many} pictures behind / none": ratio((middle, many), (middle, none)),
    }


def _picture(model: Model) -> Image.Image:
    side = model.manifest.pictures.target_size
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


def _first_token(conversation: Chat, text: str, pictures: list[Image.Image]) -> float:
    """Seconds until the first event, pictures encoded before the clock starts."""
    events = conversation.stream(text, pictures)
    started = time.perf_counter()
    try:
        for _ in events:
            pass
    except mgpt_edge.IncompleteAnswer:
        pass  # the one token was a picture's begin
    return time.perf_counter() - started


def _capacity(model: Model, rounds: int) -> list[float]:
    """A step in a cache of ten times the size costs the same, or the cache is being copied."""
    prompt = [model.manifest.vocabulary.bos] * 64
    seconds: list[list[float]] = []
    for capacity in (1000, 10_000):
        rows = model.engine.open((capacity, 0))
        rows.forward([Segment(0, prompt)], "text")
        seconds.append([])
        for _ in range(10 * rounds):
            started = time.perf_counter()
            rows.forward([Segment(0, [1])], "text")
            seconds[-1].append(time.perf_counter() - started)
            rows.rollback(0, len(prompt))
    return [large / small for small, large in zip(*seconds, strict=True)]
