"""The one loop that turns a prompt into pictures; everything else iterates it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mgpt_edge.runtime.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mgpt_edge.runtime.engines.base import Rows
    from mgpt_edge.runtime.layout import ImageLayout
    from mgpt_edge.runtime.request import Request


@dataclass(frozen=True, slots=True)
class FinishedRow:
    """A row of codes, complete.

    Args:
        picture: which picture of the request.
        row: which of its rows, from 0.
        tokens: the picture's tokens so far, from begin-of-image.
        passes: passes of the engine this row took.
        seconds: time since the row before.
    """

    picture: int
    row: int
    tokens: tuple[int, ...]
    passes: int
    seconds: float


def decode(rows: Rows, prompt: Sequence[int], layout: ImageLayout, request: Request) -> Iterator[FinishedRow]:
    """Draws `request.count` pictures one after another, each from the same prompt with a seed of its own.

    Forced tokens are never sampled: they are fed together with the token before them. The prompt is
    computed once; every further picture rolls the rows back to its end.
    """
    guided = request.guidance != 1
    opening = list(layout.grid)
    first = rows.forward(([*prompt, *opening], opening if guided else ()), "image").copy()
    mark = rows.lengths
    for picture in range(request.count):
        rows.rollback(mark)
        yield from _decode_picture(rows, first, len(prompt), layout, request, picture)


def _decode_picture(
    rows: Rows, logits: NDArray[np.float32], offset: int, layout: ImageLayout, request: Request, picture: int
) -> Iterator[FinishedRow]:
    guided = request.guidance != 1
    sampler = Sampler(request.guidance, request.top_k, request.temperature, request.seed + picture)
    tokens = list(layout.grid)
    pending: list[int] = []
    passes, started = 0, time.perf_counter()
    for index in range(len(tokens), len(layout)):
        token = layout.forced(index)
        if token is None:
            if pending:
                logits = rows.forward((pending, pending if guided else ()), "image")
                passes += 1
            low, high = layout.interval(index)
            cond, uncond = logits[0], logits[1] if guided else None
            token = sampler(cond, uncond, low, low, high, offset + index)
            pending = []
        tokens.append(token)
        pending.append(token)
        if token == layout.vocabulary.end_row:
            now = time.perf_counter()
            row = (index - 3) // (layout.columns + 1)
            yield FinishedRow(picture, row, tuple(tokens), passes, now - started)
            passes, started = 0, now
