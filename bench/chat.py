"""What a turn of a conversation costs: its new tokens only, and no more in a longer cache.

mgpt bench chat --model BUNDLE [--rounds N] [--json]

Prints ratios; the times behind them are medians over rounds in one process.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from PIL import Image

import mgpt_edge
from mgpt_edge.runtime.engines.base import Fed

if TYPE_CHECKING:
    from mgpt_edge.runtime.chat import Chat
    from mgpt_edge.runtime.model import Model

QUESTION = "What is in front?"


def chat(
    model: Annotated[Path | None, typer.Option(help="Bundle that was trained to converse.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 20,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure first tokens of turns, and steps in a short and a long cache."""
    loaded = mgpt_edge.load(model)
    facts = {**_turns(loaded, rounds), **_capacity(loaded, rounds)}
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name:40} {value}")


def _turns(model: Model, rounds: int) -> dict[str, Any]:
    """A question after pictures were shown, against the same conversation computed anew."""
    side = model.manifest.pictures.target_size
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    first, second, anew, counts = [], [], [], (0, 0)
    for seed in range(rounds):
        conversation = model.chat(seed=seed, max_tokens=1, temperature=0.0)
        first.append(_first_token(conversation, "<|image|> <|image|> " + QUESTION, [picture, picture]))
        before = conversation.tokens_left
        second.append(_first_token(conversation, QUESTION, []))
        counts = before - conversation.tokens_left, conversation.context - conversation.tokens_left
        fresh = model.chat(seed=seed, max_tokens=1, temperature=0.0)
        anew.append(_first_token(fresh, f"<|image|> <|image|> {QUESTION} {QUESTION}", [picture, picture]))
    return {
        "tokens: second turn / conversation": round(counts[0] / counts[1], 3),
        "time: second turn / computed anew": round(statistics.median(second) / statistics.median(anew), 3),
        "time: second turn / first turn": round(statistics.median(second) / statistics.median(first), 3),
    }


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


def _capacity(model: Model, rounds: int) -> dict[str, Any]:
    """A step in a cache of ten times the size costs the same, or the cache is being copied."""
    prompt = [model.manifest.vocabulary.bos] * 64
    seconds = []
    for capacity in (1000, 10_000):
        rows = model.engine.open((capacity, 0))
        rows.forward([Fed(0, prompt)], "text")
        steps = []
        for _ in range(10 * rounds):
            started = time.perf_counter()
            rows.forward([Fed(0, [1])], "text")
            steps.append(time.perf_counter() - started)
            rows.rollback(0, len(prompt))
        seconds.append(statistics.median(steps))
    return {"time of a step: cache of 10000 / of 1000": round(seconds[1] / seconds[0], 3)}
