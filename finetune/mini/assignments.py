"""What a model is asked to draw while its own pictures are rewarded, and which of them are right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mgpt_edge.finetune.conversation import Turn
from mgpt_edge.finetune.mini.fidelity import asked_after, asked_to_edit
from mgpt_edge.finetune.mini.kept import shows
from mgpt_edge.finetune.mini.world import captions, sample_scene
from mgpt_edge.finetune.mini.world.dialogue import edit_of
from mgpt_edge.runtime.family.tasks import template

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from mgpt_edge.finetune.mini.album import Scenes
    from mgpt_edge.finetune.mini.judge import Reading
    from mgpt_edge.finetune.mini.plan import Size

FIRST = 5_000_000
"""Of the training split's scenes that are asked for; other stages show those before."""
SOLIDS = {1: 0.2, 2: 0.7, 3: 0.1}
"""How many a scene has: two are what goes wrong most."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What is said to the model, and whether a picture that is read so does it."""

    turn: Turn
    right: Callable[[Reading], bool]


def from_text(size: Size, first: int, count: int, rng: np.random.Generator) -> list[Assignment]:
    """Captions of training scenes, those from `FIRST + first` on."""
    return [_drawn(size, FIRST + first + i, rng) for i in range(count)]


def _drawn(size: Size, seed: int, rng: np.random.Generator) -> Assignment:
    scene = sample_scene(seed, solids=int(rng.choice(list(SOLIDS), p=list(SOLIDS.values()))))
    caption = captions(scene, rng)[0]
    text = template("text-to-image").format(width=size[0], height=size[1], prompt=caption)
    return Assignment(Turn(text), lambda reading: shows(reading, scene, caption))


def of_album(task: str, album: Scenes, count: int, rng: np.random.Generator) -> list[Assignment]:
    """Edits of an album's pictures, or pictures after its edges, depth or segmentation."""
    kinds = ("picture", "edited") if task == "edit" else ("picture", task.removeprefix("from-"))
    indices = rng.integers(album.count(*kinds), size=count).tolist()
    if task == "edit":
        return [_edited(album, index) for index in indices]
    return [_guided_by(kinds[1], album, index, rng) for index in indices]


def _edited(album: Scenes, index: int) -> Assignment:
    edit = edit_of(album.scene(index), index)
    after = edit.after
    return Assignment(
        asked_to_edit(album, index, edit), lambda reading: reading.shows(after) and reading.floor == after.floor
    )


def _guided_by(kind: str, album: Scenes, index: int, rng: np.random.Generator) -> Assignment:
    return Assignment(asked_after(album, kind, index, rng), lambda reading: reading.shows(album.scene(index)))
