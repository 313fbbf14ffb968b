"""Checking a bundle against the logits that were stored with it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mgpt_edge.runtime.engines.base import Segment
from mgpt_edge.runtime.errors import BundleError
from mgpt_edge.runtime.family.layout import GRID_PIXELS

if TYPE_CHECKING:
    from mgpt_edge.runtime.bundle.folder import Bundle
    from mgpt_edge.runtime.engines.base import Engine

FILE = "golden.json"
LARGEST_ERROR = {
    "fp32": 1e-3,
    "fp16": 1e-2,
    **dict.fromkeys(("int8", "int4", "mixed"), 5e-2),
    **dict.fromkeys(("w8a8", "fp8", "nvfp4"), 1e-1),
}
"""Relative to the logits' own size: other machines have other kernels, damage is far above this."""


@dataclass(frozen=True, slots=True)
class Golden:
    """`logits[i]` is the image logit of code `ids[i]` after `tokens`."""

    tokens: list[int]
    ids: list[int]
    logits: list[float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def recompute(bundle: Bundle, engine: Engine) -> float:
    """Largest error of the golden logits computed here, relative to the largest golden logit.

    Raises:
        BundleError: they differ by more than rounding can explain.
    """
    try:
        golden = Golden(**json.loads(bundle.path(FILE).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        msg = f"{bundle.folder / FILE} can't be read: {error}"
        raise BundleError(msg) from error
    logits = engine.open((len(golden.tokens), 0)).forward([Segment(0, golden.tokens)], "image")[0][0]
    expected = np.array(golden.logits)
    deviation = float(np.abs(logits[golden.ids] - expected).max() / np.abs(expected).max())
    if not deviation <= LARGEST_ERROR[bundle.manifest.precision]:
        msg = (
            f"{bundle.folder}: golden logits are off by {deviation:.2g}, expected at most "
            f"{LARGEST_ERROR[bundle.manifest.precision]:g}; this machine or its ONNX Runtime computes something else"
        )
        raise BundleError(msg)
    return deviation


def picture_there_and_back(bundle: Bundle, engine: Engine) -> None:
    """Decodes some codes and encodes the pixels, as far as the bundle has the VQ model for it.

    Raises:
        BundleError: what comes out has another shape.
        IncompatibleEngine: a graph can't be opened.
    """
    draws, reads = (f"{name}.onnx" in bundle.manifest.files for name in ("vq_decoder", "vq_encoder"))
    engine.prepare(draws=draws, reads=reads)
    side, stride = GRID_PIXELS // bundle.manifest.pictures.stride, bundle.manifest.pictures.stride
    codes = np.arange(side * side).reshape(side, side) % bundle.manifest.vocabulary.codes
    pixels = engine.decode_pixels(codes) if draws else np.zeros((side * stride, side * stride, 3), np.uint8)
    found = engine.encode_pixels(pixels) if reads else codes
    if pixels.shape != (side * stride, side * stride, 3) or found.shape != codes.shape:
        msg = f"{bundle.folder}: the VQ model makes {pixels.shape} of {codes.shape} codes, and {found.shape} of those"
        raise BundleError(msg)
