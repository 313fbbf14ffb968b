"""Two sequences of a cache, the prompt that they hold, and the answer to it that is under way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mgpt_edge.runtime.decoding.ahead import Ahead
from mgpt_edge.runtime.decoding.device_feed import DeviceFeed
from mgpt_edge.runtime.decoding.feed import Feed
from mgpt_edge.runtime.decoding.steps import Pass
from mgpt_edge.runtime.family.grammar import Grammar
from mgpt_edge.runtime.sampling.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from mgpt_edge.runtime.decoding.feed import Logits
    from mgpt_edge.runtime.decoding.steps import Loop, Prefill, Step
    from mgpt_edge.runtime.decoding.window import Window
    from mgpt_edge.runtime.engines.base import Sequences
    from mgpt_edge.runtime.intake.job import Job
    from mgpt_edge.runtime.sampling.grouped import GroupedSampler


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A job's prompt in the sequences, and behind it what every answer to it begins with.

    Args:
        job: whose.
        forced: how many tokens of the answer stand in the sequences.
        unfed: of them, what the unconditional sequence has not seen yet.
        lengths: of the sequences.
        logits: of the token that comes next.
    """

    job: Job
    forced: int
    unfed: tuple[int, ...]
    lengths: tuple[int, int]
    logits: Logits

    @property
    def offset(self) -> int:
        """Position of an answer's first token in the conditional sequence."""
        return self.lengths[0] - self.forced


class Stream:
    """One answer at a time.

    Args:
        sequences: of a cache, shared with other streams.
        index: of this one; what its sequences hold already comes before every prompt.
    """

    def __init__(self, sequences: Sequences, index: int) -> None:
        self.sequences = sequences
        self.sequence = 2 * index
        self.base = sequences.length(self.sequence)
        self.job: Job | None = None  # whose prompt is in the sequences, or on its way
        self.prompt: Prefilled | None = None  # once it is computed
        self.loop: Loop | None = None
        self.wants: Pass | None = None

    def prefill(self, job: Job) -> Prefill:
        """Takes a job's prompt into the sequences; the pass it wants can be shared like any other."""
        self.job, self.prompt = job, None
        self._go_back((self.base, 0))
        feed = Feed(self.sequences, self.sequence, guided=job.request.guidance != 1)
        feed.cond += job.prompt
        opening = Grammar(job.form)
        while not opening.done and opening.forced is not None:
            opening.push(opening.forced)
            feed.push(opening)
        wanted = feed.wants(opening)
        assert wanted is not None
        # The next pass writes over the logits, and every answer begins with these.
        feed.take([logits.copy() for logits in (yield wanted)])
        lengths = self.sequences.length(self.sequence), self.sequences.length(self.sequence + 1)
        self.prompt = Prefilled(job, len(opening.tokens), tuple(feed.uncond), lengths, feed.logits)

    def share(self, other: Stream) -> None:
        """Takes the prompt that another stream has computed."""
        assert other.prompt is not None
        self.job, self.prompt = other.job, other.prompt
        for number, length in enumerate(self.prompt.lengths):
            self.sequences.copy_prefix(other.sequence + number, self.sequence + number, length)

    def feed(self, sampler: Sampler | GroupedSampler, window: Window | None) -> Feed:
        """What takes an answer's tokens into the sequences; they go back to the end of the prompt."""
        assert self.prompt is not None
        self._go_back(self.prompt.lengths)
        guided, offset, drawer = self.prompt.job.request.guidance != 1, self.prompt.offset, self.sequences.drawer
        feed = Feed(self.sequences, self.sequence, guided=guided)
        if window is not None:
            feed = Ahead(self.sequences, self.sequence, guided=guided, sampler=sampler, offset=offset, window=window)
        elif drawer is not None and isinstance(sampler, Sampler):
            feed = DeviceFeed(self.sequences, self.sequence, guided=guided, sampler=sampler, drawer=drawer)
        feed.uncond += self.prompt.unfed
        feed.logits = self.prompt.logits
        return feed

    def proceed(self, logits: list[NDArray[np.float32]] | None = None) -> Iterator[Step]:
        """The answer goes on to the next pass that it wants, or to its end."""
        assert self.loop is not None
        self.wants = None
        try:
            step = next(self.loop) if logits is None else self.loop.send(logits)
            while not isinstance(step, Pass):
                yield step
                step = next(self.loop)
            self.wants = step
        except StopIteration:
            self.loop = None

    def _go_back(self, lengths: tuple[int, int]) -> None:
        for number, length in enumerate(lengths):
            self.sequences.rollback(self.sequence + number, length)
