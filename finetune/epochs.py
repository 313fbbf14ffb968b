"""Batches over tokenised records: epochs in an order of their own, sequences of like lengths together."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.finetune.conversation import Batch, collate, without_prompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mgpt_edge.finetune.tokenised import Tokenised

CLUSTER_BATCHES = 500
"""Batches whose sequences are sorted by length together, as the family's."""


class Epochs:
    """A corpus without end; each batch is a function of the seed and its number.

    Args:
        tokenised: the sequences.
        batch: sequences a batch, over all processes.
        prompt_drop: probability that a guided sequence is its answer alone.
        seed: of the order and of the dropping.
    """

    def __init__(self, tokenised: Tokenised, batch: int, prompt_drop: float, seed: int) -> None:
        self.tokenised, self.size, self.prompt_drop, self.seed = tokenised, batch, prompt_drop, seed
        self.order = lru_cache(maxsize=1)(self._order)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.tokenised) // self.size)

    def batch(self, number: int, rank: int = 0, ranks: int = 1) -> Batch:
        """Batch `number`, or the share of it that one of several processes takes; shares are equally many sequences."""
        if self.size % ranks:
            msg = f"{ranks} processes can't share batches of {self.size} evenly"
            raise ValueError(msg)
        epoch, place = divmod(number, self.steps)
        chosen = self.order(epoch)[place]
        dropped = np.random.default_rng([self.seed, 1, number]).random(self.size) < self.prompt_drop
        dropped &= self.tokenised.guided[chosen]
        samples = ((self.tokenised[index], dropped[row]) for row, index in enumerate(chosen) if row % ranks == rank)
        return collate([without_prompt(sample) if alone else sample for sample, alone in samples])

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The sequences of each batch of an epoch, [steps, batch]: sorted within clusters, then batches shuffled."""
        rng = np.random.default_rng([self.seed, 0, epoch])
        # The last batch is filled up with sequences that were early in this epoch.
        order = np.resize(rng.permutation(len(self.tokenised)), self.steps * self.size)
        cluster = CLUSTER_BATCHES * self.size
        parts = (order[start : start + cluster] for start in range(0, len(order), cluster))
        ordered = [part[np.argsort(self.tokenised.lengths[part], kind="stable")] for part in parts]
        return rng.permutation(np.concatenate(ordered).reshape(self.steps, self.size))
