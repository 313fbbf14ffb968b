"""The family's tasks over the tabletop world: each turns a scene into a conversation, in the family's own words."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from mgpt_edge.finetune.conversation import Turn
from mgpt_edge.finetune.draw import FAITHFUL
from mgpt_edge.finetune.world import captions
from mgpt_edge.finetune.world.caption import description
from mgpt_edge.finetune.world.dialogue import edit_of, questions
from mgpt_edge.runtime.prompt import IMAGE_MARK, TEMPLATES

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from mgpt_edge.finetune.album import Scenes
    from mgpt_edge.finetune.draw import Sampling
    from mgpt_edge.finetune.world import Scene

    Task = Callable[[Scenes, np.random.Generator], list[Turn]]


VAGUE = 0.25
"""Share of the solids that a caption names by color or by shape alone: what each word says is then learnt by itself."""


def text_to_image(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """A caption -> the picture, or the caption of its mirror image -> that."""
    return _drawn(album, rng, int(rng.integers(album.count("picture"))))


def beside(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """The same of two solids side by side: left and right are what a model that draws by rows learns last."""
    return _drawn(album, rng, album.beside[rng.integers(len(album.beside))])


def pair(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """The same of any two solids: which of them has which color and shape is learnt late, too."""
    return _drawn(album, rng, album.pairs[rng.integers(len(album.pairs))])


def depth(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    return _read_off(album, rng, "depth")


def normals(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    return _read_off(album, rng, "normals")


def segmentation(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    return _read_off(album, rng, "segmentation")


def from_edges(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    return _guided_by(album, rng, "edges")


def from_depth(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    return _guided_by(album, rng, "depth")


def from_segmentation(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    return _guided_by(album, rng, "segmentation")


def edit(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """An instruction and a picture -> the picture after it."""
    index = int(rng.integers(album.count("picture", "edited")))
    text = TEMPLATES["edit"].format(instruction=edit_of(album.scene(index), index).instruction)
    return [Turn(text, (album.tokens("picture", index),)), _shown(album, "edited", index)]


def answer(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """Two to four questions about a picture, one after another."""
    index, mirrored = int(rng.integers(album.count("picture"))), bool(rng.integers(2))
    turns = _dialogue(album.scene(index, mirrored), rng)
    turns[0] = Turn(turns[0].text, (album.tokens("picture", index, mirrored),))
    return turns


def describe(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """A picture -> everything that can be said about it."""
    index, mirrored = int(rng.integers(album.count("picture"))), bool(rng.integers(2))
    asked = Turn(TEMPLATES["describe"], (album.tokens("picture", index, mirrored),))
    return [asked, Turn(description(album.scene(index, mirrored)))]


def text_only(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """A description in words and two to four questions about it."""
    scene = album.scene(int(rng.integers(len(album.scenes))), bool(rng.integers(2)))
    turns = _dialogue(scene, rng)
    turns[0] = Turn(f"{description(scene)} {turns[0].text}")
    return turns


def _drawn(album: Scenes, rng: np.random.Generator, index: int) -> list[Turn]:
    mirrored = bool(rng.integers(2))
    caption = captions(album.scene(index, mirrored), rng, vague=VAGUE)[0]
    size = {"width": album.width, "height": album.height}
    return [Turn(TEMPLATES["text-to-image"].format(prompt=caption, **size)), _shown(album, "picture", index, mirrored)]


def _dialogue(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    asked = questions(scene, rng, int(rng.integers(2, 5)))
    return [turn for question in asked for turn in (Turn(question.text), Turn(question.answer))]


def _read_off(album: Scenes, rng: np.random.Generator, kind: str) -> list[Turn]:
    index = int(rng.integers(album.count("picture", kind)))
    return [Turn(TEMPLATES[kind], (album.tokens("picture", index),)), _shown(album, kind, index)]


def _guided_by(album: Scenes, rng: np.random.Generator, kind: str) -> list[Turn]:
    index = int(rng.integers(album.count("picture", kind)))
    text = TEMPLATES[f"from-{kind}"].format(prompt=captions(album.scene(index), rng)[0])
    return [Turn(text, (album.tokens(kind, index),)), _shown(album, "picture", index)]


def _shown(album: Scenes, kind: str, index: int, mirrored: bool = False) -> Turn:
    return Turn(IMAGE_MARK, (album.tokens(kind, index, mirrored),))


TASKS: dict[str, Task] = {
    "text-to-image": text_to_image,
    "beside": beside,
    "pair": pair,
    "depth": depth,
    "normals": normals,
    "segmentation": segmentation,
    "from-edges": from_edges,
    "from-depth": from_depth,
    "from-segmentation": from_segmentation,
    "edit": edit,
    "answer": answer,
    "describe": describe,
    "text-only": text_only,
}
GUIDED = frozenset(("text-to-image", "beside", "pair", "from-edges", "from-depth", "from-segmentation", "edit"))
"""Tasks whose answer is a picture that guidance may be used for: their prompt is dropped now and then."""

KINDS_OF = {
    **{kind: frozenset((kind,)) for kind in ("depth", "normals", "segmentation")},
    **{f"from-{kind}": frozenset((kind,)) for kind in ("edges", "depth", "segmentation")},
    "edit": frozenset(("edited",)),
}
"""Which kinds of pictures a task needs beside the plain ones."""


def settings(trained: set[str], sampling: Sampling) -> dict[str, dict[str, float]]:
    """How a checkpoint wants to be sampled, for each of the family's tasks that it was trained for.

    Args:
        trained: of `TASKS`.
        sampling: of pictures that show what words say.
    """
    said = {"text-to-image": {}, **dict.fromkeys(("from-edges", "from-depth", "from-segmentation", "edit"), sampling)}
    said |= dict.fromkeys(("depth", "normals", "segmentation"), FAITHFUL)
    found = {task: asdict(how) if how else {} for task, how in said.items() if task in trained}
    # A question about this world has one right answer.
    words = {"chat": "answer", "describe": "describe"}
    return found | {task: {"text_top_k": 1} for task, part in words.items() if part in trained}
