"""A request for pictures, every number of it checked once, here."""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from mgpt_edge.runtime.errors import InvalidRequest

LARGEST_COUNT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to draw and how to sample it; picture i of `count` uses `seed + i`.

    Args:
        prompt: what the picture shows.
        size: (width, height) in pixels.
        seed: 0 to 2^64 - 1.
        guidance: 1 follows the prompt as trained, more follows it more strictly; 0 ignores it.
        top_k: candidates at each code, those of the largest logits.
        temperature: 1 samples as trained, 0 takes the likeliest.
        count: number of pictures.

    Raises:
        InvalidRequest: a value of the wrong type, out of range or not finite.
    """

    prompt: str
    size: tuple[int, int]
    seed: int
    guidance: float
    top_k: int
    temperature: float
    count: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            msg = f"the prompt must be a text that is not empty, got {self.prompt!r}"
            raise InvalidRequest(msg)
        try:
            self.prompt.encode()
        except UnicodeEncodeError as error:
            msg = f"the prompt is no valid Unicode text: {error}"
            raise InvalidRequest(msg) from error
        if not isinstance(self.size, tuple | list) or len(self.size) != 2:
            msg = f"size must be (width, height), got {self.size!r}"
            raise InvalidRequest(msg)
        object.__setattr__(self, "size", tuple(self.size))
        _whole("count", self.count, 1, LARGEST_COUNT)
        _whole("top_k", self.top_k, 1, (1 << 31) - 1)
        _whole("seed", self.seed, 0, (1 << 64) - self.count)
        _number("guidance", self.guidance)
        _number("temperature", self.temperature)

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


def _whole(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        msg = f"{name} must be a whole number from {low} to {high}, got {value!r}"
        raise InvalidRequest(msg)


def _number(name: str, value: object) -> None:
    if type(value) not in {int, float} or not 0 <= value < math.inf:  # type: ignore[operator]
        msg = f"{name} must be a finite number from 0, got {value!r}"
        raise InvalidRequest(msg)
