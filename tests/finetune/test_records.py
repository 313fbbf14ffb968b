"""Records: everything well-formed is read as it stands, everything else is named with its line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpt_edge.finetune.records import BadRecord, Message, Record, read_records
from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.family.tasks.task import IMAGE_MARK
from tests.finetune.conversations import record

if TYPE_CHECKING:
    from pathlib import Path

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: IMAGE_MARK not in text)
json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["conversations", "image", "from", "value", "x"]), inner, max_size=3)
    ),
)


@st.composite
def conversations(draw):
    """A record of the family's form, and what it should be read as."""
    turns, paths, messages = [], [], []
    for index in range(2 * draw(st.integers(1, 3))):
        parts = draw(st.lists(texts, min_size=1, max_size=3))
        pictures = [f"p{len(paths) + n}.png" for n in range(len(parts) - 1)]
        text = IMAGE_MARK.join(parts)
        turns.append({"from": ("human", "gpt")[index % 2], "value": text})
        messages.append((text, tuple(pictures)))
        paths += pictures
    return {"conversations": turns, "image": paths}, messages


def write(folder: Path, text: str) -> Path:
    path = folder / "records"
    path.write_text(text, encoding="utf-8")
    return path


@given(st.lists(conversations(), max_size=4), st.sampled_from([None, 1]), st.booleans())
def test_what_is_written_is_read(tmp_path_factory, cases, indent, listed):
    folder = tmp_path_factory.mktemp("records")
    values = [value for value, _ in cases]
    text = json.dumps(values, indent=indent) if listed else "\n".join(json.dumps(value) for value in values)
    found = list(read_records(write(folder, text)))
    expected = [tuple(Message(t, tuple(folder / p for p in pictures)) for t, pictures in each) for _, each in cases]
    assert [entry.messages for entry in found] == expected
    assert [entry.number for entry in found] == list(range(1, len(cases) + 1))
    if not listed or indent:
        lines = text.split("\n")
        assert all(lines[entry.line - 1].lstrip().startswith("{") for entry in found)


@given(st.lists(json_values, max_size=4), st.booleans())
def test_anything_else_is_a_bad_record_of_its_own(tmp_path_factory, values, listed):
    text = json.dumps(values) if listed else "\n".join(json.dumps({"image": value}) for value in values)
    found = list(read_records(write(tmp_path_factory.mktemp("records"), text)))
    assert [type(entry) for entry in found] == [BadRecord] * len(values)


@given(st.text(max_size=30))
def test_no_text_breaks_it(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("records") / "records"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        assert all(isinstance(entry, BadRecord) for entry in read_records(path))
    except InvalidRequest as error:
        assert "list of records" in str(error)  # noqa: PT017  either is right


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "expected an object with conversations and image, got []"),
        ({"image": []}, "conversations: expected turns of human and gpt, as many of each, got null"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "as many of each"),
        ({"conversations": [{"from": "gpt", "value": "a"}] * 2}, 'expected turn 1 to be {"from": "human", "value"'),
        ({"conversations": [{"from": "human", "value": 1}] * 2}, 'got {"from": "human", "value": 1}'),
        (record("a", "b") | {"image": [3]}, "image: expected a list of paths, got [3]"),
        (record(IMAGE_MARK, "b"), f"1 marks {IMAGE_MARK} for 0 pictures"),
        (record(IMAGE_MARK, IMAGE_MARK, "a.png"), f"2 marks {IMAGE_MARK} for 1 pictures"),
        (record("\ud800", "b"), "half a surrogate pair"),
        (record("a", "b", "1.png", "2.png"), "at most 1 picture, got 2; omni-sft takes several"),
    ],
)
def test_reasons(tmp_path, value, reason):
    path = write(tmp_path, "[\n\n" + json.dumps(value) + "\n]")
    (bad,) = read_records(path, most_pictures=1)
    assert (bad.number, bad.line) == (1, 3)
    assert reason in bad.reason
    assert str(bad).startswith("record 1 (line 3): ")


def test_a_broken_line_costs_itself_only(tmp_path):
    path = write(tmp_path, json.dumps(record("a", "b")) + '\n\n{"conversations": \n' + json.dumps(record("c", "d")))
    good, bad, other = read_records(path)
    assert isinstance(good, Record)
    assert (bad.number, bad.line) == (2, 3)
    assert "not valid JSON" in bad.reason
    assert (other.number, other.line) == (3, 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[\n{"a": 1},\n{"a": ]', "breaks off in the one that begins on line 3"),
        ('[\n{"a": 1}\n{"a": 2}]', "expected ',' or the end of the list of records on line 3"),
        ('[{"a": 1}', "expected ',' or the end of the list of records on line 1"),
        ("[" * 100_000, "breaks off"),
    ],
)
def test_a_broken_list_is_refused(tmp_path, text, said):
    with pytest.raises(InvalidRequest, match=said):
        list(read_records(write(tmp_path, text)))


def test_pictures_without_a_mark_come_first(tmp_path):
    (found,) = read_records(write(tmp_path, json.dumps([record("what is it?", "a cat", "a.png")])))
    assert found.messages[0].pictures == (tmp_path / "a.png",)


def test_a_single_path_is_a_list_of_one(tmp_path):
    (found,) = read_records(write(tmp_path, json.dumps([record("a", IMAGE_MARK) | {"image": "a.png"}])))
    assert found.pictures == (tmp_path / "a.png",)


def test_no_file(tmp_path):
    with pytest.raises(InvalidRequest, match="can't be read"):
        list(read_records(tmp_path / "nothing.json"))
