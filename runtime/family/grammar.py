"""What an answer may go on with, known from its tokens alone: words, or the layout of an open picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mgpt_edge.runtime.family.layout import ImageLayout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mgpt_edge.runtime.family.vocabulary import Vocabulary

Mode = Literal["text", "grid", "code"]
"""Text is drawn from the whole vocabulary, grid tokens and codes from their own; only codes are guided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What the caller fixes of an answer; all else is for the model to say.

    Args:
        vocabulary: of the checkpoint.
        stride: pixels a code covers on each side.
        limit: most tokens of the answer.
        limited_by: the setting that `limit` comes from.
        layout: of every picture in it; None reads the grid tokens that the model emits.
        picture: whether the answer is one picture and nothing else.
        kept: tokens that stand already, by their index in the picture.
    """

    vocabulary: Vocabulary
    stride: int
    limit: int
    layout: ImageLayout | None = None
    picture: bool = False
    kept: Mapping[int, int] = field(default_factory=dict)
    limited_by: str = "max_tokens"


class Grammar:
    """An answer as far as it has come (the state machine of the family's logits processors).

    Attributes:
        tokens: all of the answer so far.
        start: index of the open picture's begin-of-image in them; None outside of pictures.
        layout: of the open picture, once its size is known.
        pictures: number of closed ones.
        done: whether the answer is over.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        self.tokens: list[int] = []
        self.start: int | None = None
        self.layout: ImageLayout | None = None
        self.pictures = 0
        self.done = False

    @property
    def mode(self) -> Mode:
        if self.start is None:
            return "text"
        return "code" if len(self.tokens) - self.start > 2 else "grid"

    def interval(self) -> tuple[int, int]:
        """Half-open interval of the ids that may come next."""
        v = self.form.vocabulary
        if self.start is None:
            return (v.begin_image, v.begin_image + 1) if self.form.picture else (0, v.size)
        if self.layout is None:
            return v.first_grid + 1, v.first_grid + v.grids
        return self.interval_at(len(self.tokens) - self.start)

    @property
    def forced(self) -> int | None:
        """The id that must come next, if only one may."""
        low, high = self.interval()
        return low if high - low == 1 else None

    def interval_at(self, index: int) -> tuple[int, int]:
        """What may stand at `index` of the open picture, whose layout is known."""
        assert self.layout is not None
        kept = self.form.kept.get(index)
        return self.layout.interval(index) if kept is None else (kept, kept + 1)

    def push(self, token: int) -> None:
        """The answer goes on with a token of `interval()`."""
        self.tokens.append(token)
        v = self.form.vocabulary
        if self.start is None:
            if token == v.begin_image:
                self.start, self.layout = len(self.tokens) - 1, self.form.layout
            self.done = token == v.separator
        elif self.layout is None:
            if len(self.tokens) - self.start == 3:
                self.layout = ImageLayout.of_grid(self.tokens[-2], token, v, self.form.stride)
        elif token == v.end_image:
            self.start = self.layout = None
            self.pictures += 1
            self.done = self.form.picture

    @property
    def missing(self) -> int:
        """Tokens that the open picture, whose size is known, takes beyond the answer's limit."""
        assert self.start is not None
        assert self.layout is not None
        return self.start + len(self.layout) - self.form.limit

    def open_picture(self) -> tuple[int, ...]:
        """The open picture's tokens so far, from begin-of-image."""
        return () if self.start is None else tuple(self.tokens[self.start :])
