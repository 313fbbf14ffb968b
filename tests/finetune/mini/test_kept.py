"""Pictures that the model draws itself: only right ones are kept, and a kill loses one round at most."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mgpt_edge.export.tokenizer import read_vocabulary
from mgpt_edge.finetune.mini.draw import Sampling
from mgpt_edge.finetune.mini.judge import Reading
from mgpt_edge.finetune.mini.kept import ROUND, Kept, keep, shows
from mgpt_edge.finetune.mini.plan import GroupPlan, KeptPlan, StagePlan
from mgpt_edge.finetune.mini.tasks import TASKS
from mgpt_edge.finetune.mini.tokenizer import train_tokenizer
from mgpt_edge.finetune.mini.world import Scene, Solid, sample_scene
from mgpt_edge.finetune.sft import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from mgpt_edge.finetune.conversation import Turn

SIZE, SAMPLING = (64, 32), Sampling(guidance=3.0, top_k=10)


class Numbers:
    """Paints a picture's number within its round; reads a picture of an even number as what was asked."""

    vocabulary = read_vocabulary(train_tokenizer(["a red cube"], codes=ROUND, merges=1).to_str())

    def __init__(self, able: bool = True) -> None:
        self.able, self.first, self.prompts = able, 0, []

    def asked(self, prompts: list[str], width: int, height: int) -> list[str]:
        assert (width, height) == SIZE
        self.prompts += prompts
        return prompts

    def draw(self, asked: list[Turn], width: int, height: int, sampling: Sampling, seed: int) -> Tensor:
        assert sampling == SAMPLING
        self.first = seed
        return torch.arange(len(asked))[:, None, None].expand(-1, height // 16, width // 16)

    def decode(self, codes: Tensor) -> NDArray[np.uint8]:
        return codes.numpy().astype(np.uint8)

    def read(self, pixels: NDArray[np.uint8]) -> list[Reading]:
        scenes = [sample_scene(self.first + i, solids=1 if i % 5 == 0 else 2) for i in pixels[:, 0, 0].tolist()]
        return [
            Reading(scene.solids if self.able and i % 2 == 0 else (), scene.floor) for i, scene in enumerate(scenes)
        ]


def test_right_ones_are_kept_with_their_captions(tmp_path: Path) -> None:
    model = Numbers()
    records = list(keep(model, model, SIZE, 120, SAMPLING, tmp_path / "kept.npz"))
    assert [(record["drawn"], record["kept"]) for record in records] == [(100, 50), (200, 100), (300, 150)]
    kept = Kept([tmp_path / "kept.npz"], *SIZE, model.vocabulary)
    assert kept.captions == model.prompts[::2]
    assert (kept.codes[:, 0, 0] == np.tile(np.arange(0, 100, 2), 3)).all()
    asked, shown = TASKS["kept"](kept, np.random.default_rng(0))
    number = kept.captions.index(asked.text.split("prompt:\n", 1)[1])
    assert shown.pictures == (kept.layout.encode(kept.codes[number]),)


def test_a_file_is_continued(tmp_path: Path) -> None:
    whole, parts, model = tmp_path / "whole.npz", tmp_path / "parts.npz", Numbers()
    list(keep(model, model, SIZE, 100, SAMPLING, whole))
    list(islice(keep(model, model, SIZE, 100, SAMPLING, parts), 1))  # killed after a round
    assert [record["drawn"] for record in keep(model, model, SIZE, 100, SAMPLING, parts)] == [200]
    one, other = (Kept([path], *SIZE, model.vocabulary) for path in (whole, parts))
    assert one.captions == other.captions
    assert (one.codes == other.codes).all()


def test_a_model_that_draws_nothing_right_is_refused(tmp_path: Path) -> None:
    model = Numbers(able=False)
    with pytest.raises(ValueError, match="none of 1000 pictures of 64x32 is right; train longer"):
        list(keep(model, model, SIZE, 1, SAMPLING, tmp_path / "kept.npz"))


def test_a_floor_matters_where_it_is_named() -> None:
    scene = Scene((Solid("cube", "red", "small", "shiny", 0, 0),), "gray", "left")
    other = Reading(scene.solids, "brown")
    assert shows(other, scene, "a red cube")
    assert not shows(other, scene, "a red cube on a gray table.")
    assert not shows(Reading((), "gray"), scene, "a red cube")


def test_a_stage_is_trained_on_what_it_keeps() -> None:
    groups = (GroupPlan({("kept", SIZE): 1.0}, 2),)
    StagePlan("own", 64, groups, Recipe(steps=1), kept=(KeptPlan({"small": 1.0}, {SIZE: 5}, SAMPLING),))
    with pytest.raises(ValueError, match=r"kept pictures of \[\(64, 32\)\], but \[\] are drawn"):
        StagePlan("own", 64, groups, Recipe(steps=1))
