"""What a small checkpoint is made of: its pictures, its stages and what each is trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mgpt_edge.finetune.mini.draw import Sampling
    from mgpt_edge.finetune.mini.vq import VQRecipe
    from mgpt_edge.finetune.sft import Recipe

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
class KeptPlan:
    """Pictures that earlier weights draw: whose (as `StagePlan.begin`), how many right ones, and how."""

    artist: Mapping[str, float]
    counts: Mapping[Size, int]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class RewardPlan:
    """What a stage draws itself and is rewarded for, beside what it is shown.

    Attributes:
        tasks: (task, size) by their share of the steps: text to image, edits, and pictures after another.
        guidances: by their share of the steps.
        temperature: of the pictures, all codes being possible.
        prompts: of a step whose pictures have 8x8 codes; larger ones are fewer.
        pictures: of each prompt.
        weight: of the rewards' gradients beside those of the other batches.
    """

    tasks: Mapping[tuple[str, Size], float]
    guidances: Mapping[float, float]
    temperature: float = 0.7
    prompts: int = 32
    pictures: int = 8
    weight: float = 2.0


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One progressive stage; `side` is that of the squares it is scored on, and that its model draws unless asked.

    Attributes:
        begin: Stages by their share of the weights that it begins with; none: those of the stage before. A mean with
            weights from before a fine-tuning keeps more of what those could (arXiv 2109.01903).
    """

    name: str
    side: int
    groups: tuple[GroupPlan, ...]
    recipe: Recipe
    prompt_drop: float = 0.12
    kept: tuple[KeptPlan, ...] = ()
    rewards: RewardPlan | None = None
    begin: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        drawn = {size for kept in self.kept for size in kept.counts}
        if (wanted := {size for task, size in self.tasks if task == "kept"}) != drawn:
            msg = f"stage {self.name} is trained on kept pictures of {sorted(wanted)}, but {sorted(drawn)} are drawn"
            raise ValueError(msg)

    @property
    def shown(self) -> set[tuple[str, Size]]:
        """What it is shown."""
        return {key for group in self.groups for key in group.tasks}

    @property
    def tasks(self) -> set[tuple[str, Size]]:
        """What it is shown, and what it is rewarded for."""
        return self.shown | set(self.rewards.tasks if self.rewards else ())

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
    held_back: int = 500
    unseen_pairs: int = 1500
    judge_steps: int = 3000
    eye_steps: int = 1500

    def __post_init__(self) -> None:
        if not self.stages:
            msg = "a plan has at least one stage"
            raise ValueError(msg)
        names = {stage.name for stage in self.stages}
        artists = [kept.artist for stage in self.stages for kept in stage.kept]
        for shares in (*artists, *(stage.begin for stage in self.stages if stage.begin)):
            if set(shares) - names or not math.isclose(sum(shares.values()), 1):
                msg = f"shares are of stages and add up to 1, got {dict(shares)}"
                raise ValueError(msg)
        missing = {size for stage in self.stages for _, size in stage.tasks} - set(self.albums)
        if missing:
            msg = f"stages name sizes that have no pictures: {sorted(missing)}"
            raise ValueError(msg)
