"""Conversations as token sequences: what the model reads, and what of it the model learns to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mgpt_edge.runtime.family.prompt import encode_turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from mgpt_edge.runtime.family.vocabulary import Vocabulary

UNLABELLED = -100


@dataclass(frozen=True, slots=True)
class Turn:
    """One side's message: text with a mark for each picture, and the pictures' tokens."""

    text: str
    pictures: tuple[list[int], ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A sequence of tokens; `learnt` says of each whether the model is taught to predict it."""

    tokens: list[int]
    learnt: list[bool]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.learnt) or not any(self.learnt):
            msg = f"expected a mark for each of {len(self.tokens)} tokens and one that is learnt, got {self.learnt}"
            raise ValueError(msg)

    def __len__(self) -> int:
        return len(self.tokens)


def encode_conversation(turns: Sequence[Turn], tokenizer: Tokenizer, vocabulary: Vocabulary) -> Sample:
    """bos, then each turn and its separator; the human speaks first, the model's turns are learnt whole."""
    tokens, learnt = [vocabulary.bos], [False]
    for number, turn in enumerate(turns):
        said = [*encode_turn(tokenizer, turn.text, turn.pictures), vocabulary.separator]
        tokens += said
        learnt += [number % 2 == 1] * len(said)
    return Sample(tokens, learnt)


def without_prompt(sample: Sample) -> Sample:
    """What guidance's unconditional row sees: the answer alone, without the separator that ends it."""
    tokens = [token for token, learnt in zip(sample.tokens, sample.learnt, strict=True) if learnt][:-1]
    # Nothing stands before the first token that could predict it.
    return Sample(tokens, [False] + [True] * (len(tokens) - 1))


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Right-padded sequences, with the label of each position's successor.

    Attributes:
        tokens: int64 [b, t].
        labels: int64 [b, t], UNLABELLED where nothing is learnt.
    """

    tokens: Tensor
    labels: Tensor


def collate(samples: Sequence[Sample]) -> Batch:
    """Padding stands behind everything that is learnt, so a causal model needs no mask."""
    longest = max(map(len, samples))
    tokens = torch.zeros(len(samples), longest, dtype=torch.int64)
    labels = torch.full((len(samples), longest), UNLABELLED)
    for row, sample in enumerate(samples):
        ids = torch.tensor(sample.tokens)
        tokens[row, : len(ids)] = ids
        labels[row, : len(ids) - 1] = ids[1:].where(torch.tensor(sample.learnt[1:]), UNLABELLED)
    return Batch(tokens, labels)
