"""The one loop that turns a prompt into an answer, words or pictures; everything else iterates it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mgpt_edge.runtime.decoding.steps import End, FinishedRow, Word
from mgpt_edge.runtime.errors import IncompleteAnswer
from mgpt_edge.runtime.family.grammar import Grammar
from mgpt_edge.runtime.sampling.grouped import GroupedSampler
from mgpt_edge.runtime.sampling.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgpt_edge.runtime.decoding.feed import Feed
    from mgpt_edge.runtime.decoding.steps import Loop
    from mgpt_edge.runtime.decoding.stream import Prefilled
    from mgpt_edge.runtime.family.grammar import Form, Mode
    from mgpt_edge.runtime.family.layout import ImageLayout
    from mgpt_edge.runtime.intake.request import Request

    Draw = Callable[..., int]
    """Arguments as `Sampler`'s."""


def answer(prompt: Prefilled, feed: Feed, draws: dict[Mode, Draw], number: int) -> Loop:
    """One answer to a prompt; pauses where it needs a pass, and is sent its logits.

    Forced tokens are never sampled: they are fed together with the token before them.

    Args:
        prompt: in the sequences that are fed.
        feed: takes the answer's tokens into them.
        draws: samplers, or what hands out their draws, for each kind of token.
        number: of the answer, and of its first picture.

    Raises:
        IncompleteAnswer: the limit was reached within a picture, or one was announced that is longer.
    """
    form = prompt.job.form
    v, grammar = form.vocabulary, Grammar(form)
    before, started = feed.counts, time.perf_counter()
    while not grammar.done and len(grammar.tokens) < form.limit:
        mode, token = grammar.mode, grammar.forced
        if token is None:
            if len(grammar.tokens) > prompt.forced:
                wanted = feed.wants(grammar)
                if wanted is not None:
                    feed.take((yield wanted))
            first_id = v.first_code if mode == "code" else 0
            token = draws[mode](*feed.logits, first_id, *grammar.interval(), prompt.offset + len(grammar.tokens))
        grammar.push(token)
        if len(grammar.tokens) > prompt.forced:
            feed.push(grammar)
        if mode == "code" and token == v.end_row and grammar.layout is not None:
            now, drawn = time.perf_counter(), grammar.open_picture()
            row = (len(drawn) - 3) // (grammar.layout.columns + 1) - 1
            passes, guessed, accepted = (after - then for after, then in zip(feed.counts, before, strict=True))
            yield FinishedRow(number + grammar.pictures, row, drawn, passes, guessed, accepted, now - started)
            before, started = feed.counts, now
        elif mode == "grid" and grammar.layout is not None and len(grammar.layout) > form.limit:
            raise IncompleteAnswer(_too_large(grammar.layout, grammar.missing, form))
        elif mode == "text" and token not in {v.begin_image, v.separator}:
            yield Word(token)
    if grammar.start is not None:
        raise IncompleteAnswer(_cut_off(grammar, form), grammar.open_picture())
    feed.settle()
    yield End(number, tuple(grammar.tokens), tuple(feed.cond), len(prompt.job.prompt), feed.passes + 1, grammar.done)


def samplers_of(request: Request, attempt: int) -> dict[Mode, Sampler | GroupedSampler]:
    """Of a request's answer number `attempt`, for each kind of token."""
    temperature, seed = request.temperature, request.seed + attempt
    code = Sampler(request.guidance, request.top_k, temperature, seed)
    return {
        "text": Sampler(1.0, request.text_top_k, temperature, seed),
        "grid": Sampler(1.0, request.top_k, temperature, seed),
        "code": code if request.approximate == 1 else GroupedSampler(code, request.approximate),
    }


def _too_large(layout: ImageLayout, missing: int, form: Form) -> str:
    return (
        f"the model announced a picture of {layout.width}x{layout.height}, which takes {len(layout)} tokens, "
        f"{missing} more than this answer may have; ask for another size, or allow more with {form.limited_by}"
    )


def _cut_off(grammar: Grammar, form: Form) -> str:
    layout = grammar.layout
    what = "before its size" if layout is None else f"after {len(grammar.open_picture())} of {len(layout)} tokens"
    return (
        f"the answer ended within a picture, {what}: {form.limit} tokens is all it may have; "
        f"allow more with {form.limited_by}"
    )
