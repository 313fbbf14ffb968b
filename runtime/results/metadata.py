"""PNG files that say how they were drawn, so that they can be drawn again."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.family.tasks import from_words
from mgpt_edge.runtime.files import write_atomically

if TYPE_CHECKING:
    from os import PathLike

KEY = "mgpt"
"""Text chunk of the PNG, and key of `image.info`: a JSON object."""
DRAWN_FROM = ("prompt", "task", "size", "guidance", "top_k", "temperature", "speculate", "approximate")
"""The settings that, with a seed, say what a picture is that was drawn from words alone."""


def note(image: Image.Image) -> dict[str, Any] | None:
    """Returns what an image says of how it was drawn, whether it was drawn here or read from a file; None if nothing.

    What was cropped, resized or painted on since says `altered`: drawing it again gives the picture that it was.
    """
    info = image.info.get(KEY)
    if isinstance(info, str):  # Pillow read it from a file
        try:
            info = json.loads(info)
        except (ValueError, RecursionError):
            return None
    if not isinstance(info, dict):
        return None
    drawn = info.get("pixels")
    if drawn is not None and drawn != fingerprint(image):
        return {**info, "altered": True}
    return info


def fingerprint(image: Image.Image) -> str:
    """Returns the beginning of a SHA-256 over an image's size and RGB pixels."""
    digest = hashlib.sha256(repr(image.size).encode())
    digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()[:16]


def save(image: Image.Image, path: str | PathLike[str]) -> None:
    """Writes a PNG, whole or not at all, with what `image.info` says of how it was drawn.

    Raises:
        InvalidRequest: another kind of file, or the folder does not exist or cannot be written.
    """
    if Path(path).suffix.lower() != ".png":
        msg = f"pictures are written as PNG, which keeps how they were drawn; got {path}"
        raise InvalidRequest(msg)
    info, said = PngInfo(), note(image)
    if said is not None:
        info.add_itxt(KEY, json.dumps(said, ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    try:
        write_atomically(Path(path), buffer.getvalue())
    except OSError as error:
        msg = f"can't write {path}: {error.strerror or error}; give another place with -o"
        raise InvalidRequest(msg) from error


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """How a PNG written by `save` was drawn.

    Raises:
        InvalidRequest: no such file, no PNG, or one that this package did not draw.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            text, drawn = getattr(image, "text", {}).get(KEY), fingerprint(image)
    except FileNotFoundError as error:
        msg = f"{path}: no such file"
        raise InvalidRequest(msg) from error
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        msg = f"{path} is no PNG that can be read, and only those say how they were drawn: {error}"
        raise InvalidRequest(msg) from error
    if text is None:
        msg = f"{path} does not say how it was drawn; expected a PNG written by `mgpt generate` or `mgpt_edge.save`"
        raise InvalidRequest(msg)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"{path}: its '{KEY}' text is not JSON: {error}"
        raise InvalidRequest(msg) from error
    if not isinstance(data, dict):
        msg = f"{path}: its '{KEY}' text must be an object, got {type(data).__name__}"
        raise InvalidRequest(msg)
    return data if data.get("pixels", drawn) == drawn else {**data, "altered": True}


def settings_of(image: Image.Image) -> dict[str, Any]:
    """What an image says of the words it was drawn from, and how; nothing where it says nothing of use."""
    info = note(image)
    if info is None or info.get("task", "text-to-image") not in from_words():
        return {}
    return {name: info[name] for name in DRAWN_FROM if name in info}
