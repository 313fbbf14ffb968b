"""How far a bundle is from its checkpoint in float32, on sequences that both are made to follow."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from mgpt_edge.export.golden import hidden_states
from mgpt_edge.runtime.engines.base import Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.runtime.engines.base import Engine, Head
    from mgpt_edge.runtime.family.vocabulary import Vocabulary

    Conversation = tuple[Sequence[int], Sequence[bool]]
    Progress = Callable[[int, int], None]

WIDTH = 64
"""Tokens of a pass."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """At positions where a code, or a word's token, comes next.

    Attributes:
        positions: how many.
        divergence: mean Kullback-Leibler divergence of the bundle's distribution from the checkpoint's, nats.
        same: share of positions whose likeliest token is the same.
    """

    positions: int
    divergence: float
    same: float


@torch.inference_mode()
def agreement(
    checkpoint: Checkpoint, engine: Engine, sequences: Sequence[Conversation], progress: Progress = lambda *_: None
) -> dict[Head, Agreement]:
    """Compares every position of an answer at which a code or a word is chosen.

    Args:
        checkpoint: computed layer by layer, in float32.
        engine: of a bundle of it.
        sequences: conversations, tokens and which of them are the model's.
        progress: told of layers done, and how many there are.
    """
    whole = [tokens for tokens, _ in sequences]
    hidden = hidden_states(checkpoint, whole, progress=progress).split(list(map(len, whole)))
    head, (low, high) = checkpoint.tensor("lm_head.weight").float(), checkpoint.vocabulary.code_range
    sums: dict[Head, list[float]] = {"image": [0, 0.0, 0], "text": [0, 0.0, 0]}
    for conversation, states in zip(sequences, hidden, strict=True):
        for kind, start, stop, found in _passes(engine, *conversation, checkpoint.vocabulary):
            weight = head[low:high] if kind == "image" else head
            expected = F.log_softmax(states[start:stop] @ weight.T, -1)
            given = F.log_softmax(found, -1)
            total = sums[kind]
            total[0] += stop - start
            total[1] += float((expected.exp() * (expected - given)).sum())
            total[2] += int((expected.argmax(-1) == given.argmax(-1)).sum())
    return {kind: Agreement(n, kl / n, same / n) for kind, (n, kl, same) in sums.items() if n}


def _passes(
    engine: Engine, tokens: Sequence[int], learnt: Sequence[bool], vocabulary: Vocabulary
) -> Iterator[tuple[Head, int, int, Tensor]]:
    """Logits of runs of positions at which codes are chosen, or words; the rest is fed and not looked at."""
    sequences, position = engine.open((len(tokens), 0)), 0
    for kind, run in groupby(_kinds(tokens, learnt, vocabulary)):
        end = position + len(list(run))
        for start in range(position, end, WIDTH):
            stop = min(start + WIDTH, end)
            fed = Segment(0, tokens[start:stop], stop - start if kind else 1)
            logits = sequences.forward([fed], kind or "text")[0]
            if kind:
                yield kind, start, stop, torch.from_numpy(logits.copy())
        position = end


def _kinds(tokens: Sequence[int], learnt: Sequence[bool], vocabulary: Vocabulary) -> Iterator[Head | None]:
    """Which head chooses the token after each position; none where it is not the model's, or the layout's own."""
    low, high = vocabulary.code_range
    grids = range(vocabulary.first_grid, vocabulary.first_grid + vocabulary.grids)
    layout = {vocabulary.begin_image, vocabulary.end_image, vocabulary.end_row, *grids}
    for token, chosen in zip(tokens[1:], learnt[1:], strict=True):
        if not chosen or token in layout:
            yield None
        else:
            yield "image" if low <= token < high else "text"
    yield None
