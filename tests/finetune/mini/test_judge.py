"""The judge and what is counted as right."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, stats

from mgpt_edge.finetune.mini import judge as judging
from mgpt_edge.finetune.mini.fidelity import Difference, Share
from mgpt_edge.finetune.mini.judge import Judge, Reading, roughened, train_judge
from mgpt_edge.finetune.mini.pictures import Pictures
from mgpt_edge.finetune.mini.world import Scene, Solid, render, sample_scene
from mgpt_edge.runtime.bundle.folder import default_bundle

if TYPE_CHECKING:
    from pathlib import Path

LEFT = Solid("cube", "red", "small", "shiny", -1, 0)
RIGHT = Solid("cone", "blue", "large", "matte", 1, 0)


def test_right_means_these_solids_in_these_places() -> None:
    scene = Scene((LEFT, RIGHT), "gray", "left")
    assert Reading((RIGHT, LEFT), "gray").shows(scene)
    assert not Reading((LEFT,), "gray").shows(scene)
    assert not Reading((LEFT, Solid("cone", "green", "large", "matte", 1, 0)), "gray").shows(scene)
    swapped = Reading(
        (Solid("cube", "red", "small", "matte", 1, 0), Solid("cone", "blue", "small", "matte", -1, 0)), "gray"
    )
    assert not swapped.shows(scene)
    assert swapped.shows(scene, where=False)


def test_it_is_less_sure_of_a_solid_between_two_shapes() -> None:
    judge = Judge.load(default_bundle().parent / "judge.safetensors")
    scenes = [Scene((replace(LEFT, shape=shape, x=0),), "gray", "left") for shape in ("cube", "cylinder")]
    cube, cylinder = (render(scene, 128, 128).picture for scene in scenes)
    between = ((cube.astype(int) + cylinder) // 2).astype(np.uint8)
    clear, vague = judge.read(np.stack([cube, cylinder, between]))[1:]
    assert 0.95 < clear.sure <= 1
    assert vague.sure < clear.sure - 0.01
    assert judge.read(np.full((1, 128, 128, 3), 127, np.uint8))[0].sure == 1  # of nothing it sees none is doubtful


@pytest.mark.parametrize("size", [(128, 128), (192, 192), (256, 128), (128, 256)])
def test_it_tells_where_solids_stand_at_every_shape_of_picture(size: tuple[int, int]) -> None:
    judge = Judge.load(default_bundle().parent / "judge.safetensors")
    scenes = [sample_scene(seed, "validation", 2) for seed in range(20)]
    readings = judge.read(np.stack([render(scene, *size).picture for scene in scenes]))
    found = {(i, s.color, s.shape): (s.x, s.y) for i, reading in enumerate(readings) for s in reading.solids}
    stand = {(i, s.color, s.shape): (s.x, s.y) for i, scene in enumerate(scenes) for s in scene.solids}
    both = sorted(found.keys() & stand.keys())
    assert len(both) > 0.95 * len(stand)
    across, along = np.abs([np.subtract(found[key], stand[key]) for key in both]).T
    # Half a cell is 0.09 m across and, seen from above at 22 degrees, more than twice that along.
    assert np.mean(across) < 0.05
    assert np.mean(along) < 0.12


def test_interval_holds_the_share() -> None:
    share = Share(97, 100)
    low, high = share.interval
    assert low == pytest.approx(0.9155, abs=1e-3)
    assert high == pytest.approx(0.9897, abs=1e-3)
    assert Share(10, 10).interval[1] == 1.0


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=50, max_size=400).filter(
        lambda pairs: any(now != before for now, before in pairs)
    )
)
def test_difference_is_scipys_paired_one(pairs: list[tuple[bool, bool]]) -> None:
    right, before = np.array(pairs).T
    found, wanted = Difference.of(right, before), stats.ttest_rel(right.astype(float), before.astype(float))
    low, high = (100 * bound for bound in wanted.confidence_interval(0.95))
    assert found.points == pytest.approx((low + high) / 2, abs=1e-9)
    assert found.high - found.low == pytest.approx(high - low, rel=0.03)  # normal in place of t


def test_roughened_pictures_are_bent_blurred_and_grainy_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (6, 32, 64, 3)).astype(np.float32))
    for effect in ("BENT", "BLURRED", "GRAINY"):
        for other in ("BENT", "BLURRED", "GRAINY"):
            monkeypatch.setattr(judging, other, 2.0 * (other == effect))
        assert (roughened(clean, torch.Generator().manual_seed(0)) - clean).abs().max() > 1
        monkeypatch.setattr(judging, effect, 0.0)
        assert torch.allclose(roughened(clean, torch.Generator().manual_seed(0)), clean, atol=1e-2)


def test_the_blur_is_scipys(monkeypatch: pytest.MonkeyPatch) -> None:
    for effect in ("BENT", "GRAINY"):
        monkeypatch.setattr(judging, effect, 0.0)
    monkeypatch.setattr(judging, "BLURRED", 1.9)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.ones(shape))
    clean = np.random.default_rng(0).uniform(0, 255, (2, 32, 48, 3)).astype(np.float32)
    found = roughened(torch.from_numpy(clean), torch.Generator()).numpy()
    wanted = ndimage.gaussian_filter(clean, (0, 2, 2, 0), radius=(0, 4, 4, 0), mode="nearest")
    np.testing.assert_allclose(found, wanted, atol=1e-2)


def test_judge_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pictures = Pictures(tmp_path, "train", 64, 64, 500)
    pictures.render(processes=1)
    judge = Judge(width=16)
    losses = list(train_judge(judge, [[pictures]], steps=80, parts=[25]))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert len(judge.read(pictures.load()[:3])) == 3


def test_shards_are_rendered_once(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path, "test", 32, 32, 500)
    pictures.render(processes=1)
    before = pictures.path(0).stat().st_mtime_ns
    pictures.render(processes=1)
    assert pictures.path(0).stat().st_mtime_ns == before
    assert pictures.load().shape == (500, 32, 32, 3)
    with pytest.raises(ValueError, match="multiple of 500"):
        Pictures(tmp_path, "test", 32, 32, 10)
