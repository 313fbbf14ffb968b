"""The face of the runtime: a loaded bundle that draws, looks and answers."""

from __future__ import annotations

import secrets
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mgpt_edge.runtime.bundle.folder import Bundle, default_bundle
from mgpt_edge.runtime.chat import Chat
from mgpt_edge.runtime.decoding.schedule import decode
from mgpt_edge.runtime.errors import CompatibilityWarning, InvalidRequest
from mgpt_edge.runtime.family.layout import nearest_bucket
from mgpt_edge.runtime.family.tasks import tasks
from mgpt_edge.runtime.intake import memory
from mgpt_edge.runtime.intake.pictures import open_picture, several
from mgpt_edge.runtime.intake.request import Request, check_generate, check_task, check_transform
from mgpt_edge.runtime.loaded import Loaded
from mgpt_edge.runtime.results import metadata
from mgpt_edge.runtime.results.events import Answer, Picture

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

    from PIL import Image

    from mgpt_edge.runtime.family.layout import ImageLayout
    from mgpt_edge.runtime.intake.job import Job
    from mgpt_edge.runtime.intake.pictures import PictureSource
    from mgpt_edge.runtime.results.events import Event


def load(path: str | os.PathLike[str] | None = None, *, threads: int | None = None) -> Model:
    """Loads a bundle; without a path the small model that comes with the package.

    Args:
        path: a folder made by `mgpt export`.
        threads: of every pass, 1 to 256; as many as this process may use cores unless given.

    Raises:
        InvalidRequest: no such number of threads.
        BundleError: no bundle there, or a damaged or newer one.
        IncompatibleEngine: nothing installed here can run it.
    """
    return Model(Bundle.open(default_bundle() if path is None else path), threads=threads)


class Model(Loaded):
    """A bundle ready to answer. Threads may share it; every stream has a cache of its own.

    Every method takes the settings of `Request` as keywords; their defaults stand in the bundle's manifest, for
    each task. The same seed gives the same answer; a random one is taken unless given.
    """

    def __repr__(self) -> str:
        return f"<Model {self.manifest.name}, {self.manifest.precision} for {self.manifest.engine}>"

    def generate(
        self, prompt: str | Sequence[str], *, seed: int | None = None, **settings: Any
    ) -> Image.Image | list[Image.Image]:
        """Draws what the prompt says.

        Args:
            prompt: what the picture shows; a list of them shares one cache.
            seed: 0 to 2^64 - 1.
            settings: such as `size=(width, height)`, `guidance`, `top_k`, `temperature` and `count`.

        Returns:
            An RGB image, or with `count` or several prompts a list of them, one prompt's after another's, picture i
            drawn with `seed + i`. How it was drawn stands in `image.info["mgpt"]`; `mgpt_edge.save` keeps that in
            the file.

        Raises:
            InvalidRequest: a setting out of range or unknown.
            OutOfMemory: the picture needs more memory than the machine has.
        """
        if not isinstance(prompt, str | list | tuple):
            msg = f"the prompt must be a text or a list of texts, got {prompt!r}"
            raise InvalidRequest(msg)
        check_generate(settings.get("task", "text-to-image"))
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        first = self.request(prompts[0] if prompts else "", seed=seed, **settings)
        requests = [
            replace(first, prompt=text, seed=first.seed + number * first.count) for number, text in enumerate(prompts)
        ]
        images = _images(self._run([self.prepare(request) for request in requests]))
        return images[0] if isinstance(prompt, str) and "count" not in settings else images

    def redraw(
        self,
        image: PictureSource,
        prompt: str | None = None,
        *,
        keep_rows: Iterable[int] = (),
        seed: int | None = None,
        **settings: Any,
    ) -> Image.Image | list[Image.Image]:
        """A variation of a picture: other noise, and some of its rows as they are.

        Args:
            image: drawn by `generate`, or any other.
            prompt: the one it was drawn from, unless given; its settings are used, too.
            keep_rows: rows of codes that stay, from 0 at the top. They pass through the VQ encoder once; what is
                drawn follows what stands above it.
            seed: of the noise.
            settings: as in `generate`.

        Returns:
            As `generate`.

        Raises:
            InvalidRequest: no prompt is given or known, or no such row.
        """
        picture = open_picture(image)
        known = metadata.settings_of(picture)
        drawn_from = known.pop("prompt", "")
        if not (prompt or drawn_from):
            msg = "the picture does not say which words it was drawn from; give them: redraw(image, prompt)"
            raise InvalidRequest(msg)
        request = self.request(prompt or drawn_from, seed=seed, **{**known, **settings})
        images = _images(self.draw(request, keep=picture, keep_rows=keep_rows))
        return images if "count" in settings else images[0]

    def transform(
        self, image: PictureSource, task: str, instruction: str | None = None, **settings: Any
    ) -> Image.Image | list[Image.Image]:
        """Answers a picture with a picture.

        Args:
            image: a path or a Pillow image.
            task: depth, normals, segmentation, pose, detect, edit, reconstruct, from-edges, from-depth or
                from-segmentation; panel-depth, panel-canny or panel-subject of Lumina-mGPT 2.0, which draws the lower
                half of a picture whose upper half is the image.
            instruction: what to change, to detect, or what the picture made from edges, depth or segmentation shows.
            settings: as in `generate`; the size is the picture's own unless given.

        Returns:
            As `generate`.

        Raises:
            InvalidRequest: a picture that can't be read, an unknown task, or one this checkpoint was not trained for.
        """
        check_transform(task)
        images = _images(self.stream(instruction or "", images=image, task=task, **settings))
        return images if "count" in settings else images[0]

    def ask(self, images: PictureSource | Sequence[PictureSource], question: str, **settings: Any) -> str:
        """Answers a question about pictures, or, without any, about nothing but itself.

        Args:
            images: one or several; the question says where each belongs with marks `<|image|>`, else they come first.
            question: in words.
            settings: such as `text_top_k`, `temperature` and `max_tokens`.

        Returns:
            The text; a mark stands for each picture the model may have put in.

        Raises:
            InvalidRequest: a picture that can't be read, or not as many as marks.
            IncompleteAnswer: the answer broke off within a picture.
        """
        return Answer.of(self.stream(question, images=images, task="chat", **settings)).text

    def describe(self, image: PictureSource, **settings: Any) -> str:
        """Says what a picture shows; as `ask`."""
        return Answer.of(self.stream("", images=image, task="describe", **settings)).text

    def chat(self, *, context: int | None = None, **settings: Any) -> Chat:
        """Opens a conversation that remembers its turns.

        Args:
            context: tokens it can hold in all; four pictures with a page of text each, or what fits, unless given.
            settings: as in `Request`, for every turn; `max_tokens` is of one answer.
        """
        for name in {"task", "prompt"} & settings.keys():
            msg = f"{name} is no setting of a conversation: each turn has its own words"
            raise InvalidRequest(msg)
        request = self.request("each turn has its own", task="chat", **settings)
        if request.size is not None:
            self._warn_untrained(self.layout(request.size))
        return Chat(self, request, context)

    def stream(
        self,
        prompt: str,
        *,
        images: PictureSource | Sequence[PictureSource] = (),
        preview: bool = False,
        **settings: Any,
    ) -> Iterator[Event]:
        """Answers any `task` (text-to-image unless given) and yields what is done as it is done.

        Text, rows, previews if asked for, pictures; an answer that may hold both text and pictures closes with an
        `End`. Closing the generator cancels. The settings are checked here, before the first event is asked for.
        """
        return self.draw(self.request(prompt, **settings), several(images), preview=preview)

    def request(self, prompt: str, *, task: str = "text-to-image", seed: int | None = None, **settings: Any) -> Request:
        """The settings of an answer, completed by the manifest's defaults and checked.

        Raises:
            InvalidRequest: as `Request`, or the checkpoint was not trained for the task.
        """
        check_task(task)
        defaults, target = self.manifest.tasks.get(task), self.manifest.pictures.target_size
        if defaults is None:
            msg = (
                f"{self.manifest.name} was not trained for {task!r}; it knows {', '.join(self.manifest.tasks)} "
                '(export takes that from "tasks" in the checkpoint\'s mgpt.json)'
            )
            raise InvalidRequest(msg)
        values: dict[str, Any] = {
            "size": (target, target) if tasks()[task].from_words else None,
            "guidance": defaults.guidance,
            "top_k": defaults.top_k,
            "text_top_k": defaults.text_top_k,
            "temperature": defaults.temperature,
            **{name: value for name, value in settings.items() if value is not None},
        }
        return Request.of(prompt=prompt, task=task, seed=secrets.randbits(32) if seed is None else seed, **values)

    def layout(self, size: tuple[int, int]) -> ImageLayout:
        """The tokens of a picture of `size` (width, height)."""
        return self.intake.layout(size)

    def draw(
        self,
        request: Request,
        images: Sequence[PictureSource] = (),
        *,
        keep: PictureSource | None = None,
        keep_rows: Iterable[int] = (),
        preview: bool = False,
    ) -> Iterator[Event]:
        """`stream` for a request that is already made; `keep` and `keep_rows` as in `redraw`."""
        rows = list(keep_rows)
        kept = {} if keep is None or request.size is None else self.intake.kept(keep, rows, request.size)
        return self._run([self.prepare(request, images, kept)], preview=preview, kept_rows=rows)

    def prepare(
        self, request: Request, images: Sequence[PictureSource] = (), kept: dict[int, int] | None = None
    ) -> Job:
        """A request made ready, and its memory checked."""
        draws = not tasks()[request.task].converses or "vq_decoder.onnx" in self.manifest.files
        self.engine.prepare(draws=draws, reads=bool(images) or bool(kept))
        if request.size is not None:
            self._warn_untrained(self.layout(request.size))
        return self.intake.prepare(request, images, kept)

    def _run(self, jobs: list[Job], *, preview: bool = False, kept_rows: Sequence[int] = ()) -> Iterator[Event]:
        """Jobs in sequences that have room for each, as many answers at a time as engine and memory take."""
        conditional, unconditional = zip(*(job.capacities for job in jobs), strict=True)
        capacities, requests = (max(conditional), max(unconditional)), [job.request for job in jobs]
        wanted = min(sum(request.count for request in requests), self.engine.most_streams)
        prompt = max(len(job.prompt) for job in jobs)
        layout = jobs[0].form.layout or self.intake.usual
        free = self.engine.free_bytes()
        streams = memory.streams_that_fit(self.manifest, layout, capacities, prompt, wanted, free=free)
        sequences = self.engine.open(capacities, streams)
        steps = decode(sequences, jobs, self.window(requests[0], sequences.streams))
        return self.presenter.events(requests, steps, preview=preview, kept_rows=kept_rows)

    def _warn_untrained(self, layout: ImageLayout) -> None:
        trained, size = self.manifest.pictures.trained_sizes, (layout.width, layout.height)
        if size not in trained:
            near = nearest_bucket(*size, trained)
            msg = (
                f"{self.manifest.name} was not trained on pictures of {size[0]}x{size[1]}; "
                f"the nearest size it knows is {near[0]}x{near[1]}"
            )
            warnings.warn(msg, CompatibilityWarning, stacklevel=4)


def _images(events: Iterable[Event]) -> list[Image.Image]:
    """The pictures in the order of their seeds, which need not be the order in which they are done."""
    done = sorted((event for event in events if isinstance(event, Picture)), key=lambda event: event.picture)
    return [event.image for event in done]
