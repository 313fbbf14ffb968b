"""How often a drawn picture shows what its prompt says, read by the judge; and sheets of samples to look at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from mgpt_edge.finetune.draw import Sampling, draw
from mgpt_edge.finetune.world import captions, sample_scene
from mgpt_edge.finetune.world.caption import PHRASES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mgpt_edge.export.model import Decoder
    from mgpt_edge.export.vqgan import VQGAN
    from mgpt_edge.finetune.data import Corpus
    from mgpt_edge.finetune.judge import Judge
    from mgpt_edge.finetune.world import Scene

SAMPLE_PROMPTS = (
    "a red sphere on a gray floor",
    "a large shiny blue cube on a brown floor",
    "a small green cone on a beige floor",
    "a yellow cylinder on a black floor",
    "an orange cone on a gray floor",
    "a large purple sphere on a beige floor",
    "a shiny cyan sphere on a black floor",
    "a white cube on a brown floor",
    "a red cube to the left of a blue sphere on a gray floor",
    "a green cylinder to the right of a yellow cone on a brown floor",
    "a large white sphere behind a small red cone on a beige floor",
    "an orange cube in front of a cyan cone on a black floor",
)


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many were right."""

    right: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.of or self.of < 1:
            msg = f"expected 0 to {self.of} of at least 1, got {self.right}"
            raise ValueError(msg)

    @property
    def value(self) -> float:
        return self.right / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        z = 1.96
        middle = (self.value + z * z / (2 * self.of)) / (1 + z * z / self.of)
        half = z / (1 + z * z / self.of) * math.sqrt(self.value * (1 - self.value) / self.of + (z / (2 * self.of)) ** 2)
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True, eq=False)
class Painter:
    """A transformer and a VQGAN that draw prompts at the size of a corpus."""

    model: Decoder
    vq: VQGAN
    corpus: Corpus

    def paint(self, prompts: list[str], sampling: Sampling, seed: int, batch: int = 100) -> NDArray[np.uint8]:
        """Pictures [n, h, w, 3], one a prompt."""
        parts = []
        for start in range(0, len(prompts), batch):
            questions = [self.corpus.question(prompt) for prompt in prompts[start : start + batch]]
            codes = draw(self.model, self.corpus.layout, questions, sampling, seed + start)
            with torch.inference_mode():
                parts.append(self.vq.decode_pixels(codes).numpy())
        return np.concatenate(parts)


def fidelity(painter: Painter, judge: Judge, scenes: list[Scene], sampling: Sampling, seed: int = 0) -> Share:
    """Draws one caption of each scene; a place counts only where the caption names it."""
    rng = np.random.default_rng(seed)
    prompts = [captions(scene, rng)[0] for scene in scenes]
    readings = judge.read(painter.paint(prompts, sampling, seed))
    phrases = [phrase for group in PHRASES.values() for phrase in group]
    right = sum(
        reading.shows(scene, where=any(phrase in prompt for phrase in phrases))
        for reading, scene, prompt in zip(readings, scenes, prompts, strict=True)
    )
    return Share(right, len(scenes))


def asked(split: str, solids: int, count: int) -> list[Scene]:
    """The first scenes of a split with so many solids."""
    return [sample_scene(seed, split, solids) for seed in range(count)]


def sheet(painter: Painter, sampling: Sampling, columns: int = 4, seed: int = 0) -> Image.Image:
    """The sample prompts' pictures in rows."""
    pictures = painter.paint(list(SAMPLE_PROMPTS), sampling, seed)
    rows = [np.concatenate(list(pictures[i : i + columns]), axis=1) for i in range(0, len(pictures), columns)]
    return Image.fromarray(np.concatenate(rows))
