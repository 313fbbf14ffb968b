"""What an answer under way gives: what is done of it, and the passes that it wants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy as np
    from numpy.typing import NDArray

    from mgpt_edge.runtime.engines.base import Head, Segment


@dataclass(frozen=True, slots=True)
class FinishedRow:
    """A row of codes, complete.

    Args:
        picture: which picture, counted through all prompts.
        row: which of its rows, from 0.
        tokens: the picture's tokens so far, from begin-of-image.
        passes: passes that this answer took part in since the row before.
        guessed: tokens that those passes were fed ahead.
        accepted: tokens since then that had been guessed rightly, and cost no pass.
        seconds: time since the row before.
    """

    picture: int
    row: int
    tokens: tuple[int, ...] = field(repr=False)
    passes: int
    guessed: int
    accepted: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Word:
    """A token of text."""

    token: int


@dataclass(frozen=True, slots=True)
class End:
    """The answer is over.

    Args:
        answer: which one, counted through all prompts.
        tokens: all of it.
        unfed: its last tokens, whose K/V nobody has needed yet: a next turn feeds them first.
        prefilled: tokens of its prompt, which answers to one prompt share.
        passes: passes that it took part in, the prompt's among them.
        complete: whether the model ended it; otherwise it was cut at its limit.
    """

    answer: int
    tokens: tuple[int, ...] = field(repr=False)
    unfed: tuple[int, ...]
    prefilled: int
    passes: int
    complete: bool


Step = FinishedRow | Word | End


@dataclass(frozen=True, slots=True)
class Pass:
    """What one stream wants computed; streams that want the same head can share a pass."""

    feeds: list[Segment]
    head: Head


if TYPE_CHECKING:
    Loop = Generator[Step | Pass, list[NDArray[np.float32]], None]
    """An answer under way: yields what is done and what it wants computed, and is sent the logits of that."""
    Prefill = Generator[Pass, list[NDArray[np.float32]], None]
    """A prompt under way, likewise."""
