"""What is known of a task."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

IMAGE_MARK = "<|image|>"
"""Where a picture stands in a turn's text."""
READ_OFF: dict[str, float] = {"guidance": 1.0, "top_k": 200}
"""How the family's own demos sample what can be read off a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A question that the family's models were trained to answer.

    Args:
        name: in requests, manifests and on the command line.
        order: place in lists.
        template: the exact question of the family's own demos, spelling included.
        given: what its picture is drawn from: the user's words alone, a picture in the question, or the upper half of
            the picture itself; a conversation is answered by text, pictures, or both, as the model likes.
        sampling: settings that differ from the checkpoint's own.
        generation: 2 where only Lumina-mGPT 2.0 was trained for it.
    """

    name: str
    order: int
    template: str
    given: Literal["words", "picture", "upper half", "conversation"]
    sampling: Mapping[str, float] = field(default_factory=dict)
    generation: int = 1

    @property
    def from_words(self) -> bool:
        return self.given == "words"

    @property
    def converses(self) -> bool:
        return self.given == "conversation"

    @property
    def field(self) -> str | None:
        """What a user says in the question: its prompt, instruction or object, or nothing."""
        names = {name for _, name, _, _ in string.Formatter().parse(self.template) if name}
        return next(iter(names - {"width", "height"}), None)
