"""Tokens on their way into the rows: pass by pass, or with guesses ahead that cost no pass where they were right."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mgpt_edge.runtime.engines.base import Fed
from mgpt_edge.runtime.grouped import GroupedSampler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mgpt_edge.runtime.engines.base import Head, Rows
    from mgpt_edge.runtime.grammar import Grammar
    from mgpt_edge.runtime.sampling import Sampler
    from mgpt_edge.runtime.window import Window

    Logits = tuple[NDArray[np.float32], NDArray[np.float32] | None]
    """Of the conditional row and, where guided, of the unconditional one."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What one stream wants computed; streams that want the same head can share a pass."""

    feeds: list[Fed]
    head: Head


class Feed:
    """Tokens that wait for the next pass of a stream's rows.

    The unconditional row sees the open picture only, and only where codes are drawn: it begins with the
    picture, and waits through the passes for its height and width.

    Args:
        rows: the cache.
        row: the stream's conditional row; the unconditional one follows it.
        guided: whether there is one.
    """

    def __init__(self, rows: Rows, row: int, *, guided: bool) -> None:
        self.rows, self.row = rows, row
        self.guided = guided
        self.cond: list[int] = []
        self.uncond: list[int] = []
        self.logits: Logits  # of the token that comes next
        self.passes = 0
        self.guessed = self.accepted = 0  # tokens fed ahead, and those of them that were right

    @property
    def costs(self) -> tuple[int, int, int]:
        """Passes so far, tokens guessed in them, and those of them that were right."""
        return self.passes, self.guessed, self.accepted

    def push(self, grammar: Grammar) -> None:
        """The answer's newest token waits."""
        token = grammar.tokens[-1]
        self.cond.append(token)
        if self.guided and grammar.start is not None:
            if grammar.start == len(grammar.tokens) - 1:
                self.rows.rollback(self.row + 1, 0)
                self.uncond.clear()
            self.uncond.append(token)

    def wants(self, grammar: Grammar) -> Pass | None:
        """What has to be computed before `logits` are those of the token that comes next; None: they are."""
        if not self.cond:
            return None
        code = grammar.mode == "code"
        feeds = [Fed(self.row, self.cond)]
        if self.guided and code:
            feeds.append(Fed(self.row + 1, self.uncond))
        return Pass(feeds, "image" if code else "text")

    def take(self, logits: list[NDArray[np.float32]]) -> None:
        """The pass that was wanted gave these."""
        self.passes += 1
        self.cond.clear()
        if len(logits) > 1:
            self.uncond.clear()
        self.logits = logits[0][0], logits[1][0] if len(logits) > 1 else None

    def settle(self) -> None:
        """The rows hold the answer's own tokens and nothing else."""


class Ahead(Feed):
    """Jacobi decoding with coupled noise: the same answer as without it, in fewer passes.

    The noise of a position is fixed, so its token is a function of the tokens before it. A pass is fed guesses for the
    next codes; the loop draws each from the logits as if it had been fed alone, and as long as it draws what was
    guessed, the next logits are there already. At the first other token the rows go back, and what the stale logits
    give at the positions behind it becomes the next guess (a new position copies its left neighbour).

    Args:
        rows: as `Feed`.
        row: as `Feed`.
        guided: as `Feed`.
        sampler: that draws the codes.
        offset: of the answer's first token in the conditional row.
        window: how many codes to guess.
    """

    def __init__(
        self,
        rows: Rows,
        row: int,
        *,
        guided: bool,
        sampler: Sampler | GroupedSampler,
        offset: int,
        window: Window,
    ) -> None:
        super().__init__(rows, row, guided=guided)
        self.sampler, self.offset, self.window = sampler, offset, window
        self.fed: list[int] = []  # the last token known when the pass began, then the guesses
        self.first = 0  # index of fed[0] in the answer
        self.right = 0  # guesses that were drawn since
        self.ahead: list[NDArray[np.float32]]  # logits behind each of `fed`, a row after another
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
        feeds = [Fed(self.row, [*self.cond, *guesses], len(self.fed))]
        if self.guided:
            feeds.append(Fed(self.row + 1, [*self.uncond, *guesses], len(self.fed)))
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
            for row in (self.row, self.row + 1)[: 1 + self.guided]:
                self.rows.rollback(row, self.rows.length(row) - wrong)
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
