"""Tokens on their way into the sequences of an engine that draws a picture's codes by itself."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.runtime.decoding.feed import Feed
from mgpt_edge.runtime.engines.base import Drawing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mgpt_edge.runtime.decoding.steps import Pass
    from mgpt_edge.runtime.engines.base import Drawer, Sequences
    from mgpt_edge.runtime.family.grammar import Grammar
    from mgpt_edge.runtime.sampling.sampler import Sampler

FEW = 2
"""Waiting tokens that such an engine is given one by one: a code, and the end of its row."""


class DeviceFeed(Feed):
    """Feeds an engine that draws a picture's codes by itself, a row of codes at a time.

    The first code comes from the prompt's pass. What is not a code, and many forced tokens at once, go pass by pass.

    Args:
        sequences: as `Feed`.
        sequence: as `Feed`.
        guided: as `Feed`.
        sampler: that draws the codes.
        drawer: the engine's.
    """

    def __init__(self, sequences: Sequences, sequence: int, *, guided: bool, sampler: Sampler, drawer: Drawer) -> None:
        super().__init__(sequences, sequence, guided=guided)
        self.sampler, self.drawer = sampler, drawer
        self.drawn: deque[int] = deque()  # codes to come
        self.held = 0  # tokens to come that the sequences hold already

    def push(self, grammar: Grammar) -> None:
        if self.held:
            self.held -= 1
        else:
            super().push(grammar)

    def wants(self, grammar: Grammar) -> Pass | None:
        if self.drawn:
            return None
        if grammar.mode != "code" or not self.cond or len(self.cond) > FEW or (self.guided and not self._level):
            return super().wants(grammar)
        layout, start = grammar.layout, grammar.start
        assert layout is not None
        assert start is not None
        begin = len(grammar.tokens) - start
        end = min(layout.row_end(begin), grammar.form.limit - start)
        forced = np.full(len(layout), -1, np.int32)
        for index in range(begin - len(self.cond), end):
            low, high = grammar.interval_at(index)
            forced[index] = low if high - low == 1 else -1
        tokens = self.drawer.draw(
            Drawing(self.sequence, grammar.open_picture(), len(self.cond), forced, end, self.sampler)
        )
        self.passes += len(self.cond) + len(tokens) - 1
        self.drawn.extend(token for token, only in zip(tokens, forced[begin:end], strict=True) if only < 0)
        self.held = len(tokens) - 1
        self.cond.clear()
        self.uncond.clear()
        return None

    @property
    def _level(self) -> bool:
        """Whether the same tokens wait for both sequences."""
        return self.cond == self.uncond

    def __call__(
        self,
        cond: NDArray[np.float32],
        uncond: NDArray[np.float32] | None,
        first_id: int,
        low: int,
        high: int,
        position: int,
    ) -> int:
        """As the sampler: what the engine drew with it, or a draw by the host."""
        return self.drawn.popleft() if self.drawn else self.sampler(cond, uncond, first_id, low, high, position)
