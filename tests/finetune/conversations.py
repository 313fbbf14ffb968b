"""Records with pictures on disk, for any test of fine-tuning that needs some."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mgpt_edge.runtime.family.tasks import template
from mgpt_edge.runtime.family.tasks.task import IMAGE_MARK

if TYPE_CHECKING:
    from pathlib import Path


def record(question: str, answer: str, *images: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, "image": list(images)}


def drawing(number: int) -> dict[str, Any]:
    """A text-to-image record, whose prompt says a size that is not the picture's."""
    question = template("text-to-image").format(width=512, height=512, prompt=f"a red sphere {number}")
    return record(question, IMAGE_MARK, f"{number}.png")


def write_pictures(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (100 + 30 * number, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def write_records(folder: Path, records: list[Any], name: str = "train.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(records, indent=1))
    return path
