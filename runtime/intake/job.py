"""A request made ready for the loop: its prompt as tokens, the form of its answer, and the memory for both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.family.grammar import Form
from mgpt_edge.runtime.family.layout import GRID_PIXELS, ImageLayout, nearest_bucket
from mgpt_edge.runtime.family.prompt import encode_prompt, encode_turn
from mgpt_edge.runtime.family.tasks import tasks
from mgpt_edge.runtime.intake import memory
from mgpt_edge.runtime.intake.pictures import fit, open_picture

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenizers import Tokenizer

    from mgpt_edge.runtime.bundle.manifest import Manifest
    from mgpt_edge.runtime.engines.base import Engine
    from mgpt_edge.runtime.intake.pictures import PictureSource
    from mgpt_edge.runtime.intake.request import Request

PAGE = 512
"""Tokens of text that an answer may have beside one picture, unless it is asked for more."""


@dataclass(frozen=True, slots=True)
class Job:
    """What `decode` takes.

    Args:
        request: with the size it settled on.
        prompt: tokens from bos to the separator after which the model answers.
        form: of the answer.
        reads: whether pictures went in.
    """

    request: Request
    prompt: list[int]
    form: Form
    reads: bool = False

    @property
    def capacities(self) -> tuple[int, int]:
        """Tokens that each sequence must hold."""
        return len(self.prompt) + self.form.limit, self.form.limit if self.request.guidance != 1 else 0


@dataclass(frozen=True, slots=True)
class Intake:
    """Words and pictures to jobs for one bundle."""

    manifest: Manifest
    engine: Engine
    tokenizer: Tokenizer

    def layout(self, size: tuple[int, int]) -> ImageLayout:
        """The tokens of a picture of `size` (width, height)."""
        return ImageLayout(*size, self.manifest.vocabulary, self.manifest.pictures.stride)

    @property
    def usual(self) -> ImageLayout:
        """Of a square picture of the size that the checkpoint was trained for."""
        return self.layout((self.manifest.pictures.target_size,) * 2)

    def look(self, picture: PictureSource, size: tuple[int, int] | None = None) -> list[int]:
        """A picture's tokens: fitted to `size`, else to the trained size that keeps most of it, and encoded.

        Raises:
            InvalidRequest: it can't be opened (`pictures.open_picture`).
            BundleError: the bundle has no VQ encoder.
        """
        sizes = self.manifest.pictures.trained_sizes if size is None else [size]
        pixels = fit(open_picture(picture), sizes)
        codes = self.engine.encode_pixels(pixels)
        return self.layout((pixels.shape[1], pixels.shape[0])).encode(codes)

    def kept(self, picture: PictureSource, rows: Iterable[int], size: tuple[int, int]) -> dict[int, int]:
        """Tokens of some rows of codes of a picture, by their index in its layout.

        Raises:
            InvalidRequest: no such row.
        """
        layout = self.layout(size)
        wanted = sorted(set(rows))
        for row in wanted:
            if type(row) is not int or not 0 <= row < layout.rows:
                msg = (
                    f"row {row!r} can't be kept: a picture of {size[0]}x{size[1]} has the rows 0 to {layout.rows - 1}, "
                    f"{self.manifest.pictures.stride} pixels each"
                )
                raise InvalidRequest(msg)
        if not wanted:
            return {}
        tokens, width = self.look(picture, size), layout.columns + 1
        return {i: tokens[i] for row in wanted for i in range(3 + row * width, 3 + (row + 1) * width)}

    def prepare(self, request: Request, pictures: Sequence[PictureSource], kept: dict[int, int] | None = None) -> Job:
        """The first turn of a conversation, whatever its task.

        Raises:
            InvalidRequest: pictures that can't be read, or not as many as the task takes.
            OutOfMemory: the answer needs more memory than is free.
        """
        task, reads = tasks()[request.task], bool(pictures)
        if task.given == "upper half":
            request, kept = self._upper_half(request, pictures)
            pictures = ()
        seen = [self.look(picture, None if task.converses else request.size) for picture in pictures]
        if request.size is None and not task.converses and seen:
            layout = ImageLayout.of_grid(
                seen[0][1], seen[0][2], self.manifest.vocabulary, self.manifest.pictures.stride
            )
            request = replace(request, size=(layout.width, layout.height))
        prompt = self._encode(request, seen)
        form = self._form(request, len(prompt), kept or {})
        job = Job(request, prompt, form, reads=reads)
        memory.check(
            self.manifest,
            form.layout or self.usual,
            job.capacities,
            len(prompt) + len(form.kept),
            free=self.engine.free_bytes(),
            reads=job.reads,
        )
        return job

    def _upper_half(self, request: Request, pictures: Sequence[PictureSource]) -> tuple[Request, dict[int, int]]:
        """The size of a picture whose upper half is given, and its tokens: those of the half, but for size and end."""
        if len(pictures) != 1:
            msg = f"the task {request.task!r} takes one picture, got {len(pictures)}"
            raise InvalidRequest(msg)
        sizes = self.manifest.pictures.trained_sizes if request.size is None else [request.size]
        halves = [(width, height // 2) for width, height in sizes if height % (2 * GRID_PIXELS) == 0]
        if not halves:
            asked = "no trained size has one" if request.size is None else f"asked for {sizes[0][0]}x{sizes[0][1]}"
            msg = f"a picture of two panels has a height that is a multiple of {2 * GRID_PIXELS} pixels, {asked}"
            raise InvalidRequest(msg)
        picture = open_picture(pictures[0])
        width, height = nearest_bucket(picture.width, picture.height, halves)
        rows = self.look(picture, (width, height))[3:-1]
        return replace(request, size=(width, 2 * height)), dict(enumerate(rows, start=3))

    def _encode(self, request: Request, seen: Sequence[list[int]]) -> list[int]:
        v = self.manifest.vocabulary
        if request.task == "chat":
            return [v.bos, *encode_turn(self.tokenizer, request.prompt, seen), *v.turn_end]
        width, height = request.size or (0, 0)
        name = tasks()[request.task].field
        words = {} if name is None else {name: request.prompt}
        return encode_prompt(self.tokenizer, v, request.task, seen, width=width, height=height, **words)

    def _form(self, request: Request, prompt: int, kept: dict[int, int]) -> Form:
        picture = not tasks()[request.task].converses
        layout = None if request.size is None else self.layout(request.size)
        if picture and layout is not None:
            limit = len(layout)
        else:
            sequences, free = 1 + (request.guidance != 1), self.engine.free_bytes()
            fits = memory.tokens_that_fit(self.manifest, layout or self.usual, prompt, sequences, free=free)
            fits = min(fits, self.engine.most_tokens - prompt)
            limit = request.max_tokens or min(len(layout or self.usual) + PAGE, max(fits, 1))
        v, stride = self.manifest.vocabulary, self.manifest.pictures.stride
        return Form(vocabulary=v, stride=stride, limit=limit, layout=layout, picture=picture, kept=kept)
