"""The tokens of a turn of conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.family.tasks import template
from mgpt_edge.runtime.family.tasks.task import IMAGE_MARK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from mgpt_edge.runtime.family.vocabulary import Vocabulary

SEPARATOR = "<reserved08706>"
"""What ends a turn: the name of a token, or the very words where a tokenizer has no such token."""
LARGEST_PROMPT_TOKENS = 4096  # far above any caption of the training data


def encode_prompt(
    tokenizer: Tokenizer, vocabulary: Vocabulary, task: str, pictures: Sequence[list[int]] = (), **values: object
) -> list[int]:
    """A conversation's first turn: bos, the question, the separator after which the model answers.

    The pictures stand at the template's marks; a mark among the user's own words is text like any other. A separator
    in words is encoded with the text before it, as the family does: merges may join the two.

    Raises:
        InvalidRequest: the task takes another number of pictures, or the text is too long.
    """
    parts = [part.format(**values) for part in template(task).split(IMAGE_MARK)]
    if len(pictures) != len(parts) - 1:
        expected = {1: "no picture", 2: "one picture"}[len(parts)]
        msg = f"the task {task!r} takes {expected}, got {len(pictures)}"
        raise InvalidRequest(msg)
    if vocabulary.separator is None:
        parts[-1] += SEPARATOR
    return [vocabulary.bos, *_interleave(tokenizer, parts, pictures), *vocabulary.turn_end]


def encode_turn(tokenizer: Tokenizer, text: str, pictures: Sequence[list[int]] = ()) -> list[int]:
    """One turn's tokens, without the separator that ends it.

    The bundle's tokenizer knows text only, so nothing a user types can become a special token.

    Args:
        tokenizer: of the bundle.
        text: with an IMAGE_MARK for each picture; pictures without any mark stand before the text.
        pictures: the tokens of each (`ImageLayout.encode`), in the order of the marks.

    Raises:
        InvalidRequest: as many marks as pictures were expected, or the text is too long.
    """
    if pictures and IMAGE_MARK not in text:
        text = f"{IMAGE_MARK} " * len(pictures) + text
    parts = text.split(IMAGE_MARK)
    if len(parts) - 1 != len(pictures):
        marks = len(parts) - 1
        msg = f"the text has {marks} marks {IMAGE_MARK} for {len(pictures)} pictures; give one mark each, or none"
        raise InvalidRequest(msg)
    return _interleave(tokenizer, parts, pictures)


def _interleave(tokenizer: Tokenizer, parts: Sequence[str], pictures: Sequence[list[int]]) -> list[int]:
    """Text and pictures in turn; there is one part of text more, each tokenised by itself."""
    texts = [tokenizer.encode(part, add_special_tokens=False).ids for part in parts]
    if (length := sum(map(len, texts))) > LARGEST_PROMPT_TOKENS:
        msg = f"the prompt has {length} tokens, at most {LARGEST_PROMPT_TOKENS} can be used; shorten it"
        raise InvalidRequest(msg)
    tokens = texts[0]
    for picture, text in zip(pictures, texts[1:], strict=True):
        tokens = [*tokens, *picture, *text]
    return tokens
