"""Tokens on their way into the sequences, pass by pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpt_edge.runtime.decoding.steps import Pass
from mgpt_edge.runtime.engines.base import Segment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mgpt_edge.runtime.engines.base import Sequences
    from mgpt_edge.runtime.family.grammar import Grammar

    Logits = tuple[NDArray[np.float32], NDArray[np.float32] | None]
    """Of the conditional sequence and, where guided, of the unconditional one."""


class Feed:
    """Tokens that wait for the next pass of a stream's sequences.

    The unconditional sequence sees the open picture only, and only where codes are drawn: it begins with the
    picture, and waits through the passes for its height and width.

    Args:
        sequences: of the cache.
        sequence: the stream's conditional sequence; the unconditional one follows it.
        guided: whether there is one.
    """

    def __init__(self, sequences: Sequences, sequence: int, *, guided: bool) -> None:
        self.sequences, self.sequence = sequences, sequence
        self.guided = guided
        self.cond: list[int] = []
        self.uncond: list[int] = []
        self.logits: Logits  # of the token that comes next
        self.passes = 0
        self.guessed = self.accepted = 0  # tokens fed ahead, and those of them that were right

    @property
    def counts(self) -> tuple[int, int, int]:
        """Passes so far, tokens guessed in them, and those of them that were right."""
        return self.passes, self.guessed, self.accepted

    def push(self, grammar: Grammar) -> None:
        """The answer's newest token waits."""
        token = grammar.tokens[-1]
        self.cond.append(token)
        if self.guided and grammar.start is not None:
            if grammar.start == len(grammar.tokens) - 1:
                self.sequences.rollback(self.sequence + 1, 0)
                self.uncond.clear()
            self.uncond.append(token)

    def wants(self, grammar: Grammar) -> Pass | None:
        """What has to be computed before `logits` are those of the token that comes next; None: they are."""
        if not self.cond:
            return None
        code = grammar.mode == "code"
        feeds = [Segment(self.sequence, self.cond)]
        if self.guided and code:
            feeds.append(Segment(self.sequence + 1, self.uncond))
        return Pass(feeds, "image" if code else "text")

    def take(self, logits: list[NDArray[np.float32]]) -> None:
        """The pass that was wanted gave these."""
        self.passes += 1
        self.cond.clear()
        if len(logits) > 1:
            self.uncond.clear()
        self.logits = logits[0][0], logits[1][0] if len(logits) > 1 else None

    def settle(self) -> None:
        """The sequences hold the answer's own tokens and nothing else."""
