"""What the small checkpoint is made of: its pictures, its stages and what each is trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mgpt_edge.finetune.sft import Recipe
from mgpt_edge.finetune.sharpen import SharpenRecipe
from mgpt_edge.finetune.vq import VQRecipe
from mgpt_edge.finetune.world import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class VQPictures:
    """Square pictures that the VQGAN is trained on; `weight` and `importance` as in `vq.Source`."""

    side: int
    kind: str
    count: int
    weight: float
    importance: float = 1.0


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Tasks whose sequences are about equally long: (task, size) by weight, and sequences a batch."""

    tasks: Mapping[tuple[str, Size], float]
    batch: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One progressive stage; `side` is that of the squares it is scored on, and that its model draws unless asked."""

    name: str
    side: int
    groups: tuple[GroupPlan, ...]
    recipe: Recipe
    prompt_drop: float = 0.12

    @property
    def tasks(self) -> set[tuple[str, Size]]:
        return {key for group in self.groups for key in group.tasks}

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Sizes that pictures are drawn at from text alone, the stage's own square first."""
        drawn = {size for task, size in self.tasks if task == "text-to-image"}
        return tuple(sorted(drawn, key=lambda size: (size != (self.side, self.side), size)))


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides what the checkpoint becomes.

    Attributes:
        albums: Training pictures by size and kind.
        held_back: Validation pictures of each size and kind.
        unseen_pairs: Pictures of each size that show pairs of color and shape held out from all training but the
            judge's.
        dropout: Of the transformer's residual branches.
    """

    vq: VQRecipe
    vq_pictures: tuple[VQPictures, ...]
    albums: Mapping[Size, Mapping[str, int]]
    stages: tuple[StagePlan, ...]
    dropout: float = 0.0
    sharpening: SharpenRecipe = field(default_factory=lambda: SharpenRecipe(steps=3000))
    held_back: int = 500
    unseen_pairs: int = 1500
    judge_steps: int = 6000
    eye_steps: int = 1500

    def __post_init__(self) -> None:
        if not self.stages:
            msg = "a plan has at least one stage"
            raise ValueError(msg)
        missing = {size for stage in self.stages for _, size in stage.tasks} - set(self.albums)
        if missing:
            msg = f"stages name sizes that have no pictures: {sorted(missing)}"
            raise ValueError(msg)


SQUARE_128, SQUARE_192, SQUARE_256, WIDE, HIGH = (128, 128), (192, 192), (256, 256), (256, 128), (128, 256)


def default_plan() -> Plan:
    """What models/mini is made with."""
    colors = (VQPictures(128, "picture", 12000, 0.48), VQPictures(256, "picture", 3000, 0.24))
    importance = {"depth": 1.0, "normals": 0.5, "segmentation": 0.5, "edges": 0.1}
    dense = (VQPictures(side, kind, 1000, 0.035, importance[kind]) for side in (128, 256) for kind in KINDS[1:])
    small = GroupPlan({("text-to-image", SQUARE_128): 1.0}, batch=32)
    beside = GroupPlan({("text-to-image", SQUARE_128): 1.0, ("beside", SQUARE_128): 2.0}, batch=32)
    words = GroupPlan({("text-only", SQUARE_128): 1.0}, batch=64, weight=0.15)
    large = {("text-to-image", SQUARE_256): 5.0, ("pair", SQUARE_256): 4.0}
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
        stages=(
            StagePlan("128", 128, (small, words), Recipe(steps=4500, rate=1.8e-3, muon=True)),
            StagePlan("128-beside", 128, (beside, words), Recipe(steps=2400, rate=1.5e-3, muon=True)),
            StagePlan("192", 192, (_short(1.0), _long(0.2)), Recipe(steps=4000, rate=1.2e-3, muon=True)),
            StagePlan(
                "256", 128, (_drawn(0.5), _long(0.4, large), _longest(0.12)), Recipe(steps=2600, rate=1e-3, muon=True)
            ),
            StagePlan(
                "256-on",
                128,
                (_drawn(0.5), _long(0.45, large), _longest(0.08)),
                Recipe(steps=3500, rate=1.2e-3, muon=True),
            ),
        ),
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
