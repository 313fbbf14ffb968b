"""Pictures on their way in: opened safely, upright, opaque, and of a size that the model knows."""

from __future__ import annotations

from math import ceil
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.family.layout import nearest_bucket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    PictureSource = str | PathLike[str] | Image.Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MIDDLE = 8
"""Times the size it is cropped to that a picture is scaled as a whole."""
LARGEST_PIXELS = 100_000_000
"""Width times height above which a picture is refused before its pixels are read."""


def open_picture(source: PictureSource) -> Image.Image:
    """A picture as RGB: turned as its EXIF orientation says, transparent parts on white.

    Raises:
        InvalidRequest: no such file, none of FORMATS, damaged, empty, of float pixels, or larger than LARGEST_PIXELS.
    """
    if not isinstance(source, str | PathLike | Image.Image):
        msg = f"a picture is a path or a Pillow image, got {type(source).__name__}; see PIL.Image.fromarray and open"
        raise InvalidRequest(msg)
    name = "the picture" if isinstance(source, Image.Image) else str(source)
    try:
        if isinstance(source, Image.Image):
            return _upright(source, name)
        with Image.open(Path(source), formats=FORMATS) as picture:
            return _upright(picture, name)
    except InvalidRequest:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        msg = f"there is no picture {name}"
        raise InvalidRequest(msg) from error
    except UnidentifiedImageError as error:
        msg = f"{name} is no picture of a known format; expected {', '.join(FORMATS)}"
        raise InvalidRequest(msg) from error
    except Image.DecompressionBombError as error:
        msg = f"{name} has more pixels than the {LARGEST_PIXELS:,} that can be read; shrink it"
        raise InvalidRequest(msg) from error
    except Exception as error:  # over damaged files decoders raise anything
        msg = f"{name} can't be read: {error}"
        raise InvalidRequest(msg) from error


def _upright(picture: Image.Image, name: str) -> Image.Image:
    if picture.width * picture.height > LARGEST_PIXELS:
        msg = f"{name} has {picture.width}x{picture.height} pixels, at most {LARGEST_PIXELS:,} can be read; shrink it"
        raise InvalidRequest(msg)
    if not picture.width * picture.height:
        msg = f"{name} is empty, it has {picture.width}x{picture.height} pixels"
        raise InvalidRequest(msg)
    upright = _eight_bits(ImageOps.exif_transpose(picture), name)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return upright.convert("RGB")


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """Pixels of 16 bits scaled to 8, where Pillow would cut them off at 255; premultiplied alpha undone."""
    if picture.mode == "F":
        msg = f"{name} has float pixels, whose white nothing says; save it with 8 or 16 bits"
        raise InvalidRequest(msg)
    if picture.mode.startswith("I"):
        wide = np.clip(np.asarray(picture), 0, 65535).astype(np.float32)
        return Image.fromarray(np.rint(wide / 257).astype(np.uint8))
    return picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode]) if picture.mode.endswith("a") else picture


def several(pictures: PictureSource | Sequence[PictureSource]) -> list[PictureSource]:
    """One picture or many, as a list."""
    return list(pictures) if isinstance(pictures, list | tuple) else [pictures]  # type: ignore[list-item]


def fit(picture: Image.Image, sizes: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
    """Resizes and crops an RGB picture to the one of `sizes` (width, height) that keeps most of it.

    As the family does in training (box halving, then bicubic), but the crop is always in the middle:
    the same picture gives the same pixels.

    Returns:
        uint8 [height, width, 3].
    """
    width, height = nearest_bucket(picture.width, picture.height, list(sizes))
    # Of a picture a few pixels wide, all of it scaled would be gigabytes that are cropped again.
    most = MIDDLE * min(picture.width / width, picture.height / height)
    picture = _middle(picture, min(picture.width, ceil(most * width)), min(picture.height, ceil(most * height)))
    while picture.width >= 2 * width and picture.height >= 2 * height:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(width / picture.width, height / picture.height)
    scaled = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    picture = picture.resize(scaled, Image.Resampling.BICUBIC)
    return np.asarray(_middle(picture, width, height), np.uint8)


def _middle(picture: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
