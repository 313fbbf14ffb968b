"""Tokenizers of the family's kinds with made-up text: names and ids are right, the merges are not trained."""

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

# Qwen 2.5's own specials, with which Lumina-mGPT 2.0's tokenizer begins after its 151643 ids of text.
QWEN_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
QWEN_TEXT = 151643
# Up to the codes, which begin at id 155000; what really stands behind the grid tokens there is not known.
QWEN_GRIDS = 3329
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

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
    vocab, merges = _grown({name: i for i, name in enumerate(specials)}, size)
    splits = [r"<sentinel:[0-9]+>", r"IMGIMG[A-J]{1,4}Z", r"[\t\n]|    |  "]
    stages = [
        *map(_split, splits),
        {"type": "Digits", "individual_digits": True},
        {"type": "Punctuation", "behavior": "Isolated"},
        _byte_level(use_regex=True),
    ]
    tokenizer = _tokenizer(vocab, merges, specials, stages)
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [vocab[BOS]], "tokens": [BOS]}},
    }
    return json.dumps(tokenizer, ensure_ascii=False)


def second_tokenizer(codes: int, grids: int = 33, size: int | None = None) -> str:
    """Builds a `tokenizer.json` as Lumina-mGPT 2.0 has it: Qwen's, then the family's names, which are no text.

    Args:
        codes: number of image codes; 16384 with `QWEN_GRIDS` and `QWEN_TEXT` give the published ids.
        grids: number of grid tokens.
        size: ids of text, filled up with pairs and triples of bytes; None: only the words.

    Returns:
        The JSON text.
    """
    vocab, merges = _grown({}, size)
    tokenizer = _tokenizer(vocab, merges, second_names(codes, grids), [_split(QWEN_SPLIT), _byte_level()])
    return json.dumps(tokenizer | {"normalizer": {"type": "NFC"}, "post_processor": _byte_level()}, ensure_ascii=False)


def second_names(codes: int, grids: int) -> list[str]:
    """Added tokens of Lumina-mGPT 2.0 in the order of their ids; its separator is not among them, but words."""
    reserved = [f"<reserved{number:05d}>" for number in range(8796, 8800 + grids)]
    return [*QWEN_SPECIALS, BEGIN_IMAGE, END_IMAGE, *reserved, *(f"<MOVQGAN{code}>" for code in range(codes))]


def _grown(vocab: dict[str, int], size: int | None) -> tuple[dict[str, int], list[list[str]]]:
    """A vocabulary with all bytes and words added, up to `size` ids, and the merges that make the words."""
    # By code point is the order of byte-level vocabularies: "!" comes first.
    letters = sorted(byte_alphabet())
    vocab = vocab | {letter: len(vocab) + i for i, letter in enumerate(letters)}
    merges = []
    pairs = itertools.product(letters, letters)
    triples = (((a + b), c) for a, b, c in itertools.product(letters, repeat=3))
    for left, right in itertools.chain(_merges_of_words(), *((pairs, triples) if size else ())):
        if len(vocab) == size:
            break
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append([left, right])
    return vocab, merges


def _merges_of_words() -> Iterator[tuple[str, str]]:
    for word in WORDS:
        for end in range(1, len(word)):
            yield word[:end], word[end]


def _tokenizer(
    vocab: dict[str, int], merges: list[list[str]], specials: Sequence[str], stages: list[dict[str, Any]]
) -> dict[str, Any]:
    """Specials without an id in the vocabulary follow it."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ids = {name: len(vocab) + i for i, name in enumerate(specials)} | vocab
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[name], "content": name, **flags} for name in specials],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": stages},
        "post_processor": None,
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


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _byte_level(*, use_regex: bool = False) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}
