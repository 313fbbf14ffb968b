"""Published speculation for image tokens, written anew to be compared with: SJD, and SJD with coupled drafts.

Both accept drafts by an acceptance test on probabilities, so they draw from the model's distribution, but not the
picture that the seed would have given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.runtime._native import gumbel
from mgpt_edge.runtime.engines.base import Segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mgpt_edge.runtime.engines.base import Sequences
    from mgpt_edge.runtime.family.layout import ImageLayout
    from mgpt_edge.runtime.intake.request import Request

    Floats = NDArray[np.float64]


@dataclass(slots=True)
class Draft:
    """A guessed code, and what it was drawn from; None: it was not drawn, but copied."""

    code: int
    source: Floats | None


@dataclass(slots=True)
class Jacobi:
    """Speculative Jacobi decoding of one picture; positions count from its begin-of-image.

    Args:
        sequences: of one stream, empty.
        prompt: tokens from bos to the separator.
        layout: of the picture.
        request: guidance, top-k, temperature and seed.
        window: most drafts in a pass.
        coupled: draws drafts of one position with the same noise in every pass (arXiv 2510.24211); otherwise
            afresh (arXiv 2410.01699).
    """

    sequences: Sequences
    prompt: Sequence[int]
    layout: ImageLayout
    request: Request
    window: int
    coupled: bool
    tokens: list[int] = field(init=False)  # final
    drafts: dict[int, Draft] = field(init=False, default_factory=dict)
    rng: np.random.Generator = field(init=False)
    passes: int = 0

    def __post_init__(self) -> None:
        self.tokens = list(self.layout.grid)
        self.rng = np.random.default_rng(self.request.seed)

    def draw(self) -> list[int]:
        """The picture's tokens up to its last code."""
        last = len(self.layout) - 2  # the ends behind the last code are not worth a pass
        held: list[int] = []  # the sequences' tokens of the picture
        while len(self.tokens) < last:
            ahead = [self.drafts[position].code for position in sorted(self.drafts)]
            new = [*self.tokens[len(held) :], *ahead]
            found = self._pass(new if held else [*self.prompt, *new], new, 1 + len(ahead))
            held = [*self.tokens, *ahead]
            self._verify(found, last)
            while held != self.tokens[: len(held)]:
                held.pop()
            for sequence, length in ((0, len(self.prompt) + len(held)), (1, len(held))):
                self.sequences.rollback(sequence, length)
            self._redraft(found, last)
        return self.tokens

    def _pass(self, cond: list[int], uncond: list[int], last: int) -> dict[int, Floats]:
        """Probabilities of the codes at the first position that is not final and at those behind the drafts."""
        self.passes += 1
        conditional, unconditional = self.sequences.forward([Segment(0, cond, last), Segment(1, uncond, last)], "image")
        guided = unconditional + np.float32(self.request.guidance) * (conditional - unconditional)
        return {len(self.tokens) + number: self._probabilities(logits) for number, logits in enumerate(guided)}

    def _probabilities(self, logits: NDArray[np.float32]) -> Floats:
        count = min(self.request.top_k, len(logits))
        threshold = np.partition(logits, -count)[-count]
        scaled = np.where(logits >= threshold, logits.astype(np.float64) / self.request.temperature, -np.inf)
        weights = np.exp(scaled - scaled.max())
        return weights / weights.sum()

    def _verify(self, found: dict[int, Floats], last: int) -> None:
        """Accepts drafts in order; the first that fails, and what follows them all, is drawn from what is left."""
        while (position := len(self.tokens)) < last:
            forced, draft = self.layout.forced(position), self.drafts.get(position)
            if forced is not None:
                self.tokens.append(forced)
            elif draft is not None and self._accepts(draft, found[position]):
                self.tokens.append(draft.code)
            elif position in found:
                left = found[position] if draft is None else np.maximum(found[position] - self._source(draft), 0)
                self.tokens.append(self._fresh(left / left.sum()))
                return
            else:
                return

    def _accepts(self, draft: Draft, found: Floats) -> bool:
        index = draft.code - self.layout.vocabulary.first_code
        return bool(self.rng.random() * self._source(draft)[index] < found[index])

    def _source(self, draft: Draft) -> Floats:
        if draft.source is not None:
            return draft.source
        certain = np.zeros(self.layout.vocabulary.codes)
        certain[draft.code - self.layout.vocabulary.first_code] = 1
        return certain

    def _redraft(self, found: dict[int, Floats], last: int) -> None:
        """Drafts are drawn from what the pass says of their positions, and copy their left neighbour behind that."""
        began = len(self.tokens)
        left = next(token for token in reversed(self.tokens) if token != self.layout.vocabulary.end_row)
        self.drafts = {}
        for position in range(began, min(began + self.window, last)):
            forced, source = self.layout.forced(position), found.get(position)
            if forced is None:
                left = left if source is None else self._sample(source, position)
            self.drafts[position] = Draft(left if forced is None else forced, source)

    def _sample(self, probabilities: Floats, position: int) -> int:
        if not self.coupled:
            return self._fresh(probabilities)
        noise = gumbel(self.request.seed, position, np.arange(len(probabilities), dtype=np.uint32))
        with np.errstate(divide="ignore"):
            return self.layout.vocabulary.first_code + int((np.log(probabilities) + noise).argmax())

    def _fresh(self, probabilities: Floats) -> int:
        return self.layout.vocabulary.first_code + int(self.rng.choice(len(probabilities), p=probabilities))
