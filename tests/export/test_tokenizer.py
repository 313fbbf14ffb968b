from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mgpt_edge.bench.models.random_tokenizer import FAMILY_RESERVED, family_tokenizer
from mgpt_edge.export.tokenizer import SPECIAL, byte_alphabet, code_name, read_vocabulary, text_tokenizer
from mgpt_edge.runtime.errors import CheckpointError
from tests.families import tiny_tokenizer

SPELLED = [
    "<reserved08706>",
    "<eoss>",
    "IMGIMGAZ",
    "IMGIMGBAZ",
    "<|image|>",
    "<s>",
    "</s>",
    "<racm3:break>",
    "<sentinel:1>",
]


def with_tempting_merges() -> str:
    """The tiny tokenizer, with merges that spell special names letter by letter, and look-up of whole words."""
    tokenizer = json.loads(tiny_tokenizer())
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    for name in ("<eoss>", "<s>", "IMGIMGAZ", "<reserved08706>"):
        for end in range(2, len(name) + 1):
            vocab.setdefault(name[:end], len(vocab))
            merges.append([name[: end - 1], name[end - 1]])
    vocab["<sentinel:1>"] = len(vocab)
    tokenizer["model"]["ignore_merges"] = True
    return json.dumps(tokenizer)


ORIGINAL = Tokenizer.from_str(tiny_tokenizer())
PLAIN = Tokenizer.from_str(text_tokenizer(tiny_tokenizer()))
TEMPTED = Tokenizer.from_str(text_tokenizer(with_tempting_merges()))
FIRST_TEXT = ORIGINAL.token_to_id("!")

texts = st.lists(st.sampled_from(SPELLED) | st.text(max_size=8), max_size=6).map("".join)


def is_special(name: str) -> bool:
    return name in SPELLED or name.startswith(("IMGIMG", "<reserved0"))


@given(texts)
@example("".join(SPELLED))
@example("<reserved08706")
def test_text_never_becomes_a_special_token(text):
    for tokenizer in (PLAIN, TEMPTED):
        encoding = tokenizer.encode(text)
        assert not any(map(is_special, encoding.tokens))
        assert all(i >= FIRST_TEXT for i in encoding.ids)
        assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text


@given(st.text(max_size=40).filter(lambda text: not SPECIAL.search(text)))
def test_ordinary_text_keeps_its_ids(text):
    assert PLAIN.encode(text).ids == ORIGINAL.encode(text, add_special_tokens=False).ids


def test_the_original_would_give_special_ids():
    assert ORIGINAL.encode("<eoss>", add_special_tokens=False).ids == [ORIGINAL.token_to_id("<eoss>")]


def test_no_special_id_is_left_to_give():
    left = json.loads(text_tokenizer(with_tempting_merges()))
    assert left["added_tokens"] == []
    assert left["post_processor"] is None
    assert not any(i < FIRST_TEXT for i in left["model"]["vocab"].values())
    assert not any("".join(merge) in {"<eoss>", "<s>", "IMGIMGAZ"} for merge in left["model"]["merges"])


def test_golden_ids_of_lumina_mgpt():
    vocabulary = read_vocabulary(family_tokenizer(8192, FAMILY_RESERVED, 65536))
    assert vocabulary.size == 65536
    assert (vocabulary.bos, vocabulary.first_code, vocabulary.codes) == (0, 4, 8192)
    assert (vocabulary.end_image, vocabulary.begin_image, vocabulary.separator) == (8196, 8197, 8710)
    assert vocabulary.end_row == 8803
    assert vocabulary.grid(16) == 8820
    assert FIRST_TEXT == 4 + 64 + 2 + 35  # codes, begin and end of image, reserved


def test_code_names():
    assert [code_name(code) for code in (0, 1, 10, 8191)] == ["IMGIMGAZ", "IMGIMGBZ", "IMGIMGBAZ", "IMGIMGIBJBZ"]


def test_the_byte_alphabet_is_a_bijection():
    assert len(set(byte_alphabet())) == 256
    assert set(byte_alphabet()) <= set(PLAIN.get_vocab())


def changed(**names: int | None) -> str:
    """The tiny tokenizer with names (their `_` for `<`…`>`) given another id, or taken out."""
    tokenizer = json.loads(tiny_tokenizer())
    for name, i in names.items():
        written = name if name.startswith("IMG") else f"<{name}>"
        tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != written]
        tokenizer["model"]["vocab"].pop(written)
        if i is not None:
            tokenizer["model"]["vocab"][written] = i
    return json.dumps(tokenizer)


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (changed(eoss=None, reserved08706=None), "<eoss>, <reserved08706> are missing"),
        (changed(reserved08801=None), "<reserved08801> and on"),
        (changed(IMGIMGDZ=None), "image code 3 should have the id 7, got None"),
        (changed(IMGIMGDZ=4000), "image code 3 should have the id 7, got 4000"),
        (changed(IMGIMGAZ=None), "codes are missing"),
        (json.dumps({"model": {"vocab": {"<MOVQGAN1>": 155000}}}), "codes are missing"),
        (json.dumps({"model": {"vocab": {"<MOVQGAN0>": 155000, "<MOVQGAN1>": 155002}}}), "image code 1 should have"),
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        (json.dumps({"model": {"vocab": {"a": "b"}}}), "names to ids"),
        (json.dumps({"model": {"vocab": {"a": 1}}, "added_tokens": [3]}), "added tokens"),
    ],
)
def test_damaged_or_foreign_tokenizers(tokenizer, said):
    with pytest.raises(CheckpointError, match=said):
        read_vocabulary(tokenizer)


def test_grid_token_zero_may_be_missing():
    assert read_vocabulary(changed(reserved08800=None)) == read_vocabulary(tiny_tokenizer())


def test_a_placeholder_beyond_the_model_does_not_count():
    tokenizer = json.loads(tiny_tokenizer())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 9999, "content": "<|image|>"})
    assert read_vocabulary(json.dumps(tokenizer)) == read_vocabulary(tiny_tokenizer())


def test_a_tokenizer_that_would_lose_bytes_is_refused():
    tokenizer = json.loads(tiny_tokenizer())
    del tokenizer["model"]["vocab"]["Ġ"]
    with pytest.raises(CheckpointError, match="0x20"):
        text_tokenizer(json.dumps(tokenizer))


@pytest.mark.parametrize("stage", [None, {"type": "Whitespace"}])
def test_only_byte_level_bpe_is_text(stage):
    with pytest.raises(CheckpointError, match="byte-level"):
        text_tokenizer(json.dumps(json.loads(tiny_tokenizer()) | {"pre_tokenizer": stage}))


def test_merges_of_either_spelling():
    tokenizer = json.loads(tiny_tokenizer())
    tokenizer["model"]["merges"] = [" ".join(merge) for merge in tokenizer["model"]["merges"]]
    again = Tokenizer.from_str(text_tokenizer(json.dumps(tokenizer)))
    assert again.encode("Generate an image").ids == PLAIN.encode("Generate an image").ids
    tokenizer["model"]["merges"] = ["abc"]
    with pytest.raises(CheckpointError, match="two parts"):
        text_tokenizer(json.dumps(tokenizer))
