"""Rewarded pictures: the gradient is the textbook's, right ones become likelier, and a kill changes nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical

from mgpt_edge.export.config import DecoderConfig
from mgpt_edge.export.model import Decoder
from mgpt_edge.export.tokenizer import read_vocabulary
from mgpt_edge.finetune.conversation import Turn, collate, encode_conversation, without_prompt
from mgpt_edge.finetune.mini import assignments, rewarded
from mgpt_edge.finetune.mini.assignments import Assignment, from_text, of_album
from mgpt_edge.finetune.mini.decoder import initialise
from mgpt_edge.finetune.mini.draw import Sampling
from mgpt_edge.finetune.mini.examples import Sketchbook
from mgpt_edge.finetune.mini.judge import Reading
from mgpt_edge.finetune.mini.painter import Painter
from mgpt_edge.finetune.mini.pictures import SHARD
from mgpt_edge.finetune.mini.plan import RewardPlan
from mgpt_edge.finetune.mini.rewarded import Rewarded, advantages, code_logits, policy_loss
from mgpt_edge.finetune.mini.tokenizer import for_text, train_tokenizer
from mgpt_edge.finetune.mini.world.dialogue import edit_of
from mgpt_edge.finetune.parallel import ALONE
from mgpt_edge.finetune.sft import Recipe
from mgpt_edge.runtime.family.layout import ImageLayout
from mgpt_edge.runtime.family.tasks import tasks, template
from mgpt_edge.runtime.family.tasks.task import IMAGE_MARK

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from mgpt_edge.finetune.mini.world import Scene

SIZE, CODES = (64, 32), 32
WHOLE = train_tokenizer([*(task.template for task in tasks().values()), "a red cube"], CODES, merges=60)
TOKENIZER, VOCABULARY = for_text(WHOLE), read_vocabulary(WHOLE.to_str())
PLAN = RewardPlan({("text-to-image", SIZE): 1.0}, {2.0: 1.0}, temperature=1.0, prompts=1, pictures=6)
RECIPE = Recipe(steps=50, rate=5e-3, weight_decay=0.0, clip=2.0, average=0.0, ramp=1)


class Plain:
    """Stands in for a VQGAN: pixels are codes."""

    quantize = SimpleNamespace(embedding=SimpleNamespace(weight=torch.zeros(1)))

    def decode_pixels(self, codes: Tensor) -> Tensor:
        return codes.to(torch.uint8)


class Bright:
    """Reads a floor: gray where most codes are in the upper half."""

    def read(self, pixels: np.ndarray) -> list[Reading]:
        return [Reading((), "gray" if (picture >= CODES // 2).mean() > 0.5 else "black") for picture in pixels]


class Answers:
    """What a stage is shown beside: a question and its answer."""

    def batch(self, number: int, rank: int = 0, ranks: int = 1):
        return collate([encode_conversation([Turn("a red"), Turn("cube")], TOKENIZER, VOCABULARY)])


def tiny() -> Decoder:
    config = DecoderConfig(
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=VOCABULARY.size,
        norm_eps=1e-5,
        rope_theta=10000.0,
    )
    model = Decoder(config)
    initialise(model, torch.Generator().manual_seed(1))
    return model


def stage(folder: Path, recipe: Recipe = RECIPE) -> Rewarded:
    painter = Painter(tiny(), Plain(), TOKENIZER, VOCABULARY)
    return Rewarded(painter, Bright(), {}, PLAN, Answers(), recipe, folder, "rewarded", ALONE)


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request is for a bright picture."""

    def asked(size: tuple[int, int], first: int, count: int, rng: np.random.Generator) -> list[Assignment]:
        assert size == SIZE
        text = template("text-to-image").format(width=64, height=32, prompt="a red cube")
        return [Assignment(Turn(text), lambda reading: reading.floor == "gray")] * count

    monkeypatch.setattr(rewarded, "from_text", asked)


@pytest.mark.usefixtures("bright")
def test_what_is_rewarded_becomes_likelier(tmp_path: Path) -> None:
    records = list(stage(tmp_path).run())
    right = [record["right"] for record in records]
    assert 0.2 < np.mean(right[:3]) < 0.8  # half of all pictures are bright at first, less where as many codes are dark
    assert np.mean(right[-5:]) > 0.95
    assert records[-1]["loss"] < 0.1 * records[0]["loss"]  # and what is shown beside is learnt too


@pytest.mark.usefixtures("bright")
def test_a_stage_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    recipe = Recipe(steps=3, rate=1e-3, average=0.5)
    whole = [record["loss"] for record in stage(tmp_path / "whole", recipe).run()]
    first = stage(tmp_path / "parts", recipe)
    first.train_step()
    first.save()
    second = stage(tmp_path / "parts", recipe)
    assert second.resume()
    assert [record["loss"] for record in second.run()] == whole[1:]


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 2.0), st.integers(1, 5))
def test_the_gradient_is_reinforces(seed: int, temperature: float, codes: int) -> None:
    """Beside torch's own distribution: each picture's log-probability times its advantage."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, codes, 7, generator=generator, requires_grad=True)
    drawn = torch.randint(7, (3, codes), generator=generator)
    advantage = torch.randn(3, generator=generator)
    policy_loss(logits, drawn, advantage, temperature).backward()
    found, logits.grad = logits.grad, None
    likelihood = Categorical(logits=logits / temperature).log_prob(drawn).sum(1)
    (-(advantage * likelihood).sum() / codes**0.5).backward()
    torch.testing.assert_close(found, logits.grad)


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=6))
def test_a_picture_is_measured_by_the_others_of_its_request(rewards: list[list[float]]) -> None:
    found = advantages(torch.tensor(rewards))
    assert found.mean(1).abs().max() < 1e-3
    for row, reward in zip(found, rewards, strict=True):
        if len(set(reward)) == 1:
            assert row.abs().max() < 1e-3  # nothing to be learnt where all are as good
    assert found.square().mean() <= 1 + 1e-3


def test_logits_are_those_that_the_codes_were_drawn_from() -> None:
    model, layout = tiny(), ImageLayout(*SIZE, VOCABULARY)
    pictures = [list(range(8)), [9] * 8]
    samples = [
        encode_conversation(
            [Turn(words), Turn(IMAGE_MARK, (layout.encode(np.reshape(p, (2, 4))),))], TOKENIZER, VOCABULARY
        )
        for words, p in zip(("a red cube", "cube"), pictures, strict=True)
    ]
    logits, codes = code_logits(model, collate(samples), VOCABULARY.code_range, ALONE.device)
    assert codes.tolist() == pictures
    low, high = VOCABULARY.code_range
    for row, sample in enumerate(samples):
        at = [place for place, token in enumerate(sample.tokens) if low <= token < high]
        alone = model.logits(torch.tensor([sample.tokens]))[0]
        torch.testing.assert_close(logits[row], alone[[place - 1 for place in at], low:high], rtol=1e-4, atol=1e-5)


def test_guided_logits_are_those_that_were_drawn_from(tmp_path: Path) -> None:
    learner, layout = stage(tmp_path), ImageLayout(*SIZE, VOCABULARY)
    turns = [Turn("a red cube"), Turn("cube")]
    codes = learner.painter.draw(turns, *SIZE, Sampling(guidance=3.0, top_k=1), seed=0)
    samples = [learner._sample(turn, layout.encode(each.numpy())) for turn, each in zip(turns, codes, strict=True)]
    logits, drawn = learner._guided(collate(samples), collate([without_prompt(s) for s in samples]), 3.0)
    assert torch.equal(drawn, codes.flatten(1))
    assert torch.equal(logits.argmax(-1), drawn)


def test_a_scene_as_it_was_asked_for_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes: list[Scene] = []
    sample = assignments.sample_scene
    monkeypatch.setattr(assignments, "sample_scene", lambda *a, **k: scenes.append(sample(*a, **k)) or scenes[-1])
    rng, book = np.random.default_rng(0), Sketchbook("train", 32, tmp_path)
    asked = from_text((32, 32), 0, 20, rng)
    for one, scene in zip(asked, scenes, strict=True):
        assert "32x32" in one.turn.text
        assert one.right(Reading(scene.solids, scene.floor))
        assert not one.right(Reading(scene.solids[1:], scene.floor))
    for task, count in (("edit", 1), ("from-depth", 1)):
        for one in of_album(task, book, 5, rng):
            assert len(one.turn.pictures) == count
            after = [edit_of(book.scene(i), i).after if task == "edit" else book.scene(i) for i in range(SHARD)]
            assert any(one.right(Reading(scene.solids, scene.floor)) for scene in after)
            assert not one.right(Reading((), "gray"))
