"""Many answers in the passes of one engine: each stream runs the loop, and what they want computed goes together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpt_edge.runtime.decoding.device_feed import DeviceFeed
from mgpt_edge.runtime.decoding.loop import answer, samplers_of
from mgpt_edge.runtime.decoding.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mgpt_edge.runtime.decoding.loop import Draw
    from mgpt_edge.runtime.decoding.steps import Loop, Step
    from mgpt_edge.runtime.decoding.window import Window
    from mgpt_edge.runtime.engines.base import Sequences
    from mgpt_edge.runtime.family.grammar import Mode
    from mgpt_edge.runtime.intake.job import Job


def decode(sequences: Sequences, jobs: Sequence[Job], window: Window | None = None) -> Iterator[Step]:
    """Answers each job's prompt `count` times, each time with a seed of its own.

    As many answers at a time as the sequences have streams; a prompt is computed once while any stream holds it. What
    is drawn does not depend on what is drawn beside it, as far as the engine's logits don't.

    Args:
        sequences: each stream's with room for any of the jobs; what they hold already comes before the prompts.
        jobs: prompts and how to answer them.
        window: how many codes to guess ahead; None feeds only what is known.

    Yields:
        Rows, words and ends as they come; those of answers that are under way together take turns.

    Raises:
        IncompleteAnswer: one broke off within a picture (`loop.answer`).
    """
    waiting = list(enumerate((job, attempt) for job in jobs for attempt in range(job.request.count)))
    streams = [Stream(sequences, index) for index in range(sequences.streams)]
    while True:
        for stream in streams:
            while stream.loop is None and (ready := _ready(waiting, streams)) is not None:
                number, (job, attempt) = waiting.pop(ready)
                holder = next((other for other in (stream, *streams) if other.job is job), None)
                stream.loop = _answer(stream, holder, job, attempt, number, window)
                yield from stream.proceed()
        wanting = [(stream, stream.wants) for stream in streams if stream.wants is not None]
        if not wanting:
            return
        head = next((wants.head for stream, wants in wanting if stream.prompt is None), wanting[0][1].head)
        together = [(stream, wants) for stream, wants in wanting if wants.head == head]
        logits = sequences.forward([fed for _, wants in together for fed in wants.feeds], head)
        for stream, wants in together:
            mine, logits = logits[: len(wants.feeds)], logits[len(wants.feeds) :]
            yield from stream.proceed(mine)


def _ready(waiting: Sequence[tuple[int, tuple[Job, int]]], streams: Sequence[Stream]) -> int | None:
    """The first answer whose prompt is not on its way in any stream; others wait for it."""
    coming = [stream.job for stream in streams if stream.prompt is None]
    return next((index for index, (_, (job, _)) in enumerate(waiting) if not any(job is one for one in coming)), None)


def _answer(stream: Stream, holder: Stream | None, job: Job, attempt: int, number: int, window: Window | None) -> Loop:
    """One answer in a stream, after its prompt: there already, copied from its holder, or computed beside others."""
    if holder is None:
        yield from stream.prefill(job)
    elif holder is not stream:
        stream.share(holder)
    assert stream.prompt is not None
    samplers = samplers_of(job.request, attempt)
    feed = stream.feed(samplers["code"], window)
    draws: dict[Mode, Draw] = {**samplers}
    if isinstance(feed, DeviceFeed):
        draws["code"] = feed
    yield from answer(stream.prompt, feed, draws, number)
