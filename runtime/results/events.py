"""What an answer is made of: events while it comes, and the whole once it is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

from mgpt_edge.runtime.decoding.steps import End, FinishedRow
from mgpt_edge.runtime.errors import IncompleteAnswer
from mgpt_edge.runtime.family.tasks.task import IMAGE_MARK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of text, whole characters."""

    text: str


@dataclass(frozen=True, slots=True)
class Preview:
    """The rows of a picture finished so far, decoded; `seconds` is what the preview itself cost."""

    picture: int
    image: Image.Image
    seconds: float


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture; `image.info["mgpt"]` says how it was drawn. `seconds` is the time of its VQ decoding."""

    picture: int
    image: Image.Image
    tokens: tuple[int, ...] = field(repr=False)
    seconds: float


Event = Text | FinishedRow | Preview | Picture | End


@dataclass(frozen=True, slots=True)
class Answer:
    """Text and pictures in the order in which they came.

    Args:
        parts: text pieces and pictures.
        end: what it cost and whether the model ended it; None where it broke off.
    """

    parts: tuple[str | Image.Image, ...]
    end: End | None

    @property
    def text(self) -> str:
        """The text, with a mark where each picture stands."""
        return "".join(part if isinstance(part, str) else IMAGE_MARK for part in self.parts)

    @property
    def images(self) -> list[Image.Image]:
        return [part for part in self.parts if isinstance(part, Image.Image)]

    @classmethod
    def of(cls, events: Iterable[Event]) -> Answer:
        """Waits for the whole answer; one that breaks off carries what there was of it.

        Raises:
            IncompleteAnswer: as the events do.
        """
        parts: list[str | Image.Image] = []
        end = None
        try:
            for event in events:
                if isinstance(event, Text) and parts and isinstance(parts[-1], str):
                    parts[-1] += event.text
                elif isinstance(event, Text):
                    parts.append(event.text)
                elif isinstance(event, Picture):
                    parts.append(event.image)
                elif isinstance(event, End):
                    end = event
        except IncompleteAnswer as error:
            partial = () if error.image is None else (error.image,)
            error.answer = cls((*parts, *partial), None)
            raise
        return cls(tuple(parts), end)


class Detokenizer:
    """Tokens of text to characters, held back while a character's bytes are not all there."""

    LONGEST = 4  # bytes of a character in UTF-8, so tokens too

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.held: list[int] = []

    def push(self, token: int) -> str:
        """The text that is whole now, which may be none."""
        self.held.append(token)
        text = self.tokenizer.decode(self.held, skip_special_tokens=False)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(self.held) < self.LONGEST:
            return ""
        self.held.clear()
        return str(text)

    def flush(self) -> str:
        """What was held back, broken characters as U+FFFD."""
        text = self.tokenizer.decode(self.held, skip_special_tokens=False)
        self.held.clear()
        return str(text)
