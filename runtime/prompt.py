"""What the family's models were told in training, as one table, and the tokens of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpt_edge.runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from mgpt_edge.runtime.vocabulary import Vocabulary

TEMPLATES = {
    "text-to-image": "Generate an image of {width}x{height} according to the following prompt:\n{prompt}",
}
"""Task -> the exact question of the family (`Lumina-mGPT`'s own demos)."""

LARGEST_PROMPT_TOKENS = 4096  # far above any caption of the training data


def encode_prompt(tokenizer: Tokenizer, vocabulary: Vocabulary, task: str, **values: object) -> list[int]:
    """The conversation's first turn: bos, the question, the separator after which the model answers.

    The bundle's tokenizer knows text only, so nothing a user types can become a special token.

    Raises:
        InvalidRequest: the text is too long.
    """
    text = TEMPLATES[task].format(**values)
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    if len(tokens) > LARGEST_PROMPT_TOKENS:
        msg = f"the prompt has {len(tokens)} tokens, at most {LARGEST_PROMPT_TOKENS} can be used; shorten it"
        raise InvalidRequest(msg)
    return [vocabulary.bos, *tokens, vocabulary.separator]
