"""The tabletop world as the records that `mgpt finetune` and `mgpt calibrate` read: JSON Lines, and pictures beside."""

from __future__ import annotations

import json
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mgpt_edge.finetune.files import replace_atomically
from mgpt_edge.finetune.mini.album import Scenes
from mgpt_edge.finetune.mini.pictures import SHARD, Pictures
from mgpt_edge.finetune.mini.tasks import SCENE_TASKS
from mgpt_edge.finetune.mini.world import KINDS, render

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mgpt_edge.finetune.conversation import Turn

FILE = "records.jsonl"


class Sketchbook(Scenes):
    """Scenes whose pictures are rendered when a task asks for them: its tokens are numbers of `pixels`."""

    def __init__(self, split: str, side: int, folder: Path) -> None:
        kinds = (*KINDS, "edited")
        super().__init__({kind: Pictures(folder, split, side, side, SHARD, kind) for kind in kinds})
        self.pixels: list[NDArray[np.uint8]] = []

    def tokens(self, kind: str, index: int, mirrored: bool = False) -> list[int]:
        """The number of a scene's picture of one kind."""
        pictures, scene = self.pictures[kind], self.scene(index)
        pixels = pictures.of(scene, index, render(scene, pictures.width, pictures.height))
        self.pixels.append(pixels[:, ::-1] if mirrored else pixels)
        return [len(self.pixels) - 1]


def write_examples(folder: Path, count: int, side: int, split: str = "validation") -> Path:
    """Writes `count` conversations, every task in turn, and the file that names them.

    Args:
        folder: gets `records.jsonl` and `pictures`.
        count: of records.
        side: of the square pictures, in pixels.
        split: of the world's scenes.
    """
    book, lines = Sketchbook(split, side, folder), []
    for number, task in zip(range(count), cycle(SCENE_TASKS.values()), strict=False):
        book.pixels.clear()
        turns = task(book, np.random.default_rng(number))
        names = [f"pictures/{number:05d}-{place}.png" for place in range(len(book.pixels))]
        for name, pixels in zip(names, book.pixels, strict=True):
            image = Image.fromarray(np.ascontiguousarray(pixels))
            replace_atomically(folder / name, lambda draft, image=image: image.save(draft, "png"))
        lines.append(json.dumps({"conversations": _conversation(turns), "image": names}) + "\n")
    replace_atomically(folder / FILE, lambda draft: draft.write_text("".join(lines), "utf-8"))
    return folder / FILE


def _conversation(turns: list[Turn]) -> list[dict[str, str]]:
    speakers = ("human", "gpt")
    return [{"from": speakers[number % 2], "value": turn.text} for number, turn in enumerate(turns)]
