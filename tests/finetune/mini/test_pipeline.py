"""The whole training of a small checkpoint, smaller still: every stage, every task, every figure, and a restart."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mgpt_edge import load
from mgpt_edge.bench.quality import BundleArtist
from mgpt_edge.export.bundle import export_bundle
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.vqgan import VQConfig
from mgpt_edge.finetune.mini import kept, scores
from mgpt_edge.finetune.mini import pipeline as mini_module
from mgpt_edge.finetune.mini.default_plan import default_plan
from mgpt_edge.finetune.mini.draw import FAITHFUL, Sampling
from mgpt_edge.finetune.mini.judge import Judge
from mgpt_edge.finetune.mini.pipeline import SAMPLING, Mini
from mgpt_edge.finetune.mini.plan import GroupPlan, KeptPlan, Plan, RewardPlan, StagePlan, VQPictures
from mgpt_edge.finetune.mini.tasks import SCENE_TASKS, TASKS
from mgpt_edge.finetune.mini.vq import VQRecipe
from mgpt_edge.finetune.mini.world import KINDS
from mgpt_edge.finetune.sft import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from mgpt_edge.export.model import Decoder

SIZE = (32, 32)
VQ = VQConfig(
    channels=8, channel_multipliers=(1, 1, 1, 1, 2), residual_blocks=1, z_channels=8, embed_dim=4, codes=16, groups=4
)
PLAN = Plan(
    vq=VQRecipe(config=VQ, steps=6, batch=2, warmup_steps=3, crop=32),
    vq_pictures=(VQPictures(32, "picture", 500, 0.7), VQPictures(32, "depth", 500, 0.3)),
    albums={SIZE: dict.fromkeys((*KINDS, "edited"), 500)},
    stages=(
        StagePlan("32", 32, (GroupPlan({("text-to-image", SIZE): 1.0}, 2),), Recipe(steps=2)),
        StagePlan(
            "64",
            64,
            (GroupPlan({(task, SIZE): 1.0 for task in TASKS}, 4),),
            Recipe(steps=3),
            kept=(KeptPlan({"32": 1.0}, {SIZE: 60}, Sampling(guidance=2.0, top_k=10)),),
        ),
        StagePlan(
            "rewarded",
            64,
            (GroupPlan({(task, SIZE): 1.0 for task in SCENE_TASKS}, 2),),
            Recipe(steps=2),
            rewards=RewardPlan({("text-to-image", SIZE): 0.5, ("edit", SIZE): 0.5}, {2.0: 1.0}, prompts=2, pictures=2),
            begin={"32": 0.25, "64": 0.75},
        ),
    ),
    unseen_pairs=500,
    judge_steps=2,
    eye_steps=2,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    torch.set_num_threads(1)
    mini = Mini(tmp_path_factory.mktemp("mini"), PLAN, processes=1)
    assert list(mini.train_vq())[-1].keys() == {"step", "psnr_32", "codes_used_32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "shows", lambda *_: True)  # so small a model draws nothing right
        records = list(mini.train_stages())
    assert [record["kept"] for record in records if "kept" in record] == [100]
    assert [record["step"] for record in records if "validation" in record] == [2, 3, 2]
    return mini


def test_a_finished_training_is_not_repeated(trained: Mini) -> None:
    again = Mini(trained.work, PLAN, processes=1)
    before = (trained.work / "stage-rewarded.pt").stat().st_mtime_ns
    assert list(again.train_vq()) == []
    assert list(again.train_stages()) == []
    assert (trained.work / "stage-rewarded.pt").stat().st_mtime_ns == before


def test_a_finished_stage_needs_no_pictures(trained: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    last = StagePlan("more", 32, PLAN.stages[0].groups, Recipe(steps=2))
    mini, corpus, stages = Mini(trained.work, replace(PLAN, stages=(*PLAN.stages, last)), processes=1), Mini.corpus, []
    monkeypatch.setattr(Mini, "corpus", lambda self, *args: stages.append(args[0]) or corpus(self, *args))
    assert [record["step"] for record in mini.train_stages() if "validation" in record] == [2]
    assert stages == [last, last]  # to train on, and held back
    assert mini.trained_decoder()[0] is last


def test_a_stage_begins_with_the_mean_that_it_asks_for(trained: Mini) -> None:
    class Begun(Exception):
        pass

    def stop(_: Mini, model: Decoder, plan: StagePlan) -> None:
        first, last = (trained.painter({name: 1.0}).model.state_dict() for name in ("32", "64"))
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, 0.5 * first[name] + 0.5 * last[name])
        raise Begun

    mixed = replace(PLAN.stages[0], name="mixed", begin={"32": 0.5, "64": 0.5})
    mini = Mini(trained.work, replace(PLAN, stages=(*PLAN.stages, mixed)), processes=1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Begun):
        patch.setattr(Mini, "_stage", stop)
        list(mini.train_stages())


@pytest.mark.slow
def test_a_compiled_stage_learns_the_same(trained: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    for name, least in (("compiled", 1), ("plain", 1000)):
        monkeypatch.setattr(mini_module, "COMPILED", least)
        more = replace(PLAN.stages[0], name=name, recipe=Recipe(steps=20))
        mini = Mini(trained.work, replace(PLAN, stages=(PLAN.stages[0], more)), processes=1)
        losses.append([record["loss"] for record in mini.train_stages() if "loss" in record])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_shares_add_up(trained: Mini) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        replace(PLAN, stages=(*PLAN.stages[:-1], replace(PLAN.stages[-1], begin={"32": 0.5})))
    half = replace(PLAN.stages[1], kept=(replace(PLAN.stages[1].kept[0], artist={"32": 0.5}),))
    with pytest.raises(ValueError, match=r"add up to 1, got \{'32': 0.5\}"):
        replace(PLAN, stages=(PLAN.stages[0], half))


def test_codes_of_another_plan_are_refused(trained: Mini) -> None:
    larger = replace(PLAN, albums={SIZE: {kind: 2 * count for kind, count in PLAN.albums[SIZE].items()}})
    with pytest.raises(ValueError, match="not 1000; remove it"):
        Mini(trained.work, larger, processes=1).album(SIZE, "train", {"picture"})


def test_the_checkpoint_is_the_familys(trained: Mini, tmp_path: Path) -> None:
    trained.write(tmp_path / "checkpoint")
    read = Checkpoint.open(tmp_path / "checkpoint")
    stage, model = trained.trained_decoder()
    assert stage.side == 64
    assert read.config == model.config
    assert set(read.defaults.tasks) == {"text-to-image", "depth", "normals", "segmentation", "describe", "chat"} | {
        "edit",
        *(f"from-{kind}" for kind in ("edges", "depth", "segmentation")),
    }
    assert read.defaults.sampling("depth")["temperature"] == FAITHFUL.temperature
    assert read.defaults.sampling("edit")["guidance"] == SAMPLING.guidance


def test_every_figure_is_measured(trained: Mini) -> None:
    sampling = Sampling(guidance=2.0, top_k=10)
    judge, painter = trained.judge, trained.painter()
    assert len(list(scores.judge(judge, [trained.pictures(SIZE, "validation")]))) == 2  # and of held-out pairs
    assert len(list(scores.drawing(painter, judge, trained.trained_decoder()[0].sizes, 2, sampling))) == 3
    album = trained.album(SIZE, "validation", {*KINDS, "edited"})
    names = [name for name, _ in scores.seeing(painter, judge, album, 2, sampling)]
    assert names[-1] == "questions"
    assert len(names) == 8


def test_the_bundle_is_measured_alike(trained: Mini, tmp_path: Path) -> None:
    trained.write(tmp_path / "checkpoint")
    bundle = export_bundle(Checkpoint.open(tmp_path / "checkpoint"), tmp_path / "bundle", precision="int8")
    artist = BundleArtist(load(bundle.folder))
    judge = Judge.load(tmp_path / "checkpoint" / "judge.safetensors")
    album = artist.album(SIZE, 2, tmp_path / "pictures")
    lines = dict(scores.seeing(artist, judge, album, 2, Sampling(guidance=2.0, top_k=10)))
    assert len(lines) == 8
    # The codes that the bundle's encoder gives are those that the training saw.
    codes = trained.album(SIZE, "validation", set()).codes["picture"][0, :2]
    assert np.mean(album.codes["picture"][0] == codes) > 0.9


def test_a_plan_without_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sizes that have no pictures: \[\(128, 128\)"):
        replace(default_plan(), albums={})


def test_untrained_work_says_what_helps(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make mini"):
        _ = Mini(tmp_path, PLAN).vq
