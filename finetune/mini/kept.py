"""Pictures that the model drew and a reader found right: what rejection sampling trains on.

Dong et al., "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment", 2023, with a reward that is
right or wrong. What guidance does at the cost of a second row becomes part of the model, and slips are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mgpt_edge.finetune.files import replace_atomically
from mgpt_edge.finetune.mini.fidelity import shows_asked
from mgpt_edge.finetune.mini.world import captions, sample_scene
from mgpt_edge.runtime.family.layout import ImageLayout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from mgpt_edge.finetune.mini.draw import Sampling
    from mgpt_edge.finetune.mini.judge import Judge, Reading
    from mgpt_edge.finetune.mini.painter import Painter
    from mgpt_edge.finetune.mini.world import Scene
    from mgpt_edge.runtime.family.vocabulary import Vocabulary

FIRST = 1_000_000
"""Of the training split's scenes that are asked for; rendered pictures show those before."""
ROUND = 100


class Kept:
    """Captions, and the pictures that were drawn for them.

    Args:
        paths: what `keep` wrote.
        width: of the pictures, in pixels.
        height: of the pictures, in pixels.
        vocabulary: the checkpoint's ids.
    """

    def __init__(self, paths: Sequence[Path], width: int, height: int, vocabulary: Vocabulary) -> None:
        self.width, self.height, self.layout = width, height, ImageLayout(width, height, vocabulary)
        found = [_Found.read(path, self.layout) for path in paths]
        self.captions = [caption for part in found for caption in part.captions.tolist()]
        self.codes = np.concatenate([part.codes for part in found])

    def tokens(self, index: int) -> list[int]:
        """The tokens of a picture."""
        return self.layout.encode(self.codes[index])


def keep(
    painter: Painter, reader: Judge, size: tuple[int, int], count: int, sampling: Sampling, path: Path
) -> Iterator[dict[str, float]]:
    """Draws captions of training scenes until `count` pictures are right; yields records of the log.

    Args:
        painter: the model that draws.
        reader: says what a picture shows.
        size: width and height in pixels.
        count: of pictures.
        sampling: how they are drawn.
        path: of the file, which every round makes longer; one that is there is continued.

    Raises:
        ValueError: of the first thousand pictures none is right.
    """
    found = _Found.read(path, ImageLayout(*size, painter.vocabulary))
    while len(found.captions) < count:
        first = FIRST + found.asked
        # As many of two solids as are right in the end, about: one is drawn well.
        scenes = [sample_scene(first + i, solids=1 if i % 5 == 0 else 2) for i in range(ROUND)]
        rng = np.random.default_rng([first, *size])
        prompts = [captions(scene, rng)[0] for scene in scenes]
        codes = painter.draw(painter.asked(prompts, *size), *size, sampling, seed=first)
        readings = reader.read(painter.decode(codes))
        right = [shows(*each) for each in zip(readings, scenes, prompts, strict=True)]
        found.add([prompt for prompt, kept in zip(prompts, right, strict=True) if kept], codes[torch.tensor(right)])
        found.write(path)
        if found.asked >= 1000 and len(found.captions) == 0:
            msg = f"none of {found.asked} pictures of {size[0]}x{size[1]} is right; train longer before keeping any"
            raise ValueError(msg)
        yield {"width": size[0], "height": size[1], "drawn": found.asked, "kept": len(found.captions)}


def shows(reading: Reading, scene: Scene, caption: str) -> bool:
    """Whether a picture shows what the caption of a scene says: solids, place and floor where it names them."""
    names_floor = f" {scene.floor} floor" in caption or f" {scene.floor} table" in caption
    return shows_asked(reading, scene, caption) and (reading.floor == scene.floor or not names_floor)


@dataclass(slots=True)
class _Found:
    """What a file holds: captions, their codes [n, rows, columns], and how many pictures have been drawn."""

    captions: NDArray[np.str_]
    codes: NDArray[np.int16]
    asked: int

    @classmethod
    def read(cls, path: Path, layout: ImageLayout) -> _Found:
        if not path.exists():
            return cls(np.empty(0, "U1"), np.empty((0, layout.rows, layout.columns), np.int16), 0)
        with np.load(path) as file:
            return cls(file["captions"], file["codes"], int(file["asked"]))

    def add(self, captions: list[str], codes: Tensor) -> None:
        self.captions = np.concatenate([self.captions, np.array(captions, "U")])
        self.codes = np.concatenate([self.codes, codes.numpy().astype(np.int16)])
        self.asked += ROUND

    def write(self, path: Path) -> None:
        def save(draft: Path) -> None:
            with draft.open("wb") as file:
                np.savez(file, captions=self.captions, codes=self.codes, asked=self.asked)

        replace_atomically(path, save)
