"""Guesses fed ahead, which cost no pass where they were right."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mgpt_edge.runtime.decoding.feed import Feed
from mgpt_edge.runtime.decoding.steps import Pass
from mgpt_edge.runtime.engines.base import Segment
from mgpt_edge.runtime.sampling.grouped import GroupedSampler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mgpt_edge.runtime.decoding.feed import Logits
    from mgpt_edge.runtime.decoding.window import Window
    from mgpt_edge.runtime.engines.base import Sequences
    from mgpt_edge.runtime.family.grammar import Grammar
    from mgpt_edge.runtime.sampling.sampler import Sampler


class Ahead(Feed):
    """Jacobi decoding with coupled noise: the same answer as without it, in fewer passes.

    The noise of a position is fixed, so its token is a function of the tokens before it. A pass is fed guesses for the
    next codes; the loop draws each from the logits as if it had been fed alone, and as long as it draws what was
    guessed, the next logits are there already. At the first other token the sequences go back, and what the stale
    logits give at the positions behind it becomes the next guess (a new position copies its left neighbour).

    Args:
        sequences: as `Feed`.
        sequence: as `Feed`.
        guided: as `Feed`.
        sampler: that draws the codes.
        offset: of the answer's first token in the conditional sequence.
        window: how many codes to guess.
    """

    def __init__(
        self,
        sequences: Sequences,
        sequence: int,
        *,
        guided: bool,
        sampler: Sampler | GroupedSampler,
        offset: int,
        window: Window,
    ) -> None:
        super().__init__(sequences, sequence, guided=guided)
        self.sampler, self.offset, self.window = sampler, offset, window
        self.fed: list[int] = []  # the last token known when the pass began, then the guesses
        self.first = 0  # index of fed[0] in the answer
        self.right = 0  # guesses that were drawn since
        self.ahead: list[NDArray[np.float32]]  # logits behind each of `fed`, a sequence after another
        self.started = 0.0

    def wants(self, grammar: Grammar) -> Pass | None:
        if grammar.mode != "code":
            self.settle()
            return super().wants(grammar)
        while self.cond and self.right + 1 < len(self.fed) and self.fed[self.right + 1] == self.cond[0]:
            self.right += 1
            self.accepted += 1
            del self.cond[0]
            del self.uncond[:1]
        if not self.cond:
            self.logits = self._logits(self.right)
            self._expect()
            return None
        self.started = time.perf_counter()
        guesses = self._guess(grammar)
        self.settle()
        self.fed, self.first = [self.cond[-1], *guesses], len(grammar.tokens) - 1
        feeds = [Segment(self.sequence, [*self.cond, *guesses], len(self.fed))]
        if self.guided:
            feeds.append(Segment(self.sequence + 1, [*self.uncond, *guesses], len(self.fed)))
        return Pass(feeds, "image")

    def take(self, logits: list[NDArray[np.float32]]) -> None:
        super().take(logits)
        if self.fed:
            self.ahead = logits
            self.guessed += len(self.fed) - 1
            self.window.cost(len(self.fed) - 1, time.perf_counter() - self.started)
        self._expect()

    def settle(self) -> None:
        wrong = len(self.fed) - 1 - self.right
        if wrong > 0:
            for sequence in (self.sequence, self.sequence + 1)[: 1 + self.guided]:
                self.sequences.rollback(sequence, self.sequences.length(sequence) - wrong)
        if self.fed:
            self.window.learn(len(self.fed) - 1, self.right)
        self.fed, self.right = [], 0
        self._expect()

    def _expect(self) -> None:
        """Tells a sampler that may keep it which code was guessed next."""
        if isinstance(self.sampler, GroupedSampler):
            self.sampler.guess = self.fed[self.right + 1] if self.right + 1 < len(self.fed) else None

    def _guess(self, grammar: Grammar) -> list[int]:
        """The codes to come, and what is forced between them: forced tokens are free guesses."""
        layout, start = grammar.layout, grammar.start
        if layout is None or start is None:
            return []
        sampler = self.sampler.exact if isinstance(self.sampler, GroupedSampler) else self.sampler
        first_id = layout.vocabulary.first_code
        guesses: list[int] = []
        begin = len(grammar.tokens) - start
        low, high = layout.vocabulary.code_range
        left = next((token for token in reversed(grammar.tokens[-2:]) if low <= token < high), low)
        # The end of the picture is not guessed: what follows may be text.
        end = min(len(layout) - 2, grammar.form.limit - start)
        for index in range(begin, min(begin + self.window.choose(), end)):
            low, high = grammar.interval_at(index)
            known = start + index - 1 - self.first
            if high - low == 1:
                token = low
            elif 0 < known < len(self.fed):
                left = token = sampler(*self._logits(known), first_id, low, high, self.offset + start + index)
            else:
                token = left
            guesses.append(token)
        return guesses

    def _logits(self, number: int) -> Logits:
        return self.ahead[0][number], self.ahead[1][number] if self.guided else None
