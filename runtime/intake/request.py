"""A request to the model, every number of it checked once, here."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.family.tasks import tasks

LARGEST_COUNT = 10_000
LARGEST_WINDOW = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to answer and how to sample it; answer i of `count` uses `seed + i`.

    Args:
        prompt: the user's own words: what the picture shows, an instruction, a question; empty where the task
            has none.
        task: one of `tasks()`.
        size: (width, height) in pixels of every picture in the answer; None leaves it to the task.
        seed: 0 to 2^64 - 1.
        guidance: 1 follows the prompt as trained, more follows it more strictly; 0 ignores it.
        top_k: candidates at each code, those of the largest logits.
        text_top_k: candidates at each token of text.
        temperature: 1 samples as trained, 0 takes the likeliest.
        count: number of pictures.
        max_tokens: of an answer of text and pictures; None is what a picture and a page of text take.
        speculate: codes to guess ahead (`ahead.Ahead`): a number from 1, "off", or "auto": as many as pay, where
            that leaves every picture as it is.
        approximate: keeps guesses that are among so many best codes (`grouped.GroupedSampler`): fewer passes, other
            pictures. 1 is exact; more needs `speculate` to be a number, since the picture depends on it.

    Raises:
        InvalidRequest: a value of the wrong type, out of range or not finite.
    """

    prompt: str
    task: str = "text-to-image"
    size: tuple[int, int] | None
    seed: int
    guidance: float
    top_k: int
    text_top_k: int
    temperature: float
    count: int = 1
    max_tokens: int | None = None
    speculate: int | str = "auto"
    approximate: int = 1

    def __post_init__(self) -> None:
        check_task(self.task)
        self._check_prompt()
        if self.size is not None:
            if not isinstance(self.size, tuple | list) or len(self.size) != 2:
                msg = f"size must be (width, height), got {self.size!r}"
                raise InvalidRequest(msg)
            object.__setattr__(self, "size", tuple(self.size))
        _whole("count", self.count, 1, 1 if tasks()[self.task].converses else LARGEST_COUNT)
        _whole("top_k", self.top_k, 1, (1 << 31) - 1)
        _whole("text_top_k", self.text_top_k, 1, (1 << 31) - 1)
        _whole("seed", self.seed, 0, (1 << 64) - self.count)
        _number("guidance", self.guidance)
        _number("temperature", self.temperature)
        if self.speculate not in {"auto", "off"}:
            _whole("speculate, if neither 'auto' nor 'off',", self.speculate, 1, LARGEST_WINDOW)
        _whole("approximate", self.approximate, 1, (1 << 31) - 1)
        if self.approximate > 1 and isinstance(self.speculate, str):
            msg = (
                f"approximate={self.approximate} draws pictures that depend on how many codes are guessed: "
                f"give that as a number, such as speculate=16, got {self.speculate!r}"
            )
            raise InvalidRequest(msg)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1, (1 << 31) - 1)
            if not tasks()[self.task].converses:
                msg = f"max_tokens is for answers in text; the answer to {self.task!r} is as long as its picture"
                raise InvalidRequest(msg)

    def _check_prompt(self) -> None:
        name = tasks()[self.task].field
        if name is None:
            if self.prompt != "":
                msg = f"the task {self.task!r} takes a picture and no words, got {self.prompt!r}"
                raise InvalidRequest(msg)
            return
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            msg = f"the {name} must be a text that is not empty, got {self.prompt!r}"
            raise InvalidRequest(msg)
        try:
            self.prompt.encode()
        except UnicodeEncodeError as error:
            msg = f"the {name} is no valid Unicode text: {error}"
            raise InvalidRequest(msg) from error

    @classmethod
    def of(cls, **settings: Any) -> Request:
        """A request from keywords; an unknown one is refused with the nearest name."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                msg = f"unknown setting {name!r}" + (
                    f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
                )
                raise InvalidRequest(msg)
        return cls(**settings)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def parse_size(text: str) -> tuple[int, int]:
    """`WIDTHxHEIGHT` -> (width, height)."""
    match = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text.strip())
    if match is None:
        msg = f"--size must look like 128x128 (width x height), got {text!r}"
        raise InvalidRequest(msg)
    return int(match[1]), int(match[2])


def check_task(task: str) -> None:
    """Raises `InvalidRequest` for what is no task of the family."""
    if not isinstance(task, str) or task not in tasks():
        near = difflib.get_close_matches(str(task), tasks(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(tasks())}"
        msg = f"unknown task {task!r}; {hint}"
        raise InvalidRequest(msg)


def check_generate(task: str) -> None:
    """Raises `InvalidRequest` for what is no task that makes a picture from words."""
    check_task(task)
    if not tasks()[task].from_words:
        other = "ask" if tasks()[task].converses else "transform"
        msg = f"the task {task!r} makes no picture from words alone; see {other}"
        raise InvalidRequest(msg)


def check_transform(task: str) -> None:
    """Raises `InvalidRequest` for what is no task that makes a picture from a picture."""
    check_task(task)
    if tasks()[task].given in {"conversation", "words"}:
        msg = f"the task {task!r} makes no picture from a picture; see generate, ask and describe"
        raise InvalidRequest(msg)


def _whole(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        msg = f"{name} must be a whole number from {low} to {high}, got {value!r}"
        raise InvalidRequest(msg)


def _number(name: str, value: object) -> None:
    if type(value) not in {int, float} or not 0 <= value < math.inf:  # type: ignore[operator]
        msg = f"{name} must be a finite number from 0, got {value!r}"
        raise InvalidRequest(msg)
