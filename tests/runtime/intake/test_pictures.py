"""Pictures on their way in: what Pillow shows is what the model sees, or one clear error."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.family.layout import buckets
from mgpt_edge.runtime.intake import pictures
from mgpt_edge.runtime.intake.pictures import FORMATS, fit, open_picture


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((width, height), 80).convert(mode)


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind, tmp_path):
    path = tmp_path / f"picture.{kind.lower()}"
    noise(40, 30).save(path, kind)
    assert open_picture(path).size == (40, 30)
    assert open_picture(str(path)).mode == "RGB"


def test_a_turned_photo_stands_upright(tmp_path):
    picture = noise(40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    assert open_picture(tmp_path / "turned.png").size == (30, 40)
    assert open_picture(tmp_path / "turned.png").tobytes() == picture.rotate(-90, expand=True).tobytes()


def test_transparent_parts_become_white():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert open_picture(clear).getpixel((0, 0)) == (255, 255, 255)
    half = open_picture(Image.new("RGBA", (8, 8), (0, 0, 0, 128))).getpixel((0, 0))
    assert half == (127, 127, 127)
    palette = Image.new("P", (8, 8))
    palette.info["transparency"] = 0
    assert open_picture(palette).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "CMYK", "YCbCr", "RGBA", "RGBa", "I", "I;16"])
def test_any_mode(mode):
    assert open_picture(Image.new(mode, (16, 16))).mode == "RGB"


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_keep_their_shades(mode, tmp_path):
    wide = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    picture = Image.fromarray(wide.astype(np.int32) if mode == "I" else wide)
    assert picture.mode == mode
    Image.fromarray(wide).save(tmp_path / "depth.png")
    for source in (picture, tmp_path / "depth.png"):
        np.testing.assert_array_equal(np.asarray(open_picture(source))[..., 0].ravel(), np.arange(256))


def test_what_is_no_picture_is_named():
    for source, message in (
        (np.zeros((4, 4, 3), np.uint8), "a path or a Pillow image, got ndarray"),
        (None, "got NoneType"),
        (Image.new("RGB", (0, 5)), "is empty, it has 0x5 pixels"),
        (Image.new("F", (4, 4)), "has float pixels"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            open_picture(source)


def test_whatever_a_decoder_raises_is_one_error(tmp_path, monkeypatch):
    def broken(_):
        msg = "required argument is not an integer"  # as of a width that is a text in EXIF
        raise struct.error(msg)

    noise(40, 30).save(tmp_path / "odd.jpg")
    monkeypatch.setattr(ImageOps, "exif_transpose", broken)
    with pytest.raises(InvalidRequest, match=r"odd\.jpg can't be read: required argument"):
        open_picture(tmp_path / "odd.jpg")


def test_damaged_foreign_and_huge(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, "PNG")
    for name, content, message in (
        ("cut.png", buffer.getvalue()[:500], "can't be read"),
        ("text.png", b"no picture at all", "no picture of a known format"),
        ("empty.png", b"", "no picture of a known format"),
        ("vector.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no picture of a known format"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidRequest, match=message):
            open_picture(tmp_path / name)
    for missing in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(InvalidRequest, match="there is no picture"):
            open_picture(missing)
    monkeypatch.setattr(pictures, "LARGEST_PIXELS", 1000)
    with pytest.raises(InvalidRequest, match="has 64x64 pixels, at most 1,000 can"):
        open_picture(noise(64, 64))


@given(st.integers(1, 700), st.integers(1, 700))
def test_fit_gives_a_bucket(width, height):
    sizes = buckets(128)
    pixels = fit(Image.new("RGB", (width, height), "red"), sizes)
    assert pixels.shape[1::-1] in sizes
    assert pixels.dtype == np.uint8
    assert (pixels == (255, 0, 0)).all()


def test_of_a_picture_two_pixels_wide_only_the_middle_is_scaled(monkeypatch):
    scaled, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *given: scaled.append(given[1]) or resize(*given))
    tall = Image.new("RGB", (2, 400_000), "red")
    tall.paste("blue", (0, 199_000, 2, 201_000))
    assert (fit(tall, [(64, 64)]) == (0, 0, 255)).all()
    assert scaled == [(64, 8 * 64)]


def test_fit_is_the_middle_and_says_the_same_twice():
    picture = noise(1000, 300)
    first, second = (fit(picture, [(64, 64)]) for _ in range(2))
    assert np.array_equal(first, second)
    exact = noise(64, 96)
    assert np.array_equal(fit(exact, [(64, 96)]), np.asarray(exact))
    # 128 wide to 64 of the same height: 32 columns fall off on either side.
    wide = noise(128, 64)
    assert np.array_equal(fit(wide, [(64, 64)]), np.asarray(wide)[:, 32:96])
    halved = np.asarray(ImageOps.scale(wide, 0.5, Image.Resampling.BOX))
    assert np.array_equal(fit(wide, [(64, 32)]), halved)
