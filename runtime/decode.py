"""The one loop that turns a prompt into an answer, words or pictures; everything else iterates it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mgpt_edge.runtime.errors import IncompleteAnswer
from mgpt_edge.runtime.feed import Ahead, Feed
from mgpt_edge.runtime.grammar import Grammar
from mgpt_edge.runtime.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from mgpt_edge.runtime.engines.base import Rows
    from mgpt_edge.runtime.feed import Logits
    from mgpt_edge.runtime.grammar import Form, Mode
    from mgpt_edge.runtime.request import Request
    from mgpt_edge.runtime.window import Window


@dataclass(frozen=True, slots=True)
class FinishedRow:
    """A row of codes, complete.

    Args:
        picture: which picture of the request.
        row: which of its rows, from 0.
        tokens: the picture's tokens so far, from begin-of-image.
        passes: passes of the engine since the row before.
        guessed: tokens that those passes were fed ahead.
        accepted: tokens since then that had been guessed rightly, and cost no pass.
        seconds: time since the row before.
    """

    picture: int
    row: int
    tokens: tuple[int, ...]
    passes: int
    guessed: int
    accepted: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Word:
    """A token of text."""

    token: int


@dataclass(frozen=True, slots=True)
class End:
    """The answer is over.

    Args:
        tokens: all of it.
        unfed: its last tokens, whose K/V nobody has needed yet: a next turn feeds them first.
        prefilled: tokens of the prompt that were computed for it.
        passes: passes of the engine.
        complete: whether the model ended it; otherwise it was cut at its limit.
    """

    tokens: tuple[int, ...]
    unfed: tuple[int, ...]
    prefilled: int
    passes: int
    complete: bool


Step = FinishedRow | Word | End


def decode(
    rows: Rows, prompt: Sequence[int], form: Form, request: Request, window: Window | None = None
) -> Iterator[Step]:
    """Answers the prompt `request.count` times, each time with a seed of its own.

    Forced tokens are never sampled: they are fed together with the token before them. The prompt is
    computed once; every further answer rolls the rows back to its end.

    Args:
        rows: with room for the prompt and an answer; what they hold already comes before the prompt.
        prompt: new tokens, up to the separator after which the model answers.
        form: of each answer.
        request: how to sample.
        window: how many codes to guess ahead; None feeds only what is known.

    Raises:
        IncompleteAnswer: the limit was reached within a picture, or one was announced that is longer.
    """
    offset = rows.lengths[0] + len(prompt)
    guided = request.guidance != 1
    feed = Feed(rows, guided=guided)
    feed.cond += prompt
    opening = Grammar(form)
    while not opening.done and _width(opening.interval()) == 1:
        opening.push(opening.interval()[0])
        feed.push(opening)
    cond, uncond = feed.forward(opening)
    first = cond.copy(), None if uncond is None else uncond.copy()
    mark = rows.lengths
    for number in range(request.count):
        rows.rollback(mark)
        samplers = _samplers(request, number)
        feed = Feed(rows, guided=guided)
        if window is not None:
            feed = Ahead(rows, guided=guided, sampler=samplers["code"], offset=offset, window=window)
        grammar = yield from _answer(feed, first, len(opening.tokens), form, samplers, offset, number)
        feed.settle()
        yield End(tuple(grammar.tokens), tuple(feed.cond), len(prompt), feed.passes + 1, grammar.done)


def _answer(
    feed: Feed, logits: Logits, fed: int, form: Form, samplers: dict[Mode, Sampler], offset: int, number: int
) -> Generator[FinishedRow | Word, None, Grammar]:
    """One answer, whose first `fed` tokens are in the rows already and gave the logits."""
    v = form.vocabulary
    grammar = Grammar(form)
    before, started = feed.costs, time.perf_counter()
    while not grammar.done and len(grammar.tokens) < form.limit:
        mode, (low, high) = grammar.mode, grammar.interval()
        token = low
        if high - low > 1:
            if feed.cond:
                logits = feed.forward(grammar)
            first_id = v.first_code if mode == "code" else 0
            token = samplers[mode](*logits, first_id, low, high, offset + len(grammar.tokens))
        grammar.push(token)
        if len(grammar.tokens) > fed:
            feed.push(grammar)
        if mode == "code" and token == v.end_row and grammar.layout is not None:
            now, drawn = time.perf_counter(), grammar.open_picture()
            row = (len(drawn) - 3) // (grammar.layout.columns + 1) - 1
            passes, guessed, accepted = (after - then for after, then in zip(feed.costs, before, strict=True))
            yield FinishedRow(number + grammar.pictures, row, drawn, passes, guessed, accepted, now - started)
            before, started = feed.costs, now
        elif mode == "grid" and grammar.layout is not None and len(grammar.layout) > form.limit:
            raise IncompleteAnswer(_too_large(grammar.layout.width, grammar.layout.height, len(grammar.layout), form))
        elif mode == "text" and token not in {v.begin_image, v.separator}:
            yield Word(token)
    if grammar.start is not None:
        raise IncompleteAnswer(_cut_off(grammar, form), grammar.open_picture())
    return grammar


def _samplers(request: Request, number: int) -> dict[Mode, Sampler]:
    temperature, seed = request.temperature, request.seed + number
    return {
        "text": Sampler(1.0, request.text_top_k, temperature, seed),
        "grid": Sampler(1.0, request.top_k, temperature, seed),
        "code": Sampler(request.guidance, request.top_k, temperature, seed),
    }


def _width(interval: tuple[int, int]) -> int:
    return interval[1] - interval[0]


def _too_large(width: int, height: int, tokens: int, form: Form) -> str:
    return (
        f"the model announced a picture of {width}x{height}, which takes {tokens} tokens, {tokens - form.limit} more "
        f"than this answer may have; ask for a size, or for more with max_tokens"
    )


def _cut_off(grammar: Grammar, form: Form) -> str:
    layout = grammar.layout
    what = "before its size" if layout is None else f"after {len(grammar.open_picture())} of {len(layout)} tokens"
    return f"the answer ended within a picture, {what}: {form.limit} tokens is all it may have; give it more"
