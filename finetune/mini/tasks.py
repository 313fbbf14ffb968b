"""The family's tasks over the tabletop world: each turns a scene into a conversation, in the family's own words."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mgpt_edge.finetune.conversation import Turn
from mgpt_edge.finetune.mini.draw import FAITHFUL
from mgpt_edge.finetune.mini.world import captions
from mgpt_edge.finetune.mini.world.caption import description
from mgpt_edge.finetune.mini.world.dialogue import close_calls, counts, edit_of, questions, quiz
from mgpt_edge.runtime.family.tasks import template
from mgpt_edge.runtime.family.tasks.task import IMAGE_MARK

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from mgpt_edge.finetune.mini.album import Scenes
    from mgpt_edge.finetune.mini.draw import Sampling
    from mgpt_edge.finetune.mini.kept import Kept
    from mgpt_edge.finetune.mini.world import Scene
    from mgpt_edge.finetune.mini.world.dialogue import Question

    Ask = Callable[[Scene], list[Question]]
    Task = Callable[[Any, np.random.Generator], list[Turn]]


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


def kept(album: Kept, rng: np.random.Generator) -> list[Turn]:
    """A caption -> a picture that the model drew for it."""
    index = int(rng.integers(len(album.captions)))
    return _asked(album, album.captions[index], album.tokens(index))


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
    text = template("edit").format(instruction=edit_of(album.scene(index), index).instruction)
    return [Turn(text, (album.tokens("picture", index),)), _shown(album, "edited", index)]


def answer(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """Two to four questions about a picture, one after another."""
    return _about_picture(album, rng, lambda scene: questions(scene, rng, int(rng.integers(2, 5))))


def quiz_answer(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """A dozen questions about a picture: most of what a sequence teaches is otherwise the picture."""
    return _about_picture(album, rng, lambda scene: quiz(scene, rng))


def is_there(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """Whether something is there, ten times: the one kind that stays at chance where it is one of many."""
    return _about_picture(album, rng, lambda scene: close_calls(scene, rng, 10))


def count_answer(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """How many there are of each shape in a picture, and nothing else: asked among others, it stays unlearnt too."""
    return _about_picture(album, rng, lambda scene: counts(scene, rng))


def describe(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """A picture -> everything that can be said about it."""
    index, mirrored = int(rng.integers(album.count("picture"))), bool(rng.integers(2))
    asked = Turn(template("describe"), (album.tokens("picture", index, mirrored),))
    return [asked, Turn(description(album.scene(index, mirrored)))]


def text_only(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """A description in words and two to four questions about it."""
    return _about_words(album, rng, lambda scene: questions(scene, rng, int(rng.integers(2, 5))))


def text_quiz(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """A description in words and a dozen questions about it."""
    return _about_words(album, rng, lambda scene: quiz(scene, rng))


def text_is_there(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """A description in words, and ten times whether something is there."""
    return _about_words(album, rng, lambda scene: close_calls(scene, rng, 10))


def text_count(album: Scenes, rng: np.random.Generator) -> list[Turn]:
    """A description in words, and how many there are of each shape."""
    return _about_words(album, rng, lambda scene: counts(scene, rng))


def _drawn(album: Scenes, rng: np.random.Generator, index: int) -> list[Turn]:
    mirrored = bool(rng.integers(2))
    caption = captions(album.scene(index, mirrored), rng, vague=VAGUE)[0]
    return _asked(album, caption, album.tokens("picture", index, mirrored))


def _asked(album: Scenes | Kept, caption: str, picture: list[int]) -> list[Turn]:
    text = template("text-to-image").format(prompt=caption, width=album.width, height=album.height)
    return [Turn(text), Turn(IMAGE_MARK, (picture,))]


def _about_picture(album: Scenes, rng: np.random.Generator, ask: Ask) -> list[Turn]:
    index, mirrored = int(rng.integers(album.count("picture"))), bool(rng.integers(2))
    turns = _dialogue(ask(album.scene(index, mirrored)))
    turns[0] = Turn(turns[0].text, (album.tokens("picture", index, mirrored),))
    return turns


def _about_words(album: Scenes, rng: np.random.Generator, ask: Ask) -> list[Turn]:
    scene = album.scene(int(rng.integers(len(album.scenes))), bool(rng.integers(2)))
    turns = _dialogue(ask(scene))
    turns[0] = Turn(f"{description(scene)} {turns[0].text}")
    return turns


def _dialogue(asked: list[Question]) -> list[Turn]:
    return [turn for question in asked for turn in (Turn(question.text), Turn(question.answer))]


def _read_off(album: Scenes, rng: np.random.Generator, kind: str) -> list[Turn]:
    index = int(rng.integers(album.count("picture", kind)))
    return [Turn(template(kind), (album.tokens("picture", index),)), _shown(album, kind, index)]


def _guided_by(album: Scenes, rng: np.random.Generator, kind: str) -> list[Turn]:
    index = int(rng.integers(album.count("picture", kind)))
    text = template(f"from-{kind}").format(prompt=captions(album.scene(index), rng)[0])
    return [Turn(text, (album.tokens(kind, index),)), _shown(album, "picture", index)]


def _shown(album: Scenes, kind: str, index: int, mirrored: bool = False) -> Turn:
    return Turn(IMAGE_MARK, (album.tokens(kind, index, mirrored),))


SCENE_TASKS: dict[str, Task] = {
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
    "quiz": quiz_answer,
    "is-there": is_there,
    "count": count_answer,
    "describe": describe,
    "text-only": text_only,
    "text-quiz": text_quiz,
    "text-is-there": text_is_there,
    "text-count": text_count,
}
"""Over scenes and their pictures."""

TASKS = SCENE_TASKS | {"kept": kept}
"""With that over pictures that the model drew."""

GUIDED = frozenset(("text-to-image", "beside", "pair", "kept", "from-edges", "from-depth", "from-segmentation", "edit"))
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
