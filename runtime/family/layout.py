"""The token layout of one image: which tokens are forced, and what may stand at the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mgpt_edge.runtime.family.vocabulary import Vocabulary

GRID_PIXELS = 32
"""A grid token counts units of this many pixels, in every checkpoint of the family."""


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """Tokens of a picture of `width` x `height` pixels (facts of the family: "Uni-Rep").

    ``begin_image, grid(height), grid(width), (codes of a row, end_row) for each row, end_image``

    Args:
        width: pixels, a multiple of 32.
        height: pixels, a multiple of 32.
        vocabulary: the checkpoint's ids.
        stride: pixels a code covers on each side (16 for Lumina-mGPT 1, 8 for 2.0).

    Raises:
        InvalidRequest: the size is no multiple of 32, or has no grid token.
    """

    width: int
    height: int
    vocabulary: Vocabulary
    stride: int = 16

    def __post_init__(self) -> None:
        for name, pixels in (("width", self.width), ("height", self.height)):
            if isinstance(pixels, bool) or not isinstance(pixels, int):
                msg = f"{name} must be a whole number of pixels, got {pixels!r}"
                raise InvalidRequest(msg)
        largest = (self.vocabulary.grids - 1) * GRID_PIXELS
        near = tuple(min(max(round(p / GRID_PIXELS), 1) * GRID_PIXELS, largest) for p in (self.width, self.height))
        if near != (self.width, self.height):
            msg = (
                f"a picture of {self.width}x{self.height} can't be drawn: both sides must be multiples of "
                f"{GRID_PIXELS} from {GRID_PIXELS} to {largest}; the nearest size is {near[0]}x{near[1]}"
            )
            raise InvalidRequest(msg)

    @classmethod
    def of_grid(cls, height: int, width: int, vocabulary: Vocabulary, stride: int) -> ImageLayout:
        """The layout that a picture's two grid tokens announce.

        Raises:
            InvalidRequest: a token that is no grid token, or no picture of that size.
        """
        wide, high = (GRID_PIXELS * (token - vocabulary.first_grid) for token in (width, height))
        return cls(wide, high, vocabulary, stride)

    @property
    def rows(self) -> int:
        return self.height // self.stride

    @property
    def columns(self) -> int:
        return self.width // self.stride

    @property
    def grid(self) -> tuple[int, int, int]:
        """The three tokens that open the picture: begin of image, height, width."""
        v = self.vocabulary
        return v.begin_image, v.grid(self.height // GRID_PIXELS), v.grid(self.width // GRID_PIXELS)

    def __len__(self) -> int:
        return len(self.grid) + self.rows * (self.columns + 1) + 1

    def forced(self, index: int) -> int | None:
        """The only token that may stand at `index` (0 is begin of image), or None where a code is sampled."""
        body = index - 3
        if body < 0:
            return self.grid[index]
        if body == self.rows * (self.columns + 1):
            return self.vocabulary.end_image
        return self.vocabulary.end_row if body % (self.columns + 1) == self.columns else None

    def row_end(self, index: int) -> int:
        """Where the end of the row of codes stands that holds the code at `index`."""
        return index + self.columns - (index - 3) % (self.columns + 1)

    def interval(self, index: int) -> tuple[int, int]:
        """Half-open interval of the ids that may stand at `index`."""
        token = self.forced(index)
        return self.vocabulary.code_range if token is None else (token, token + 1)

    def encode(self, codes: NDArray[np.integer]) -> list[int]:
        """Codes [rows, columns] -> the tokens of the whole picture."""
        if codes.shape != (self.rows, self.columns):
            msg = f"codes of a {self.width}x{self.height} picture are [{self.rows}, {self.columns}], got {codes.shape}"
            raise InvalidRequest(msg)
        tokens = list(self.grid)
        for row in codes.tolist():
            tokens += [self.vocabulary.first_code + code for code in row] + [self.vocabulary.end_row]
        return [*tokens, self.vocabulary.end_image]

    def decode(self, tokens: list[int]) -> NDArray[np.int64]:
        """The picture's tokens, whole or its first rows only -> codes [finished rows, columns].

        Raises:
            InvalidRequest: a token stands where the layout does not allow it.
        """
        for index, token in enumerate(tokens):
            low, high = self.interval(index)
            if not low <= token < high:
                msg = (
                    f"token {token} at index {index} of a {self.width}x{self.height} picture, expected [{low}, {high})"
                )
                raise InvalidRequest(msg)
        body = np.asarray(tokens[3 : len(self) - 1], dtype=np.int64)
        finished = len(body) // (self.columns + 1)
        body = body[: finished * (self.columns + 1)].reshape(finished, self.columns + 1)
        return body[:, : self.columns] - self.vocabulary.first_code


def buckets(target: int, *, max_aspect: float = 4.0) -> list[tuple[int, int]]:
    """The family's crop sizes (width, height) for a target side of `target` pixels, widest first.

    The area is at most that of target x target, and no side more than `max_aspect` times the other
    (49, 73 and 97 sizes for 512, 768 and 1024).
    """
    return list(_walk((target // GRID_PIXELS) ** 2, max_aspect))


def _walk(patches: int, max_aspect: float) -> Iterator[tuple[int, int]]:
    wide, high = patches, 1
    while wide > 0:
        if max(wide, high) / min(wide, high) <= max_aspect:
            yield wide * GRID_PIXELS, high * GRID_PIXELS
        if (high + 1) * wide <= patches:
            high += 1
        else:
            wide -= 1


def nearest_bucket(width: int, height: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The size of `sizes` that a picture of width x height loses least to when cropped to it, of equals the nearest."""

    def kept(size: tuple[int, int]) -> float:
        ratio = (size[0] * height) / (size[1] * width)
        return min(ratio, 1 / ratio)

    def enlarged(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] * size[1] / (width * height)))

    return max(sizes, key=lambda size: (kept(size), -enlarged(size), size))
