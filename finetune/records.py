"""The family's training data: conversations as JSON, checked record by record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.family.tasks.task import IMAGE_MARK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPEAKERS = ("human", "gpt")
SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Message:
    """One side's turn: text with a mark for each picture (or none), and the pictures' files."""

    text: str
    pictures: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation; the human speaks first, the model last.

    Attributes:
        number: of the record in its file, from 1.
        line: of the file where it begins, from 1.
        messages: the two sides in turn.
    """

    number: int
    line: int
    messages: tuple[Message, ...]

    @property
    def pictures(self) -> tuple[Path, ...]:
        return tuple(path for message in self.messages for path in message.pictures)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be trained on, and why."""

    number: int
    line: int
    reason: str

    def __str__(self) -> str:
        return f"record {self.number} (line {self.line}): {self.reason}"


def read_records(path: Path, most_pictures: int | None = None) -> Iterator[Record | BadRecord]:
    """Reads a JSON list of records, or a file with a record on each line.

    A record is ``{"conversations": [{"from": "human" | "gpt", "value": text}, …], "image": [path, …]}``. The marks
    ``<|image|>`` in the texts stand for the pictures in their order; without any mark they belong before the first
    text. Paths are relative to the file. Other keys are ignored.

    Args:
        path: the file, UTF-8.
        most_pictures: records with more are bad; None: any number.

    Raises:
        InvalidRequest: the file cannot be read, or a list's JSON breaks off: what follows cannot be found again.
    """
    for number, (line, value) in enumerate(_values(path), 1):
        yield _record(number, line, value, path.parent, most_pictures)


def _record(number: int, line: int, value: Any, folder: Path, most_pictures: int | None) -> Record | BadRecord:
    try:
        record = Record(number, line, _messages(value, folder))
    except InvalidRequest as error:
        return BadRecord(number, line, str(error))
    if most_pictures is not None and len(record.pictures) > most_pictures:
        reason = f"expected at most {most_pictures} picture, got {len(record.pictures)}; omni-sft takes several"
        return BadRecord(number, line, reason)
    return record


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """Each record's line and JSON value, or the error in its place."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: the records can't be read: {error}"
        raise InvalidRequest(msg) from error
    if text.lstrip(SPACE).startswith("["):
        yield from _listed(path, text)
        return
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip(SPACE):
            try:
                yield line, json.loads(content)
            except json.JSONDecodeError as error:
                yield line, error
            except RecursionError:
                yield line, None


def _listed(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The items of a JSON list with the lines on which they begin."""
    decoder, line, counted = json.JSONDecoder(), 1, 0
    place = _skip(text, text.index("[") + 1)
    if text[place : place + 1] == "]":
        return
    while True:
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = decoder.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError) as error:
            msg = f"{path}: the list of records breaks off in the one that begins on line {line}: {error}"
            raise InvalidRequest(msg) from error
        yield line, value
        place = _skip(text, place)
        if text[place : place + 1] != ",":
            break
        place = _skip(text, place + 1)
    if text[place:].rstrip(SPACE) != "]":
        line += text.count("\n", counted, place)
        msg = f"{path}: expected ',' or the end of the list of records on line {line}, got {text[place : place + 20]!r}"
        raise InvalidRequest(msg)


def _skip(text: str, place: int) -> int:
    while text[place : place + 1] in {*SPACE}:
        place += 1
    return place


def _messages(value: Any, folder: Path) -> tuple[Message, ...]:
    """A parsed record's turns with their pictures.

    Raises:
        InvalidRequest: it is not of the family's form.
    """
    if isinstance(value, json.JSONDecodeError):
        msg = f"not valid JSON: {value.msg} at column {value.colno}"
        raise InvalidRequest(msg)
    if not isinstance(value, dict):
        msg = f"expected an object with conversations and image, got {_shown(value)}"
        raise InvalidRequest(msg)
    texts = _texts(value.get("conversations"))
    images = value.get("image") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        msg = f"image: expected a list of paths, got {_shown(images)}"
        raise InvalidRequest(msg)
    marks = [text.count(IMAGE_MARK) for text in texts]
    if not sum(marks):
        marks[0] = len(images)  # as the family does: in front of the first question
    if sum(marks) != len(images):
        msg = f"the texts have {sum(marks)} marks {IMAGE_MARK} for {len(images)} pictures; give one mark each, or none"
        raise InvalidRequest(msg)
    paths = iter([folder / image for image in images])
    return tuple(
        Message(text, tuple(next(paths) for _ in range(count))) for text, count in zip(texts, marks, strict=True)
    )


def _texts(turns: Any) -> list[str]:
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        msg = f"conversations: expected turns of human and gpt, as many of each, got {_shown(turns)}"
        raise InvalidRequest(msg)
    for index, turn in enumerate(turns):
        speaker = SPEAKERS[index % 2]
        if not isinstance(turn, dict) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
            msg = f'conversations: expected turn {index + 1} to be {{"from": "{speaker}", "value": text}}, got '
            raise InvalidRequest(msg + _shown(turn))
        if any("\ud800" <= letter <= "\udfff" for letter in turn["value"]):
            msg = f"conversations: turn {index + 1} has half a surrogate pair: {_shown(turn['value'])}"
            raise InvalidRequest(msg)
    return [turn["value"] for turn in turns]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "…"
