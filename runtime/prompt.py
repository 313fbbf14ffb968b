"""What the family's models were told in training, as one table, and the tokens of a turn of conversation."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

from mgpt_edge.runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from mgpt_edge.runtime.vocabulary import Vocabulary

IMAGE_MARK = "<|image|>"
"""Where a picture stands in a turn's text."""
SEPARATOR = "<reserved08706>"
"""What ends a turn: the name of a token, or the very words where a tokenizer has no such token."""

_CONDITIONED = (
    "Generate an image according to the provided image, and according to the following caption:\n"
    f"{{prompt}} {IMAGE_MARK}"
)


def _panels(shown: str, half: str, other: str) -> str:
    return (
        f"Generate a dual-panel image of {{width}}x{{height}} where the <{half} half> displays a <{shown}>, while the "
        f"<{other} half> retains the original image for direct visual comparison:\n{{prompt}}"
    )


TEMPLATES = {
    "text-to-image": "Generate an image of {width}x{height} according to the following prompt:\n{prompt}",
    "depth": f"Depth estimation. {IMAGE_MARK}",
    "normals": f"Surface normal estimation. {IMAGE_MARK}",
    "segmentation": f"Segmentic segmentation. {IMAGE_MARK}",
    "pose": f"Human pose estimation. {IMAGE_MARK}",
    "detect": f"Detect: {{object}} {IMAGE_MARK}",
    "edit": f"{{instruction}} {IMAGE_MARK}",
    "reconstruct": f"No edit. {IMAGE_MARK}",
    "from-edges": _CONDITIONED,
    "from-depth": _CONDITIONED,
    "from-segmentation": _CONDITIONED,
    "describe": f"Describe the image in detail. {IMAGE_MARK}",
    "chat": "{prompt}",
    "pair-depth": _panels("depth map", "lower", "upper"),
    "pair-canny": _panels("canny edge map", "lower", "upper"),
    "pair-hed": _panels("hed edge map", "lower", "upper"),
    "pair-pose": _panels("pose estimation map", "lower", "upper"),
    "panel-depth": _panels("depth map", "upper", "lower"),
    "panel-canny": _panels("canny edge map", "upper", "lower"),
    "panel-subject": _panels("Bubbly and effervescent with a sparkling allure.", "upper", "lower"),
}
"""Task -> the exact question of the family's own demos, spelling included; dual panels are Lumina-mGPT 2.0's."""

FROM_WORDS = ("text-to-image", "pair-depth", "pair-canny", "pair-hed", "pair-pose")
"""Tasks whose picture is drawn from words alone."""

UPPER_HALF = ("panel-depth", "panel-canny", "panel-subject")
"""Tasks that are given the upper half of their picture, where others find a picture in the question."""

CONVERSATIONS = frozenset(("describe", "chat"))
"""Tasks whose answer is text, pictures, or both, as the model likes; that of every other is one picture."""

LARGEST_PROMPT_TOKENS = 4096  # far above any caption of the training data


def user_field(task: str) -> str | None:
    """What a user says in the question of a task: its prompt, instruction or object, or nothing."""
    names = {name for _, name, _, _ in string.Formatter().parse(TEMPLATES[task]) if name}
    return next(iter(names - {"width", "height"}), None)


def encode_prompt(
    tokenizer: Tokenizer, vocabulary: Vocabulary, task: str, pictures: Sequence[list[int]] = (), **values: object
) -> list[int]:
    """A conversation's first turn: bos, the question, the separator after which the model answers.

    The pictures stand at the template's marks; a mark among the user's own words is text like any other. A separator
    in words is encoded with the text before it, as the family does: merges may join the two.

    Raises:
        InvalidRequest: the task takes another number of pictures, or the text is too long.
    """
    parts = [part.format(**values) for part in TEMPLATES[task].split(IMAGE_MARK)]
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
