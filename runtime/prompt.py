"""What the family's models were told in training, as one table, and the tokens of a turn of conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpt_edge.runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from mgpt_edge.runtime.vocabulary import Vocabulary

IMAGE_MARK = "<|image|>"
"""Where a picture stands in a turn's text."""

_CONDITIONED = (
    f"Generate an image according to the provided image, and according to the following caption:\n{{prompt}} {IMAGE_MARK}"
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
}
"""Task -> the exact question of the family (`Lumina-mGPT`'s own demos, its spelling included)."""

LARGEST_PROMPT_TOKENS = 4096  # far above any caption of the training data


def encode_prompt(tokenizer: Tokenizer, vocabulary: Vocabulary, task: str, **values: object) -> list[int]:
    """A conversation's first turn without pictures: bos, the question, the separator after which the model answers.

    Raises:
        InvalidRequest: the text is too long.
    """
    return [vocabulary.bos, *encode_turn(tokenizer, TEMPLATES[task].format(**values)), vocabulary.separator]


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
    first, *others = text.split(IMAGE_MARK)
    if len(others) != len(pictures):
        msg = f"the text has {len(others)} marks {IMAGE_MARK} for {len(pictures)} pictures; give one mark each, or none"
        raise InvalidRequest(msg)
    parts = [tokenizer.encode(part, add_special_tokens=False).ids for part in (first, *others)]
    if (length := sum(map(len, parts))) > LARGEST_PROMPT_TOKENS:
        msg = f"the prompt has {length} tokens, at most {LARGEST_PROMPT_TOKENS} can be used; shorten it"
        raise InvalidRequest(msg)
    tokens = parts[0]
    for picture, part in zip(pictures, parts[1:], strict=True):
        tokens = [*tokens, *picture, *part]
    return tokens
