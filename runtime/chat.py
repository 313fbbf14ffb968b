"""A conversation: text and pictures on both sides, the K/V of earlier turns kept."""

from __future__ import annotations

from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING

from mgpt_edge.runtime.decoding.schedule import decode
from mgpt_edge.runtime.decoding.steps import End
from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.family.grammar import Form
from mgpt_edge.runtime.family.prompt import encode_turn
from mgpt_edge.runtime.intake import memory
from mgpt_edge.runtime.intake.job import PAGE, Job
from mgpt_edge.runtime.intake.pictures import several
from mgpt_edge.runtime.results.events import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mgpt_edge.runtime.family.vocabulary import Vocabulary
    from mgpt_edge.runtime.intake.pictures import PictureSource
    from mgpt_edge.runtime.intake.request import Request
    from mgpt_edge.runtime.loaded import Loaded
    from mgpt_edge.runtime.results.events import Event

PICTURES = 4
"""Pictures, each with a page of text, that a conversation has room for unless it is asked for more."""


class Chat:
    """Turns of one conversation; `Model.chat` opens it.

    A turn computes its new tokens only. One that fails or is closed early leaves the conversation as it was
    before. The tokens that the model emitted are kept as they are, never read back from text.

    Args:
        model: loaded.
        request: the settings of every turn.
        context: tokens that the conversation can hold.

    Raises:
        InvalidRequest: no whole number of tokens from 1.
        OutOfMemory: the machine has less.
    """

    def __init__(self, model: Loaded, request: Request, context: int | None) -> None:
        self.model = model
        self.request = request
        guided = request.guidance != 1
        intake = model.intake
        layout = intake.usual if request.size is None else intake.layout(request.size)
        free = model.engine.free_bytes()
        if context is None:
            fits = memory.tokens_that_fit(model.manifest, layout, len(layout) + PAGE, 1 + guided, free=free)
            context = min(PICTURES * (len(layout) + PAGE), max(fits, 1), model.engine.most_tokens)
        if type(context) is not int or not 1 <= context < 1 << 31:
            msg = f"context must be a whole number of tokens from 1, got {context!r}"
            raise InvalidRequest(msg)
        capacities = context, context if guided else 0
        memory.check(model.manifest, layout, capacities, min(context, len(layout) + PAGE), free=free, reads=True)
        self.context = context
        self.sequences = model.engine.open(capacities)
        self._unfed: tuple[int, ...] = (model.manifest.vocabulary.bos,)
        self._busy = Lock()

    @property
    def tokens_left(self) -> int:
        """Room for further turns."""
        return max(0, self.context - self.sequences.length(0) - len(self._unfed))

    def say(
        self, text: str, images: PictureSource | Sequence[PictureSource] = (), *, seed: int | None = None
    ) -> Answer:
        """A turn and the model's answer to it.

        Args:
            text: may hold a mark `<|image|>` where each picture belongs; without marks they come first.
            images: paths or Pillow images.
            seed: of this answer alone, such as to say again what broke off; the conversation's unless given.

        Raises:
            InvalidRequest: a picture that can't be read, not as many as marks, or no room for the turn.
            IncompleteAnswer: the answer broke off within a picture; the error holds what there was.
        """
        return Answer.of(self.stream(text, images, seed=seed))

    def stream(
        self,
        text: str,
        images: PictureSource | Sequence[PictureSource] = (),
        *,
        seed: int | None = None,
        preview: bool = False,
    ) -> Iterator[Event]:
        """As `say`, event by event; the last one is `End`. Closing it early takes the turn back."""
        request = replace(self.request, prompt=text, seed=self.request.seed if seed is None else seed)
        seen = [self.model.intake.look(picture) for picture in several(images)]
        prompt = [*self._unfed, *encode_turn(self.model.tokenizer, text, seen), *self._vocabulary.turn_end]
        return self._turn(request, prompt, self._form(request, len(prompt)), self._unfed, preview)

    def _form(self, request: Request, prompt: int) -> Form:
        intake = self.model.intake
        left = self.context - self.sequences.length(0) - prompt
        if left < 1:
            msg = (
                f"the conversation needs {1 - left} tokens more than the {self.context} it can hold; "
                "start a new one, or one with a longer context"
            )
            raise InvalidRequest(msg)
        wanted = request.max_tokens or left
        return Form(
            vocabulary=self._vocabulary,
            stride=intake.manifest.pictures.stride,
            limit=min(wanted, left),
            limited_by="max_tokens" if wanted < left else "a longer context",
            layout=None if request.size is None else intake.layout(request.size),
        )

    def _turn(
        self, request: Request, prompt: list[int], form: Form, after: tuple[int, ...], preview: bool
    ) -> Iterator[Event]:
        free = self._busy.acquire(blocking=False)
        if not free or self._unfed is not after:
            if free:
                self._busy.release()
            msg = "another turn of this conversation came between: take one answer to its end, or close it, at a time"
            raise InvalidRequest(msg)
        mark, end = self.sequences.length(0), None
        try:
            steps = decode(self.sequences, [Job(request, prompt, form)], self.model.window(request))
            for event in self.model.presenter.events([request], steps, preview=preview):
                if isinstance(event, End):
                    end = event
                    # An answer that was cut has no separator of its own.
                    self._unfed = (*event.unfed, *(() if event.complete else self._vocabulary.turn_end))
                yield event
        finally:
            if end is None:
                self.sequences.rollback(0, mark)
                self.sequences.rollback(1, 0)
            self._busy.release()

    @property
    def _vocabulary(self) -> Vocabulary:
        return self.model.manifest.vocabulary
