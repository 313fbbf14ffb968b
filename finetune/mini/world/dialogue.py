"""Questions about a scene with their answers, and edits with the scene after them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.finetune.mini.world.caption import NUMBERS, PHRASES, article
from mgpt_edge.finetune.mini.world.scene import COLORS, HELD_OUT, MAX_SOLIDS, SHAPES, Scene, relation, sample_scene

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgpt_edge.finetune.mini.world.scene import Solid


@dataclass(frozen=True, slots=True)
class Question:
    """A question whose answer the scene decides."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Edit:
    """An instruction and the scene that results."""

    instruction: str
    after: Scene


def questions(scene: Scene, rng: np.random.Generator, count: int = 1) -> list[Question]:
    """Questions of several kinds; every solid they name is named unambiguously."""
    kinds: list[Callable[[Scene, np.random.Generator], Question | None]]
    kinds = [_how_many, _what_color, _is_there, _what_is_beside, _which_floor, _how_large]
    found: list[Question] = []
    while len(found) < count:
        question = kinds[rng.integers(len(kinds))](scene, rng)
        if question is not None:
            found.append(question)
    return found


def quiz(scene: Scene, rng: np.random.Generator, count: int = 9) -> list[Question]:
    """Up to `count` different questions, more of the kinds that are learnt late, and a third as many `close_calls`."""
    often = {_how_many: 4, _what_color: 2, _is_there: 2, _what_is_beside: 5, _which_floor: 1, _how_large: 2}
    kinds = [kind for kind, weight in often.items() for _ in range(weight)]
    drawn = [kinds[rng.integers(len(kinds))](scene, rng) for _ in range(4 * count)]
    different = list({question.text: question for question in drawn if question is not None}.values())
    found = [*different[:count], *close_calls(scene, rng, count // 3)]
    return [found[index] for index in rng.permutation(len(found))]


def close_calls(scene: Scene, rng: np.random.Generator, count: int) -> list[Question]:
    """Whether something is there: half of it is, and most of the rest has its color or its shape from what is."""
    there = [(solid.color, solid.shape) for solid in scene.solids]
    found = []
    for draw in rng.random(count):
        (color, shape), other = (
            there[rng.integers(len(there))],
            (COLORS[rng.integers(len(COLORS))], SHAPES[rng.integers(len(SHAPES))]),
        )
        if draw >= 0.5:
            near = [(other[0], shape)] * 3 + [(color, other[1])] * 3 + [other] * 4
            color, shape = near[rng.integers(len(near))]
        answer = "yes" if (color, shape) in there else "no"
        found.append(Question(f"Is there {article(f'{color} {shape}')}?", answer))
    return found


def counts(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """How many there are of each shape, in any order."""
    return [_of_shape(scene, SHAPES[index]) for index in rng.permutation(len(SHAPES))]


def edits(scene: Scene, rng: np.random.Generator) -> Edit:
    """One change of the scene: a color, a solid less or a solid more."""
    kinds: list[Callable[[Scene, np.random.Generator], Edit | None]] = [_recolor, _remove, _add]
    while True:
        edit = kinds[rng.integers(len(kinds))](scene, rng)
        if edit is not None:
            return edit


def edit_of(scene: Scene, index: int) -> Edit:
    """The edit that belongs to scene `index` of a split."""
    return edits(scene, np.random.default_rng([11, index]))


def _noun(solid: Solid) -> str:
    return f"{solid.color} {solid.shape}"


def _some(scene: Scene, rng: np.random.Generator) -> Solid:
    return scene.solids[rng.integers(len(scene.solids))]


def _only_of_shape(scene: Scene, solid: Solid) -> bool:
    return sum(other.shape == solid.shape for other in scene.solids) == 1


def _how_many(scene: Scene, rng: np.random.Generator) -> Question:
    shape = SHAPES[rng.integers(len(SHAPES))]
    if rng.random() < 0.5:
        return Question("How many solids are there?", NUMBERS[len(scene.solids)])
    return _of_shape(scene, shape)


def _of_shape(scene: Scene, shape: str) -> Question:
    number = sum(solid.shape == shape for solid in scene.solids)
    return Question(f"How many {shape}s are there?", NUMBERS[number] or "none")


def _what_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    solid = _some(scene, rng)
    return Question(f"What color is the {solid.shape}?", solid.color) if _only_of_shape(scene, solid) else None


def _is_there(scene: Scene, rng: np.random.Generator) -> Question:
    if rng.random() < 0.5:
        return Question(f"Is there {article(_noun(_some(scene, rng)))}?", "yes")
    color, shape = COLORS[rng.integers(len(COLORS))], SHAPES[rng.integers(len(SHAPES))]
    there = any((color, shape) == (solid.color, solid.shape) for solid in scene.solids)
    return Question(f"Is there {article(f'{color} {shape}')}?", "yes" if there else "no")


def _what_is_beside(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Asked only where exactly one solid is the answer."""
    solid = _some(scene, rng)
    where = list(PHRASES)[rng.integers(len(PHRASES))]
    there = [other for other in scene.solids if other is not solid and relation(other, solid) == where]
    if len(there) != 1:
        return None
    return Question(f"What is {PHRASES[where][0]} the {_noun(solid)}?", article(_noun(there[0])))


def _which_floor(scene: Scene, rng: np.random.Generator) -> Question:
    surface = ("floor", "table")[rng.integers(2)]
    return Question(f"What color is the {surface}?", scene.floor)


def _how_large(scene: Scene, rng: np.random.Generator) -> Question:
    solid = _some(scene, rng)
    return Question(f"Is the {_noun(solid)} small or large?", solid.size)


def _recolor(scene: Scene, rng: np.random.Generator) -> Edit | None:
    solid, color = _some(scene, rng), COLORS[rng.integers(len(COLORS))]
    taken = any((color, solid.shape) == (other.color, other.shape) for other in scene.solids)
    if taken or (color, solid.shape) in HELD_OUT:
        return None
    name = solid.shape if _only_of_shape(scene, solid) else _noun(solid)
    solids = tuple(replace(other, color=color) if other is solid else other for other in scene.solids)
    return Edit(f"Make the {name} {color}.", Scene(solids, scene.floor, scene.light))


def _remove(scene: Scene, rng: np.random.Generator) -> Edit | None:
    if len(scene.solids) == 1:
        return None
    solid = _some(scene, rng)
    rest = tuple(other for other in scene.solids if other is not solid)
    return Edit(f"Remove the {_noun(solid)}.", Scene(rest, scene.floor, scene.light))


def _add(scene: Scene, rng: np.random.Generator) -> Edit | None:
    """The new solid stands in a plain relation to the first; None where a few tries find no room for it."""
    if len(scene.solids) == MAX_SOLIDS:
        return None
    new = _some(sample_scene(int(rng.integers(2**31)), solids=2), rng)
    where = relation(new, scene.solids[0])
    clear = all(
        relation(new, other) is not None
        and abs(new.x - other.x) + abs(new.y - other.y) > 1.6 * (new.radius + other.radius)
        for other in scene.solids
    )
    if where is None or not clear or any(_noun(new) == _noun(other) for other in scene.solids):
        return None
    said = f"{new.size} {new.finish} {_noun(new)}"
    instruction = f"Add {article(said)} {PHRASES[where][0]} the {_noun(scene.solids[0])}."
    return Edit(instruction, Scene((*scene.solids, new), scene.floor, scene.light))
