"""Many answers in the passes of one engine: each stream runs the loop, and what they want computed goes together."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from mgpt_edge.runtime.loop import answer, samplers_of
from mgpt_edge.runtime.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mgpt_edge.runtime.engines.base import Rows
    from mgpt_edge.runtime.job import Job
    from mgpt_edge.runtime.loop import Step
    from mgpt_edge.runtime.stream import Prompt
    from mgpt_edge.runtime.window import Window


def decode(rows: Rows, jobs: Sequence[Job], window: Window | None = None) -> Iterator[Step]:
    """Answers each job's prompt `count` times, each time with a seed of its own.

    As many answers at a time as the rows have streams; a prompt is computed once while any stream holds it. What
    is drawn does not depend on what is drawn beside it, as far as the engine's logits don't.

    Args:
        rows: each stream's with room for any of the jobs; what they hold already comes before the prompts.
        jobs: prompts and how to answer them.
        window: how many codes to guess ahead; None feeds only what is known.

    Yields:
        Rows, words and ends as they come; those of answers that are under way together take turns.

    Raises:
        IncompleteAnswer: one broke off within a picture (`loop.answer`).
    """
    waiting = deque(enumerate((job, attempt) for job in jobs for attempt in range(job.request.count)))
    streams = [Stream(rows, index) for index in range(rows.streams)]
    while True:
        for stream in streams:
            while stream.loop is None and waiting:
                number, (job, attempt) = waiting.popleft()
                samplers = samplers_of(job.request, attempt)
                prompt = _hold(stream, job, streams)
                stream.loop = answer(prompt, stream.feed(samplers["code"], window), samplers, number)
                yield from stream.proceed()
        wanting = [(stream, stream.wants) for stream in streams if stream.wants is not None]
        if not wanting:
            return
        together = [(stream, wants) for stream, wants in wanting if wants.head == wanting[0][1].head]
        logits = rows.forward([fed for _, wants in together for fed in wants.feeds], wanting[0][1].head)
        for stream, wants in together:
            mine, logits = logits[: len(wants.feeds)], logits[len(wants.feeds) :]
            yield from stream.proceed(mine)


def _hold(stream: Stream, job: Job, streams: Sequence[Stream]) -> Prompt:
    """The job's prompt in a stream's rows: there already, copied from another stream, or computed."""
    if stream.prompt is not None and stream.prompt.job is job:
        return stream.prompt
    for other in streams:
        if other.prompt is not None and other.prompt.job is job:
            return stream.share(other)
    return stream.prefill(job)
