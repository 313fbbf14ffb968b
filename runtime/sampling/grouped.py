"""A sampler that keeps guesses which are nearly as good as its own draw: faster, and another distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.runtime._native import gumbel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mgpt_edge.runtime.sampling.sampler import Sampler


@dataclass(slots=True)
class GroupedSampler:
    """Accepts a guess that is among the `group` best of its position (after arXiv 2508.07747, on coupled noise).

    The score that `Sampler` takes the largest of, logit and noise together, ranks the codes; a group of 1 is exact.

    Args:
        exact: draws where there is no guess, or a bad one.
        group: how many codes are as good as the best.
        guess: for the next call, set anew before each.
    """

    exact: Sampler
    group: int
    guess: int | None = None

    def __call__(
        self,
        cond: NDArray[np.float32],
        uncond: NDArray[np.float32] | None,
        first_id: int,
        low: int,
        high: int,
        position: int,
    ) -> int:
        """Draws the token at `position`; arguments as `Sampler`."""
        drawn = self.exact(cond, uncond, first_id, low, high, position)
        if self.guess is None or self.guess == drawn or not low <= self.guess < high:
            return drawn
        logits = cond if uncond is None else uncond + np.float32(self.exact.guidance) * (cond - uncond)
        logits = logits[low - first_id : high - first_id]
        count = min(self.exact.top_k, len(logits))
        kept = np.flatnonzero(logits >= np.partition(logits, -count)[-count])
        scores = logits[kept]
        if self.exact.temperature > 0:
            scores = scores / np.float32(self.exact.temperature)
            scores = scores + gumbel(self.exact.seed, position, (low + kept).astype(np.uint32))
        mine = scores[kept == self.guess - low]
        good = len(mine) == 1 and np.count_nonzero(scores > mine[0]) < self.group
        return self.guess if good else drawn
