"""The plan of models/mini."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mgpt_edge.finetune.mini.draw import Sampling
from mgpt_edge.finetune.mini.plan import GroupPlan, KeptPlan, Plan, RewardPlan, StagePlan, VQPictures
from mgpt_edge.finetune.mini.vq import VQRecipe
from mgpt_edge.finetune.mini.world import KINDS
from mgpt_edge.finetune.sft import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mgpt_edge.finetune.mini.plan import Size

SQUARE_128, SQUARE_192, SQUARE_256, WIDE, HIGH = (128, 128), (192, 192), (256, 256), (256, 128), (128, 256)

_FIRST = KeptPlan(
    {"256-on": 1.0}, {SQUARE_128: 5400, SQUARE_192: 870, WIDE: 640, SQUARE_256: 590}, Sampling(3.0, 100, 0.7)
)
_SECOND = KeptPlan({"kept": 1.0}, {SQUARE_128: 3800}, Sampling(1.0, 100, 0.7))
_LARGER = KeptPlan({"kept": 1.0}, {SQUARE_192: 350, HIGH: 360, SQUARE_256: 290}, Sampling(1.5, 100, 0.6))
_THIRD = KeptPlan(
    {"256-on": 0.25, "kept-on": 0.75},
    {SQUARE_192: 670, WIDE: 400, HIGH: 470, SQUARE_256: 230},
    Sampling(2.0, 100, 0.65),
)
"""Rounds of pictures that the model draws itself."""


def default_plan() -> Plan:
    """What models/mini is made with."""
    colors = (VQPictures(128, "picture", 12000, 0.48), VQPictures(256, "picture", 3000, 0.24))
    importance = {"depth": 1.0, "normals": 0.5, "segmentation": 0.5, "edges": 0.1}
    dense = (VQPictures(side, kind, 1000, 0.035, importance[kind]) for side in (128, 256) for kind in KINDS[1:])
    return Plan(
        vq=VQRecipe(steps=14000),
        vq_pictures=(*colors, *dense),
        albums={
            SQUARE_128: _album(60000, 12000, 12000),
            SQUARE_192: _album(10000, 2500, 3000),
            WIDE: {"picture": 4000},
            HIGH: {"picture": 4000},
            SQUARE_256: _album(7000, 1000, 1000),
        },
        stages=(*_progressive(), *_questioned(), *_kept(), _rewarded()),
    )


def _progressive() -> tuple[StagePlan, ...]:
    """Rendered pictures, small ones first; from the third stage on every task."""
    small = GroupPlan({("text-to-image", SQUARE_128): 1.0}, batch=32)
    beside = GroupPlan({("text-to-image", SQUARE_128): 1.0, ("beside", SQUARE_128): 2.0}, batch=32)
    words = GroupPlan({("text-only", SQUARE_128): 1.0}, batch=64, weight=0.15)
    large = {("text-to-image", SQUARE_256): 5.0, ("pair", SQUARE_256): 4.0}
    middle = (_short(1.0), _long(0.2))
    all_sizes = (_drawn(0.5), _long(0.4, large), _longest(0.12))
    all_on = (_drawn(0.5), _long(0.45, large), _longest(0.08))
    return (
        StagePlan("128", 128, (small, words), Recipe(steps=4500, rate=1.8e-3, muon=True)),
        StagePlan("128-beside", 128, (beside, words), Recipe(steps=2400, rate=1.5e-3, muon=True)),
        StagePlan("192", 192, middle, Recipe(steps=4000, rate=1.2e-3, muon=True)),
        StagePlan("256", 128, all_sizes, Recipe(steps=2600, rate=1e-3, muon=True)),
        StagePlan("256-on", 128, all_on, Recipe(steps=3500, rate=1.2e-3, muon=True)),
    )


def _questioned() -> tuple[StagePlan, ...]:
    """Questions, which are few of the labels behind a picture."""
    there = GroupPlan({("is-there", SQUARE_128): 1.0}, 20, 0.4)
    said = GroupPlan({("text-is-there", SQUARE_128): 1.0}, 64, 0.6)
    first = replace(_FIRST, counts={SQUARE_128: _FIRST.counts[SQUARE_128]})
    return (
        _later(
            "quiz",
            (_kept_small(0.35, _pictures_of(SQUARE_128, 0.5)), *_quizzes(0.4, 0.25)),
            Recipe(steps=200, rate=1.2e-3, floor=0.3, average=0.99, ramp=30, seed=7, muon=True),
            (first,),
        ),
        _later(
            "is-there",
            (there, said),
            Recipe(steps=200, rate=1.5e-3, floor=0.05, average=0.99, ramp=30, seed=7, muon=True),
        ),
    )


def _kept() -> tuple[StagePlan, ...]:
    """Every task, with pictures that the model drew and a reader found right."""
    more = {("kept", SQUARE_256): 4.0, ("pair", SQUARE_256): 2.0}
    mixed = _kept_small(0.26, {("pair", SQUARE_128): 1.5, ("answer", SQUARE_128): 0.5})
    middle, larger = _kept_middle(0.25, {("kept", HIGH): 2.0}), _kept_large(0.19)
    return (
        _later(
            "kept",
            (_kept_small(0.34), _kept_middle(0.23), _kept_large(0.15), *_quizzes(0.16, 0.1), _quiz_256(0.03)),
            Recipe(steps=1100, rate=1e-3, floor=0.05, average=0.99, ramp=30, seed=7, muon=True),
            (_FIRST,),
        ),
        _later(
            "kept-on",
            (_kept_small(0.3, {("answer", SQUARE_128): 0.7}), middle, larger, *_quizzes(0.16, 0.07), _quiz_256(0.03)),
            Recipe(steps=850, rate=6e-4, floor=0.05, average=0.99, ramp=30, seed=8, muon=True),
            (_FIRST, _SECOND, _LARGER),
        ),
        _later(
            "count",
            (
                mixed,
                _kept_middle(0.24, _rendered_more()),
                _kept_large(0.2, more),
                *_counts(0.1, 0.11, 0.06),
                _quiz_256(0.03),
            ),
            Recipe(steps=2400, rate=9e-4, floor=0.05, average=0.99, ramp=30, seed=11, muon=True),
            (_FIRST, _SECOND, _LARGER, _THIRD),
        ),
    )


def _later(name: str, groups: tuple[GroupPlan, ...], recipe: Recipe, kept: tuple[KeptPlan, ...] = ()) -> StagePlan:
    return StagePlan(name, 128, groups, recipe, prompt_drop=0.1, kept=kept)


def _rewarded() -> StagePlan:
    """Its own pictures, as it draws them."""
    return StagePlan(
        "rewarded",
        128,
        _beside_rewards(),
        Recipe(steps=590, rate=1.5e-4, floor=0.05, weight_decay=0.0, clip=2.0, average=0.98, ramp=10, seed=12),
        prompt_drop=0.1,
        rewards=_rewards(),
        begin={"256-on": 0.15, "count": 0.85},
    )


def _album(pictures: int, dense: int, edited: int) -> dict[str, int]:
    return {"picture": pictures, **dict.fromkeys(KINDS[1:], dense), "edited": edited}


def _pictures_of(size: Size, weight: float = 1.0) -> dict[tuple[str, Size], float]:
    """The tasks of which a picture goes in and a picture comes out."""
    read_off = {(task, size): 0.5 * weight for task in ("depth", "normals", "segmentation")}
    drawn = {(f"from-{kind}", size): 0.4 * weight for kind in ("edges", "depth", "segmentation")}
    return read_off | drawn | {("edit", size): weight}


def _short(weight: float) -> GroupPlan:
    """About 170 tokens: middle-sized pictures from text, and small ones with everything that is asked of them."""
    drawn = {("text-to-image", SQUARE_192): 5.0, ("text-to-image", SQUARE_128): 3.0}
    drawn |= {("text-to-image", WIDE): 2.0, ("text-to-image", HIGH): 2.0}
    drawn |= {("beside", SQUARE_192): 3.0, ("beside", SQUARE_128): 1.5}
    said = {("answer", SQUARE_128): 2.0, ("describe", SQUARE_128): 0.5, ("text-only", SQUARE_128): 0.3}
    return GroupPlan(drawn | said | _pictures_of(SQUARE_128), 24, weight)


def _drawn(weight: float) -> GroupPlan:
    """The same, with more of what goes wrong most: two solids, at every size."""
    drawn = {("text-to-image", size): 2.0 for size in (SQUARE_128, SQUARE_192, WIDE, HIGH)}
    drawn |= {("pair", SQUARE_128): 4.0, ("pair", SQUARE_192): 3.0, ("pair", WIDE): 1.0, ("pair", HIGH): 1.0}
    said = {("answer", SQUARE_128): 2.0, ("describe", SQUARE_128): 0.3, ("text-only", SQUARE_128): 0.3}
    return GroupPlan(drawn | said | _pictures_of(SQUARE_128, 0.5), 24, weight)


def _long(weight: float, drawn: Mapping[tuple[str, Size], float] | None = None) -> GroupPlan:
    """About 310 tokens."""
    return GroupPlan({**(drawn or {}), ("answer", SQUARE_192): 1.0, **_pictures_of(SQUARE_192)}, 12, weight)


def _longest(weight: float) -> GroupPlan:
    """About 570 tokens."""
    return GroupPlan(_pictures_of(SQUARE_256) | {("answer", SQUARE_256): 2.0}, 6, weight)


def _kept_small(weight: float, beside: Mapping[tuple[str, Size], float] | None = None) -> GroupPlan:
    """About 100 tokens: small pictures that the model drew itself, and a few that were rendered."""
    drawn = {("kept", SQUARE_128): 8.0, ("text-to-image", SQUARE_128): 1.0, ("pair", SQUARE_128): 1.0}
    return GroupPlan({**drawn, **(beside or {})}, 32, weight)


def _kept_middle(weight: float, beside: Mapping[tuple[str, Size], float] | None = None) -> GroupPlan:
    """About 180 tokens: the same of middle sizes, and every task at the small one."""
    drawn = {("kept", SQUARE_192): 3.0, ("kept", WIDE): 2.0, ("describe", SQUARE_128): 0.2}
    drawn |= {("text-to-image", size): 0.4 for size in (SQUARE_192, WIDE, HIGH)}
    drawn |= {("pair", SQUARE_192): 0.5, ("pair", WIDE): 0.5, ("pair", HIGH): 0.8}
    return GroupPlan({**drawn, **(beside or {}), **_pictures_of(SQUARE_128, 0.5)}, 20, weight)


def _rendered_more() -> dict[tuple[str, Size], float]:
    """What `_kept_middle` gets in place of its own: more pairs, rendered."""
    drawn = {("kept", SQUARE_192): 3.5, ("kept", WIDE): 2.0, ("kept", HIGH): 2.0, ("text-to-image", SQUARE_192): 0.5}
    return drawn | {("pair", SQUARE_192): 1.0, ("pair", WIDE): 0.8, ("pair", HIGH): 0.8}


def _kept_large(weight: float, beside: Mapping[tuple[str, Size], float] | None = None) -> GroupPlan:
    """About 300 tokens: the same of large pictures, and every task at the middle size."""
    drawn = {("kept", SQUARE_256): 5.0, ("text-to-image", SQUARE_256): 1.0, ("pair", SQUARE_256): 1.0}
    return GroupPlan({**drawn, **(beside or {}), **_pictures_of(SQUARE_192, 0.2)}, 12, weight)


def _quizzes(pictures: float, words: float) -> tuple[GroupPlan, GroupPlan]:
    """A dozen questions a sequence, about a picture and about words."""
    seen = GroupPlan({("quiz", SQUARE_128): 4.0, ("quiz", SQUARE_192): 1.0}, 16, pictures)
    return seen, GroupPlan({("text-quiz", SQUARE_128): 1.0}, 32, words)


def _counts(quizzes: float, pictures: float, words: float) -> tuple[GroupPlan, GroupPlan, GroupPlan]:
    """Questions of every kind, how many there are of each shape, and both about words."""
    seen = {("quiz", SQUARE_128): 3.0, ("quiz", SQUARE_192): 1.0, ("is-there", SQUARE_128): 1.0}
    counted = {("count", SQUARE_128): 4.0, ("count", SQUARE_192): 1.0}
    said = {("text-quiz", SQUARE_128): 1.0, ("text-is-there", SQUARE_128): 0.5, ("text-count", SQUARE_128): 1.0}
    return GroupPlan(seen, 16, quizzes), GroupPlan(counted, 24, pictures), GroupPlan(said, 36, words)


def _quiz_256(weight: float) -> GroupPlan:
    """About 450 tokens."""
    return GroupPlan(_pictures_of(SQUARE_256) | {("quiz", SQUARE_256): 2.0}, 6, weight)


def _rewards() -> RewardPlan:
    """Drawing, most where most goes wrong; a little of what begins with a picture; guidance mostly as it is used."""
    drawn = {SQUARE_128: 0.14, SQUARE_192: 0.23, WIDE: 0.14, HIGH: 0.15, SQUARE_256: 0.24}
    begun = {"edit": 0.045, "from-edges": 0.02, "from-depth": 0.0175, "from-segmentation": 0.0175}
    tasks = {("text-to-image", size): share for size, share in drawn.items()}
    return RewardPlan(tasks | {(task, SQUARE_128): share for task, share in begun.items()}, {1: 0.1, 2: 0.77, 4: 0.13})


def _beside_rewards() -> tuple[GroupPlan, ...]:
    """Every task as it was learnt, so that none is forgotten."""
    small = {("text-to-image", SQUARE_128): 1.0, ("pair", SQUARE_128): 1.0, ("answer", SQUARE_128): 1.5}
    middle = {("text-to-image", SQUARE_192): 0.5, ("answer", SQUARE_192): 1.0, **_pictures_of(SQUARE_192, 0.6)}
    large = {("text-to-image", SQUARE_256): 0.5, ("quiz", SQUARE_256): 2.0, **_pictures_of(SQUARE_256, 0.6)}
    return (
        GroupPlan(small | {("describe", SQUARE_128): 0.3} | _pictures_of(SQUARE_128), 32, 0.4),
        GroupPlan(middle, 16, 0.15),
        GroupPlan(large, 10, 0.08),
        *_counts(0.18, 0.15, 0.1),
    )
