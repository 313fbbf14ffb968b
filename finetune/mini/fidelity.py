"""How often the model does what it was asked: pictures read by the judge, dense answers and words against the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mgpt_edge.finetune.conversation import Turn
from mgpt_edge.finetune.mini.draw import FAITHFUL
from mgpt_edge.finetune.mini.world import SHAPES, captions, dense, render, sample_scene
from mgpt_edge.finetune.mini.world.caption import PHRASES
from mgpt_edge.finetune.mini.world.dialogue import edit_of, questions
from mgpt_edge.runtime.family.tasks import template

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mgpt_edge.finetune.mini.album import Album, Scenes
    from mgpt_edge.finetune.mini.draw import Sampling
    from mgpt_edge.finetune.mini.judge import Judge, Reading
    from mgpt_edge.finetune.mini.world import Frame, Scene
    from mgpt_edge.finetune.mini.world.dialogue import Edit


class Artist(Protocol):
    """A model at work on many requests: the one in training (`painter.Painter`), or a bundle (`bench.quality`)."""

    def paint(self, prompts: list[str], width: int, height: int, sampling: Sampling, seed: int) -> NDArray[np.uint8]:
        """Pictures [n, height, width, 3], one a prompt."""

    def respond(self, asked: list[Turn], width: int, height: int, sampling: Sampling, seed: int) -> NDArray[np.uint8]:
        """The pictures [n, height, width, 3] that answer questions."""

    def answer(self, asked: list[Turn]) -> list[str]:
        """The likeliest answers in text."""


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many were right."""

    right: int
    of: int

    @classmethod
    def of_all(cls, right: NDArray[np.bool_]) -> Share:
        return cls(int(right.sum()), len(right))

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

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f}-{100 * high:.1f}, n={self.of})"


@dataclass(frozen=True, slots=True)
class Difference:
    """By how many points more of the same requests are right than before, with its 95 % interval."""

    points: float
    low: float
    high: float

    @classmethod
    def of(cls, right: NDArray[np.bool_], before: NDArray[np.bool_]) -> Difference:
        """From what was right request by request; drawn with the same random numbers, most pictures are the same."""
        changes = 100.0 * (right.astype(int) - before)
        mean, half = changes.mean(), 1.96 * changes.std(ddof=1) / math.sqrt(len(changes))
        return cls(float(mean), float(mean - half), float(mean + half))

    def __str__(self) -> str:
        return f"{self.points:+.1f} points ({self.low:+.1f} to {self.high:+.1f})"


def asked(split: str, solids: int, count: int) -> list[Scene]:
    """The first scenes of a split with so many solids."""
    return [sample_scene(seed, split, solids) for seed in range(count)]


def text_to_image(
    artist: Artist, judge: Judge, scenes: list[Scene], size: tuple[int, int], sampling: Sampling, seed: int = 0
) -> NDArray[np.bool_]:
    """Draws one caption of each scene: which show it."""
    rng = np.random.default_rng(seed)
    prompts = [captions(scene, rng)[0] for scene in scenes]
    readings = judge.read(artist.paint(prompts, *size, sampling, seed))
    return np.array([shows_asked(*each) for each in zip(readings, scenes, prompts, strict=True)])


def shows_asked(reading: Reading, scene: Scene, caption: str) -> bool:
    """Whether a picture has a scene's solids, where the caption says, if it does."""
    phrases = [phrase for group in PHRASES.values() for phrase in group]
    return reading.shows(scene, where=any(phrase in caption for phrase in phrases))


def depth(artist: Artist, album: Album, count: int) -> float:
    """Mean absolute relative error of the depth, over all pixels."""
    drawn = _read_off(artist, album, "depth", count)
    truth = np.stack([_frame(album, index).depth for index in range(count)])
    found = np.stack([dense.depth_of_picture(picture) for picture in drawn])
    return float(np.mean(np.abs(found - truth) / truth))


def normals(artist: Artist, album: Album, count: int) -> float:
    """Mean angle between normals in degrees, over all pixels."""
    drawn = _read_off(artist, album, "normals", count)
    truth = np.stack([_frame(album, index).normals for index in range(count)])
    found = np.stack([dense.normals_of_picture(picture) for picture in drawn])
    return float(np.degrees(np.arccos(np.clip((truth * found).sum(-1), -1, 1))).mean())


def segmentation(artist: Artist, album: Album, count: int) -> float:
    """Mean over the classes of intersection over union, counted over all pictures."""
    drawn = _read_off(artist, album, "segmentation", count)
    truth = np.stack([dense.classes(album.scene(index), _frame(album, index)) for index in range(count)])
    found = np.stack([dense.classes_of_picture(picture) for picture in drawn])
    shares = []
    for index in range(2 + len(SHAPES)):
        union = ((truth == index) | (found == index)).sum()
        shares.append(((truth == index) & (found == index)).sum() / max(1, union))
    return float(np.mean(shares))


def guided_by(artist: Artist, judge: Judge, album: Album, kind: str, count: int, sampling: Sampling) -> Share:
    """Pictures drawn after edges, depth or segmentation and a caption: how many show the scene, every place right."""
    rng = np.random.default_rng(0)
    turns = [asked_after(album, kind, index, rng) for index in range(count)]
    readings = judge.read(artist.respond(turns, album.width, album.height, sampling, 0))
    return Share(sum(reading.shows(album.scene(i)) for i, reading in enumerate(readings)), count)


def edit(artist: Artist, judge: Judge, album: Album, count: int, sampling: Sampling) -> Share:
    """Edited pictures: how many show the scene after the edit."""
    edits = [edit_of(album.scene(index), index) for index in range(count)]
    turns = [asked_to_edit(album, index, edit) for index, edit in enumerate(edits)]
    readings = judge.read(artist.respond(turns, album.width, album.height, sampling, 0))
    return Share(sum(reading.shows(edit.after) for reading, edit in zip(readings, edits, strict=True)), count)


def asked_after(album: Scenes, kind: str, index: int, rng: np.random.Generator) -> Turn:
    """A picture's edges, depth or segmentation, and a caption of its scene."""
    text = template(f"from-{kind}").format(prompt=captions(album.scene(index), rng)[0])
    return Turn(text, (album.tokens(kind, index),))


def asked_to_edit(album: Scenes, index: int, edit: Edit) -> Turn:
    """A picture, and the instruction of its edit."""
    return Turn(template("edit").format(instruction=edit.instruction), (album.tokens("picture", index),))


def answers(artist: Artist, album: Album, count: int) -> Share:
    """Questions about pictures: how many are answered in exactly the right words."""
    rng = np.random.default_rng(0)
    pairs = [questions(album.scene(index), rng)[0] for index in range(count)]
    turns = [Turn(pair.text, (album.tokens("picture", index),)) for index, pair in enumerate(pairs)]
    said = artist.answer(turns)
    return Share(sum(words == pair.answer for words, pair in zip(said, pairs, strict=True)), count)


def _read_off(artist: Artist, album: Album, kind: str, count: int) -> np.ndarray:
    turns = [Turn(template(kind), (album.tokens("picture", index),)) for index in range(count)]
    return artist.respond(turns, album.width, album.height, FAITHFUL, 0)


def _frame(album: Album, index: int) -> Frame:
    return render(album.scene(index), album.width, album.height)
