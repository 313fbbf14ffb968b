"""The special ids of a tokenizer.json by name, and the same tokenizer with nothing special left in it."""

from __future__ import annotations

import json
import re
from typing import Any

from mgpt_edge.export.shards import parse_json
from mgpt_edge.runtime.errors import CheckpointError
from mgpt_edge.runtime.family.prompt import SEPARATOR
from mgpt_edge.runtime.family.vocabulary import Vocabulary

SOURCE = "tokenizer.json"

BOS, BEGIN_IMAGE, END_IMAGE = "<s>", "<racm3:break>", "<eoss>"
END_ROW = "<reserved08799>"
PLACEHOLDER = "<|image|>"
FIRST_GRID = 8800
"""`<reserved08800>` names grid token 0, `<reserved08801>` grid token 1, ..."""

# A code's name spells its decimal digits as letters: IMGIMG, 0..9 as A..J, Z. In Lumina-mGPT 2.0 it has the digits.
CODE = re.compile(r"IMGIMG([A-J]+)Z|<MOVQGAN\D*(\d+)\D*>")
DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")

# Every name by which the family's tokenizers call something that is not text.
SPECIAL = re.compile(
    r"IMGIMG[A-J]+Z|</?s>|<(pad|unk|mask|eoss|image)>|<(reserved|sentinel:|racm3:|MOVQGAN)[^<>]*>|<\|.*\|>"
)


def read_vocabulary(tokenizer_json: str, bos: str = BOS) -> Vocabulary:
    """Finds the ids of the family's special tokens by their names.

    Args:
        tokenizer_json: text of a Hugging Face `tokenizer.json`, or of Meta's `text_tokenizer.json`.
        bos: name of the token that begins a conversation.

    Returns:
        The vocabulary; its size is the highest id plus one. The placeholder `<|image|>` does not count: it is
        replaced before the model sees it, and the family's models have no row for it. Only Lumina-mGPT 2.0 may lack
        a separator.

    Raises:
        CheckpointError: a name is missing, or codes or grid tokens are not consecutive.
    """
    ids = _ids(_parse(tokenizer_json))
    first_code, codes = _codes(ids)
    first_grid, grids = _grids(ids)
    needed = (bos, BEGIN_IMAGE, END_IMAGE, END_ROW, *((SEPARATOR,) if code_name(0) in ids else ()))
    missing = [name for name in needed if name not in ids]
    if missing:
        msg = f"{SOURCE}: the tokens {', '.join(missing)} are missing: no tokenizer of the Lumina-mGPT family"
        if missing == [bos]:
            msg = f"{SOURCE}: there is no token {bos}; tokenizer_config.json beside it must name one to begin with"
        raise CheckpointError(msg)
    return Vocabulary(
        size=max(i for name, i in ids.items() if name != PLACEHOLDER) + 1,
        bos=ids[bos],
        begin_image=ids[BEGIN_IMAGE],
        end_image=ids[END_IMAGE],
        end_row=ids[END_ROW],
        separator=ids.get(SEPARATOR),
        first_grid=first_grid,
        grids=grids,
        first_code=first_code,
        codes=codes,
    )


def first_token(tokenizer_config: dict[str, Any]) -> str:
    """Name of the token that begins a conversation, by a parsed `tokenizer_config.json`.

    As in the family's code: the tokenizer's bos or, where it has none (Qwen's), its eos.

    Raises:
        CheckpointError: neither is there.
    """
    for key in ("bos_token", "eos_token"):
        token = tokenizer_config.get(key)
        name = token.get("content") if isinstance(token, dict) else token
        if isinstance(name, str) and name:
            return name
    msg = "tokenizer_config.json: neither bos_token nor eos_token says how a conversation begins"
    raise CheckpointError(msg)


def text_tokenizer(tokenizer_json: str) -> str:
    """Makes the tokenizer for what users type: its vocabulary holds text and nothing else.

    The guarantee does not hang on how the text is split: special ids are taken out of the vocabulary, so no
    merge and no look-up can give one. Ordinary text keeps its ids.

    Args:
        tokenizer_json: as for `read_vocabulary`.

    Returns:
        Text of a `tokenizer.json` without added tokens, special entries, merges that made them, padding,
        truncation and post-processing.

    Raises:
        CheckpointError: it is no byte-level BPE, or one of the 256 bytes has no id of its own.
    """
    tokenizer = _parse(tokenizer_json)
    model = tokenizer["model"]
    if model.get("type", "BPE") != "BPE" or not _has_byte_level(tokenizer.get("pre_tokenizer")):
        msg = f"{SOURCE}: expected a byte-level BPE, got {model.get('type')!r}"
        raise CheckpointError(msg)
    added = {token["content"] for token in tokenizer.get("added_tokens") or []}
    text = {name: i for name, i in model["vocab"].items() if name not in added and not SPECIAL.fullmatch(name)}
    lost = [byte for byte, letter in enumerate(byte_alphabet()) if letter not in text]
    if lost:
        msg = f"{SOURCE}: {len(lost)} of the 256 bytes have no token, the first is {lost[0]:#04x}: text would be lost"
        raise CheckpointError(msg)
    merges = [merge for merge in model.get("merges") or [] if _keeps(merge, text)]
    model = model | {"vocab": text, "merges": merges, "unk_token": None}
    clean: dict[str, Any] = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return json.dumps(tokenizer | clean | {"model": model}, ensure_ascii=False)


def byte_alphabet() -> list[str]:
    """The letter that stands for each byte in byte-level BPE: itself if printable in Latin-1, else one from U+0100."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    letters, spare = [], 0x100
    for byte in range(256):
        if byte in printable:
            letters.append(chr(byte))
        else:
            letters.append(chr(spare))
            spare += 1
    return letters


def code_name(code: int) -> str:
    """The token name of an image code: 10 is `IMGIMGBAZ`."""
    return f"IMGIMG{''.join('ABCDEFGHIJ'[int(digit)] for digit in str(code))}Z"


def _parse(tokenizer_json: str) -> dict[str, Any]:
    tokenizer = parse_json(tokenizer_json, SOURCE)
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens") or []
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not vocab or not all(type(i) is int and i >= 0 for i in vocab.values()):
        msg = f"{SOURCE}: expected a model with a vocabulary from names to ids"
        raise CheckpointError(msg)
    for token in added:
        if not isinstance(token, dict) or type(token.get("id")) is not int or type(token.get("content")) is not str:
            msg = f"{SOURCE}: expected added tokens with an id and a content, got {token!r}"
            raise CheckpointError(msg)
    return tokenizer


def _ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
    return tokenizer["model"]["vocab"] | added


def _codes(ids: dict[str, int]) -> tuple[int, int]:
    """First id and number of the image codes."""
    codes = {int(match[2] or match[1].translate(DIGITS)): ids[name] for name in ids if (match := CODE.fullmatch(name))}
    if 0 not in codes:
        msg = f"{SOURCE}: the image codes are missing, expected {code_name(0)} and on, or <MOVQGAN0> and on"
        raise CheckpointError(msg)
    first = codes[0]
    for code in range(len(codes)):
        if codes.get(code) != first + code:
            msg = f"{SOURCE}: image code {code} should have the id {first + code}, got {codes.get(code)}"
            raise CheckpointError(msg)
    return first, len(codes)


def _grids(ids: dict[str, int]) -> tuple[int, int]:
    """Id of grid token 0 (which need not exist: no picture is 0 pixels high) and the number of them, from 0."""
    one = ids.get(f"<reserved{FIRST_GRID + 1:05d}>")
    if one is None:
        msg = f"{SOURCE}: the grid tokens are missing, expected <reserved{FIRST_GRID + 1:05d}> and on"
        raise CheckpointError(msg)
    grids = 2
    while ids.get(f"<reserved{FIRST_GRID + grids:05d}>") == one + grids - 1:
        grids += 1
    return one - 1, grids


def _has_byte_level(stage: dict[str, Any] | None) -> bool:
    if not stage:
        return False
    return stage.get("type") == "ByteLevel" or any(map(_has_byte_level, stage.get("pretokenizers", [])))


def _keeps(merge: str | list[str], text: dict[str, int]) -> bool:
    """Whether both parts of a merge and its result are text; a merge is `"a b"` or `["a", "b"]`."""
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2:
        msg = f"{SOURCE}: a merge has two parts, got {merge!r}"
        raise CheckpointError(msg)
    return pair[0] in text and pair[1] in text and "".join(pair) in text
