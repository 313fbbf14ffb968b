"""The state machine against the family's counting rule, and characters that come in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mgpt_edge.export.tokenizer import text_tokenizer
from mgpt_edge.runtime.family.grammar import Form, Grammar
from mgpt_edge.runtime.family.layout import ImageLayout
from mgpt_edge.runtime.results.events import Detokenizer
from tests.families import tiny_tokenizer
from tests.runtime.family.test_layout import LUMINA as V

SIDES = st.integers(1, 4).map(lambda units: units * 32)


def allowed(tokens: list[int], stride: int) -> tuple[int, int]:
    """What may follow, as the family's logits processors say it: by counting over the whole sequence."""
    if tokens.count(V.begin_image) == tokens.count(V.end_image):
        return 0, V.size
    start = len(tokens) - 1 - tokens[::-1].index(V.begin_image)
    inside = tokens[start + 1 :]
    if len(inside) < 2:
        return V.first_grid + 1, V.first_grid + V.grids
    rows, columns = ((token - V.first_grid) * (32 // stride) for token in inside[:2])
    made = len(inside) - 2
    if made == rows * (columns + 1):
        return V.end_image, V.end_image + 1
    if (made + 1) % (columns + 1) == 0:
        return V.end_row, V.end_row + 1
    return V.first_code, V.first_code + V.codes


@given(st.data(), st.sampled_from([8, 16]))
def test_a_free_answer_follows_the_familys_rule(data, stride):
    grammar = Grammar(Form(vocabulary=V, stride=stride, limit=10_000))
    text = st.sampled_from([V.begin_image, V.begin_image, V.separator, 20_000, 20_001])
    while not grammar.done and grammar.pictures < 3:
        low, high = grammar.interval()
        assert (low, high) == allowed(grammar.tokens, stride)
        if grammar.mode == "text":
            token = data.draw(text)
        elif grammar.mode == "grid":
            token = V.grid(data.draw(st.integers(1, 3)))
        else:
            token = low
        assert low <= token < high
        grammar.push(token)
    assert grammar.tokens.count(V.end_image) == grammar.pictures
    assert grammar.open_picture() == ()


@given(SIDES, SIDES, st.data())
def test_a_picture_alone_is_its_layout(width, height, data):
    layout = ImageLayout(width, height, V)
    row = data.draw(st.integers(0, layout.rows - 1))
    kept = {3 + row * (layout.columns + 1) + i: V.first_code + 7 for i in range(layout.columns)}
    grammar = Grammar(Form(vocabulary=V, stride=16, limit=len(layout), layout=layout, picture=True, kept=kept))
    while not grammar.done:
        low, high = grammar.interval()
        forced = layout.forced(len(grammar.tokens))
        assert (high - low == 1) == (forced is not None or len(grammar.tokens) in kept)
        grammar.push(low)
    codes = layout.decode(grammar.tokens)
    assert (codes[row] == 7).all()
    assert len(grammar.tokens) == len(layout)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(text_tokenizer(tiny_tokenizer()))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\N{REPLACEMENT CHARACTER}")))
def test_pieces_of_text_are_whole_characters(tokenizer, text):
    words = Detokenizer(tokenizer)
    pieces = [words.push(token) for token in tokenizer.encode(text, add_special_tokens=False).ids]
    assert "".join(pieces) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert words.flush() == ""


def test_bytes_that_are_no_text_do_not_hold_it_up(tokenizer):
    words = Detokenizer(tokenizer)
    first = tokenizer.encode("é", add_special_tokens=False).ids[0]
    letter = tokenizer.encode("a", add_special_tokens=False).ids
    out = "".join(words.push(token) for token in [first, first, *letter]) + words.flush()
    assert out.endswith("a")
    words.push(first)
    assert words.flush() == "\N{REPLACEMENT CHARACTER}"
    assert words.push(V.begin_image) == ""
