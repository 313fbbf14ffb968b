"""A tokenizer of the family's kind with made-up text: names and ids are right, the merges are not trained."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from mgpt_edge.export.tokenizer import BEGIN_IMAGE, BOS, END_IMAGE, byte_alphabet, code_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Words of the family's prompts, so that a prompt is a few tokens and not one a byte; Ġ is a space.
WORDS = (
    "Generate", "Ġan", "Ġimage", "Ġof", "Ġaccording", "Ġto", "Ġthe", "Ġfollowing", "Ġprompt",
    "Ġa", "Ġred", "Ġgreen", "Ġblue", "Ġsphere", "Ġcube", "Ġon", "Ġgray", "Ġfloor",
)  # fmt: skip

# With 8192 codes these let the text begin at id 16384, as in Lumina-mGPT 1: id = number + 4.
FAMILY_RESERVED = range(8194, 16380)
# Separator, end of row, and grid tokens for pictures up to 1024 pixels.
SMALL_RESERVED = (8706, 8799, *range(8800, 8833))


def family_tokenizer(codes: int, reserved: Sequence[int] = SMALL_RESERVED, size: int | None = None) -> str:
    """Builds a `tokenizer.json` in the family's order: four specials, codes, end and begin of image, reserved, text.

    Args:
        codes: number of image codes; 8192 with `FAMILY_RESERVED` and size 65536 give the ids of Lumina-mGPT 1.
        reserved: numbers of the `<reserved…>` names, in the order of their ids.
        size: number of ids, filled up with pairs of bytes; None: only the words.

    Returns:
        The JSON text.
    """
    specials = [BOS, "<pad>", "</s>", "<unk>", *map(code_name, range(codes)), END_IMAGE, BEGIN_IMAGE]
    specials += [f"<reserved{number:05d}>" for number in reserved]
    # By code point is the order of byte-level vocabularies: "!" comes first.
    letters = sorted(byte_alphabet())
    vocab = {name: i for i, name in enumerate([*specials, *letters])}
    merges = []
    fill = itertools.product(letters, letters) if size else ()
    for left, right in itertools.chain(_merges_of_words(), fill):
        if len(vocab) == size:
            break
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append([left, right])
    return json.dumps(_tokenizer(vocab, merges, specials), ensure_ascii=False)


def _merges_of_words() -> Iterator[tuple[str, str]]:
    for word in WORDS:
        for end in range(1, len(word)):
            yield word[:end], word[end]


def _tokenizer(vocab: dict[str, int], merges: list[list[str]], specials: list[str]) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    splits = [r"<sentinel:[0-9]+>", r"IMGIMG[A-J]{1,4}Z", r"[\t\n]|    |  "]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[name], "content": name, **flags} for name in specials],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                *(
                    {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
                    for regex in splits
                ),
                {"type": "Digits", "individual_digits": True},
                {"type": "Punctuation", "behavior": "Isolated"},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {BOS: {"id": BOS, "ids": [vocab[BOS]], "tokens": [BOS]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
