"""What can be said about a scene: captions in many wordings, all of them true."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpt_edge.finetune.mini.world.scene import Scene, Solid, relation

if TYPE_CHECKING:
    import numpy as np

PHRASES = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "front": ("in front of",),
    "behind": ("behind",),
}
OPPOSITE = {"left": "right", "right": "left", "front": "behind", "behind": "front"}
NUMBERS = ("", "one", "two", "three", "four")


def captions(scene: Scene, rng: np.random.Generator, count: int = 1, vague: float = 0.0) -> list[str]:
    """Wordings of one scene, drawn independently; what they leave out, the picture is free to choose.

    Args:
        scene: what is described.
        rng: chooses the words.
        count: of wordings.
        vague: share of the solids that are named by color or by shape alone.
    """
    return [_punctuate(_caption(scene, rng, vague), rng) for _ in range(count)]


def description(scene: Scene) -> str:
    """Everything a scene holds, in one wording; of two solids also how they stand to each other."""
    names = [article(f"{solid.size} {solid.finish} {solid.color} {solid.shape}") for solid in scene.solids]
    where = relation(*scene.solids) if len(names) == 2 else None
    if where is not None:
        body = f"{names[0]} {PHRASES[where][0]} {names[1]}"
    else:
        body = " and ".join(", ".join(names).rsplit(", ", 1))
    text = f"{body} on {article(scene.floor)} floor, {_light(scene)}."
    return text[0].upper() + text[1:]


def _punctuate(caption: str, rng: np.random.Generator) -> str:
    """Now and then a capital letter or a full stop, as people write."""
    draw = rng.random()
    caption = caption[0].upper() + caption[1:] if draw < 0.12 else caption
    return caption + "." if 0.06 < draw < 0.18 else caption


def _caption(scene: Scene, rng: np.random.Generator, vague: float) -> str:
    solids = list(scene.solids)
    if len(solids) == 1:
        return _single(scene, solids[0], rng, vague)
    if len(solids) == 2:
        return _pair(scene, solids, rng, vague)
    order = rng.permutation(len(solids))
    names = [_name(solids[i], rng, vague) for i in order]
    body = f"{', '.join(names[:-1])} and {names[-1]}"
    if rng.random() < 0.3:
        body = f"{NUMBERS[len(solids)]} solids: {body}"
    return body + _place(scene, rng)


def _single(scene: Scene, solid: Solid, rng: np.random.Generator, vague: float) -> str:
    name, draw = _name(solid, rng, vague), rng.random()
    if draw < 0.82:
        return name + _place(scene, rng)
    if draw < 0.88:
        return f"there is {name}{_place(scene, rng)}"
    if draw < 0.94:
        return f"a picture of {name}{_place(scene, rng)}"
    return f"{name}{_place(scene, rng, always=True)}, {_light(scene)}"


def _pair(scene: Scene, solids: list[Solid], rng: np.random.Generator, vague: float) -> str:
    first, second = solids if rng.random() < 0.5 else solids[::-1]
    where, between = relation(first, second), "and"
    if where is not None and rng.random() >= 0.22:
        between = PHRASES[where][rng.integers(len(PHRASES[where]))]
    return f"{_name(first, rng, vague)} {between} {_name(second, rng, vague)}{_place(scene, rng)}"


def _name(solid: Solid, rng: np.random.Generator, vague: float) -> str:
    """The solid with its color, and now and then its size and finish."""
    words = [solid.color, solid.shape]
    if vague and rng.random() < vague:
        words = [solid.shape] if rng.random() < 0.5 else [solid.color, "solid"]
    if rng.random() < 0.3:
        words.insert(0, solid.finish)
    if rng.random() < 0.5:
        words.insert(0, solid.size)
    return article(" ".join(words))


def article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _place(scene: Scene, rng: np.random.Generator, always: bool = False) -> str:
    draw = rng.random()
    if draw < 0.18 and not always:
        return ""
    return f" on {article(scene.floor + (' floor' if draw < 0.85 else ' table'))}"


def _light(scene: Scene) -> str:
    return "lit from above" if scene.light == "above" else f"lit from the {scene.light}"
