"""Pictures on their way in: opened safely, upright, opaque, and of a size that the model knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.layout import nearest_bucket

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

    PictureSource = str | os.PathLike[str] | Image.Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
LARGEST_PIXELS = 100_000_000
"""Width times height above which a picture is refused before its pixels are read."""


def open_picture(source: PictureSource) -> Image.Image:
    """A picture as RGB: turned as its EXIF orientation says, transparent parts on white.

    Raises:
        InvalidRequest: no such file, none of FORMATS, damaged, or larger than LARGEST_PIXELS.
    """
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
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        msg = f"{name} can't be read: {error}"
        raise InvalidRequest(msg) from error


def _upright(picture: Image.Image, name: str) -> Image.Image:
    if picture.width * picture.height > LARGEST_PIXELS:
        msg = f"{name} has {picture.width}x{picture.height} pixels, at most {LARGEST_PIXELS} can be read; shrink it"
        raise InvalidRequest(msg)
    upright = ImageOps.exif_transpose(picture)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return upright.convert("RGB")


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
    while picture.width >= 2 * width and picture.height >= 2 * height:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(width / picture.width, height / picture.height)
    scaled = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    picture = picture.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return np.asarray(picture.crop((left, top, left + width, top + height)), np.uint8)
