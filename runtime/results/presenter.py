"""Tokens to what people see: characters, pictures, and a note of how a picture was drawn."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from PIL import Image

from mgpt_edge.runtime.decoding.steps import End, FinishedRow, Word
from mgpt_edge.runtime.engines import engine_kind
from mgpt_edge.runtime.errors import IncompleteAnswer
from mgpt_edge.runtime.family.layout import ImageLayout
from mgpt_edge.runtime.family.tasks import tasks
from mgpt_edge.runtime.results.events import Detokenizer, Picture, Preview, Text
from mgpt_edge.runtime.results.metadata import KEY, fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenizers import Tokenizer

    from mgpt_edge.runtime.bundle.folder import Bundle
    from mgpt_edge.runtime.decoding.steps import Step
    from mgpt_edge.runtime.engines.base import Engine
    from mgpt_edge.runtime.intake.request import Request
    from mgpt_edge.runtime.results.events import Event

COUNTS = ("passes", "guessed", "accepted")


@cache
def _version() -> str:
    return version("mgpt-edge")


@dataclass(frozen=True, slots=True)
class Presenter:
    """Shows the answers of one bundle."""

    bundle: Bundle
    engine: Engine
    tokenizer: Tokenizer

    def events(
        self, requests: Sequence[Request], steps: Iterator[Step], *, preview: bool, kept_rows: Sequence[int] = ()
    ) -> Iterator[Event]:
        """The loop's steps: tokens become characters, rows become pictures; only a conversation has an `End`.

        Args:
            requests: one, or several for pictures alone.
            steps: of their answers.
            preview: whether unfinished pictures are shown.
            kept_rows: that the pictures have from another, for their notes.
        """
        words = Detokenizer(self.tokenizer)
        counts: dict[int, dict[str, int]] = {}  # of the pictures that are not done
        try:
            for step in steps:
                text = words.push(step.token) if isinstance(step, Word) else words.flush()
                if text:
                    yield Text(text)
                if isinstance(step, FinishedRow):
                    count = counts.setdefault(step.picture, dict.fromkeys(COUNTS, 0))
                    for name in COUNTS:
                        count[name] += getattr(step, name)
                    yield step
                    # Of several pictures under way, one is shown.
                    yield from self._show(requests, step, preview and step.picture == min(counts), kept_rows, count)
                    if step.row + 1 == self.layout_of(step.tokens).rows:
                        del counts[step.picture]
                elif isinstance(step, End) and tasks()[requests[0].task].converses:
                    yield step
        except IncompleteAnswer as error:
            error.image = self.partial(error.tokens)
            raise

    def partial(self, tokens: Sequence[int]) -> Image.Image | None:
        """The finished rows of a picture, on black; None where there is none."""
        layout = self.layout_of(tokens) if len(tokens) > 2 else None
        if layout is None or len(tokens) < 3 + layout.columns + 1:
            return None
        image = Image.new("RGB", (layout.width, layout.height))
        image.paste(self._decode_pixels(tokens, layout)[0])
        return image

    def _show(
        self,
        requests: Sequence[Request],
        row: FinishedRow,
        preview: bool,
        kept_rows: Sequence[int],
        count: dict[str, int],
    ) -> Iterator[Event]:
        layout = self.layout_of(row.tokens)
        if row.row + 1 == layout.rows:
            finished, seconds = self._decode_pixels(row.tokens, layout)
            window = round(count["guessed"] / max(count["passes"], 1), 1)
            settings = self.describe(requests, row.picture, finished.size, kept_rows)
            finished.info[KEY] = {**settings, **count, "window": window, "pixels": fingerprint(finished)}
            yield Picture(row.picture, finished, (*row.tokens, layout.vocabulary.end_image), seconds)
        elif preview:
            yield Preview(row.picture, *self._decode_pixels(row.tokens, layout))

    def layout_of(self, tokens: Sequence[int]) -> ImageLayout:
        """Of a picture whose first three tokens are there."""
        return ImageLayout.of_grid(
            tokens[1], tokens[2], self.bundle.manifest.vocabulary, self.bundle.manifest.pictures.stride
        )

    def _decode_pixels(self, tokens: Sequence[int], layout: ImageLayout) -> tuple[Image.Image, float]:
        started = time.perf_counter()
        image = Image.fromarray(self.engine.decode_pixels(layout.decode(list(tokens))))
        return image, time.perf_counter() - started

    def describe(
        self, requests: Sequence[Request], picture: int, size: tuple[int, int], kept_rows: Sequence[int]
    ) -> dict[str, Any]:
        """All that decides the picture, for its file; the pictures that went in are not kept."""
        request, number = _origin(requests, picture)
        return {
            **request.to_json(),
            "size": size,
            "seed": request.seed + number,
            "count": 1,
            "kept_rows": list(kept_rows),
            "model": self.bundle.manifest.name,
            "bundle": self.bundle.digest,
            "engine": self.bundle.manifest.engine,
            "arithmetic": engine_kind(self.bundle.manifest.engine).arithmetic,
            "precision": self.bundle.manifest.precision,
            "machine": platform.machine(),
            "mgpt_edge": _version(),
        }


def _origin(requests: Sequence[Request], picture: int) -> tuple[Request, int]:
    """Whose answer a picture is, and which one; all that a conversation draws is of its one answer."""
    for request in requests:
        if tasks()[request.task].converses:
            return request, 0
        if picture < request.count:
            return request, picture
        picture -= request.count
    msg = f"there is no picture {picture}"
    raise IndexError(msg)
