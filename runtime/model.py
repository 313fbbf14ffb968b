"""The face of the runtime: a loaded bundle that draws."""

from __future__ import annotations

import platform
import secrets
import time
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from PIL import Image
from tokenizers import Tokenizer

from mgpt_edge.runtime import memory
from mgpt_edge.runtime.bundle import Bundle, default_bundle
from mgpt_edge.runtime.decode import FinishedRow, decode
from mgpt_edge.runtime.engines.ort import OrtEngine
from mgpt_edge.runtime.errors import CompatibilityWarning, IncompatibleEngine
from mgpt_edge.runtime.layout import ImageLayout, nearest_bucket
from mgpt_edge.runtime.metadata import KEY
from mgpt_edge.runtime.prompt import encode_prompt
from mgpt_edge.runtime.request import Request

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Preview:
    """The rows of a picture finished so far, decoded; `seconds` is what the preview itself cost."""

    picture: int
    image: Image.Image
    seconds: float


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture; `image.info["mgpt"]` says how it was drawn. `seconds` is the time of its VQ decoding."""

    picture: int
    image: Image.Image
    tokens: tuple[int, ...]
    seconds: float


Event = FinishedRow | Preview | Picture


def load(path: str | os.PathLike[str] | None = None, *, threads: int | None = None) -> Model:
    """Loads a bundle; without a path the small model that comes with the package.

    Args:
        path: a folder made by `mgpt export`.
        threads: of every pass; the machine's physical cores unless given.

    Raises:
        BundleError: no bundle there, or a damaged or newer one.
        IncompatibleEngine: nothing installed here can run it.
    """
    return Model(Bundle.open(default_bundle() if path is None else path), threads=threads)


@cache
def _version() -> str:
    return version("mgpt-edge")


class Model:
    """A bundle ready to draw. Threads may share it; every stream has a cache of its own."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        manifest = bundle.manifest
        if manifest.engine != "cpu":
            msg = f"{bundle.folder} was exported for engine {manifest.engine!r}; this version runs 'cpu'"
            raise IncompatibleEngine(msg)
        self.bundle = bundle
        self.manifest = manifest
        self.engine = OrtEngine(bundle, threads or memory.physical_cores())
        self.tokenizer = Tokenizer.from_file(str(bundle.path("tokenizer.json")))

    def generate(self, prompt: str, *, seed: int | None = None, **settings: Any) -> Image.Image | list[Image.Image]:
        """Draws what the prompt says.

        Args:
            prompt: what the picture shows.
            seed: 0 to 2^64 - 1; the same seed gives the same picture. A random one unless given.
            settings: `size=(width, height)`, `guidance`, `top_k`, `temperature` and `count`, as in
                `Request`; their defaults stand in the bundle's manifest.

        Returns:
            An RGB image, or with `count` a list of them, picture i drawn with `seed + i`. How it was drawn
            stands in `image.info["mgpt"]`; `mgpt_edge.save` keeps that in the file.

        Raises:
            InvalidRequest: a setting out of range or unknown.
            OutOfMemory: the picture needs more memory than the machine has.
        """
        events = self.stream(prompt, seed=seed, **settings)
        images = [event.image for event in events if isinstance(event, Picture)]
        return images if "count" in settings else images[0]

    def stream(
        self, prompt: str, *, seed: int | None = None, preview: bool = False, **settings: Any
    ) -> Iterator[Event]:
        """Draws as `generate` does and yields what is done as it is done: rows, previews if asked for, pictures.

        Closing the generator cancels. The settings are checked here, before the first event is asked for.
        """
        return self.draw(self.request(prompt, seed=seed, **settings), preview=preview)

    def request(self, prompt: str, *, seed: int | None = None, **settings: Any) -> Request:
        """The settings of a picture, completed by the manifest's defaults and checked."""
        defaults, target = self.manifest.defaults, self.manifest.pictures.target_size
        values: dict[str, Any] = {
            "size": (target, target),
            "guidance": defaults.guidance,
            "top_k": defaults.top_k,
            "temperature": defaults.temperature,
            **{name: value for name, value in settings.items() if value is not None},
        }
        return Request.of(prompt=prompt, seed=secrets.randbits(32) if seed is None else seed, **values)

    def layout(self, size: tuple[int, int]) -> ImageLayout:
        """The tokens of a picture of `size` (width, height)."""
        return ImageLayout(*size, self.manifest.vocabulary, self.manifest.pictures.stride)

    def draw(self, request: Request, *, preview: bool = False) -> Iterator[Event]:
        """`stream` for a request that is already made."""
        layout = self.layout(request.size)
        self.bundle.path("vq_decoder.onnx")  # a bundle that cannot draw says so before minutes are spent
        self._warn_untrained(request.size)
        width, height = request.size
        tokens = encode_prompt(
            self.tokenizer, layout.vocabulary, "text-to-image", width=width, height=height, prompt=request.prompt
        )
        capacities = len(tokens) + len(layout), len(layout) if request.guidance != 1 else 0
        memory.check(self.manifest, layout, capacities)
        return self._events(request, layout, decode(self.engine.open(capacities), tokens, layout, request), preview)

    def partial(self, request: Request, row: FinishedRow) -> Image.Image:
        """The rows of an unfinished picture, on black."""
        image = Image.new("RGB", request.size)
        image.paste(self._decode_pixels(row.tokens, self.layout(request.size))[0])
        return image

    def _events(
        self, request: Request, layout: ImageLayout, rows: Iterator[FinishedRow], preview: bool
    ) -> Iterator[Event]:
        for row in rows:
            yield row
            if row.row + 1 == layout.rows:
                finished, seconds = self._decode_pixels(row.tokens, layout)
                finished.info[KEY] = self._describe(request, row.picture)
                yield Picture(row.picture, finished, (*row.tokens, layout.vocabulary.end_image), seconds)
            elif preview:
                yield Preview(row.picture, *self._decode_pixels(row.tokens, layout))

    def _warn_untrained(self, size: tuple[int, int]) -> None:
        trained = self.manifest.pictures.trained_sizes
        if size not in trained:
            near = nearest_bucket(*size, trained)
            msg = (
                f"{self.manifest.name} was not trained on pictures of {size[0]}x{size[1]}; "
                f"the nearest size it knows is {near[0]}x{near[1]}"
            )
            warnings.warn(msg, CompatibilityWarning, stacklevel=3)

    def _decode_pixels(self, tokens: tuple[int, ...], layout: ImageLayout) -> tuple[Image.Image, float]:
        started = time.perf_counter()
        image = Image.fromarray(self.engine.decode_pixels(layout.decode(list(tokens))))
        return image, time.perf_counter() - started

    def _describe(self, request: Request, picture: int) -> dict[str, Any]:
        """All that decides the picture, for its file."""
        return {
            **request.to_json(),
            "seed": request.seed + picture,
            "count": 1,
            "model": self.manifest.name,
            "bundle": self.bundle.digest,
            "engine": self.manifest.engine,
            "precision": self.manifest.precision,
            "machine": platform.machine(),
            "mgpt_edge": _version(),
        }
