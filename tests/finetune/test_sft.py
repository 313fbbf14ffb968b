"""Fine-tuning: the family's tokens and labels, a loss that falls, and a kill that changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from mgpt_edge.export.config import DecoderConfig
from mgpt_edge.export.model import Decoder
from mgpt_edge.export.tokenizer import read_vocabulary
from mgpt_edge.finetune.conversation import UNLABELLED, Turn, encode_conversation
from mgpt_edge.finetune.mini import checkpoint
from mgpt_edge.finetune.mini.album import Album
from mgpt_edge.finetune.mini.corpus import Corpus, Group, Part, world_text
from mgpt_edge.finetune.mini.decoder import initialise, small_decoder
from mgpt_edge.finetune.mini.draw import MANY, Sampling, draw, say
from mgpt_edge.finetune.mini.pictures import Pictures
from mgpt_edge.finetune.mini.tasks import SCENE_TASKS
from mgpt_edge.finetune.mini.tokenizer import code_name, for_text, train_tokenizer
from mgpt_edge.finetune.optimizer import Muon, MuonAdamW
from mgpt_edge.finetune.sft import Recipe, Stage
from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.family.layout import ImageLayout
from mgpt_edge.runtime.family.prompt import encode_prompt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CODES = 16


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(world_text(60, ((64, 64),)), CODES, merges=100)


@pytest.fixture(scope="module")
def corpus(tokenizer: Tokenizer) -> Corpus:
    return mixed(tokenizer, {"text-to-image": 1.0})


def mixed(tokenizer: Tokenizer, tasks: dict[str, float], prompt_drop: float = 0.0, seed: int = 0) -> Corpus:
    kinds = ("picture", "depth", "normals", "segmentation", "edges", "edited")
    pictures = {kind: Pictures(Path("unused"), "train", 64, 64, 500, kind) for kind in kinds}
    rng = np.random.default_rng(0)
    codes = {kind: rng.integers(0, CODES, (2, 500, 4, 4) if kind == "picture" else (500, 4, 4)) for kind in kinds}
    vocabulary = read_vocabulary(tokenizer.to_str())
    album = Album(pictures, {kind: value.astype(np.int16) for kind, value in codes.items()}, vocabulary)
    group = Group([Part(task, album, weight) for task, weight in tasks.items()], batch=8, weight=1.0)
    return Corpus([group], for_text(tokenizer), vocabulary, prompt_drop, seed)


def tiny(vocab_size: int) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=vocab_size,
        norm_eps=1e-5,
        rope_theta=10000.0,
        dropout=0.1,
    )
    model = Decoder(config)
    initialise(model, torch.Generator().manual_seed(0))
    return model


def test_names_are_the_familys(tokenizer: Tokenizer) -> None:
    assert [code_name(c) for c in (0, 1, 10, 8191)] == ["IMGIMGAZ", "IMGIMGBZ", "IMGIMGBAZ", "IMGIMGIBJBZ"]
    assert [tokenizer.token_to_id(name) for name in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    vocabulary = read_vocabulary(tokenizer.to_str())
    assert vocabulary.code_range == (4, 4 + CODES)
    assert (vocabulary.end_image, vocabulary.begin_image) == (4 + CODES, 5 + CODES)
    assert vocabulary.grid(64) == tokenizer.token_to_id("<reserved08864>")
    assert vocabulary.size == tokenizer.get_vocab_size()


def test_text_comes_back_and_stays_text(tokenizer: Tokenizer) -> None:
    text = for_text(tokenizer)
    for sentence in ("a red sphere\non a gray floor", "<eoss> IMGIMGAZ <reserved08706>", "grün 図 \x00"):
        ids = text.encode(sentence, add_special_tokens=False).ids
        assert text.decode(ids) == sentence
        assert min(ids) > read_vocabulary(tokenizer.to_str()).grid(64)


def test_sequence_and_labels(corpus: Corpus) -> None:
    batch = corpus.batch(0)
    v = corpus.vocabulary
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        begin = tokens.index(v.begin_image)
        assert tokens[0] == v.bos
        assert tokens[begin - 1] == v.separator
        assert tokens[begin + 1 : begin + 3] == [v.grid(2), v.grid(2)]
        end = tokens.index(v.end_image)
        assert end - begin == 3 + 4 * 5
        assert tokens[end + 1] == v.separator
        # The human's turn teaches nothing; the answer, from begin-of-image to the separator, all.
        assert set(labels[: begin - 1]) == {UNLABELLED}
        assert labels[begin - 1 : end + 1] == tokens[begin : end + 2]
        assert set(labels[end + 1 :]) <= {UNLABELLED}


def test_dropped_prompts_leave_the_picture_alone(corpus: Corpus, tokenizer: Tokenizer) -> None:
    batch = mixed(tokenizer, {"text-to-image": 1.0}, prompt_drop=1.0).batch(0)
    assert batch.tokens.shape[1] == 4 * 5 + 4
    assert (batch.tokens[:, 0] == corpus.vocabulary.begin_image).all()
    assert torch.equal(batch.labels[:, :-1], batch.tokens[:, 1:])
    assert (batch.labels[:, -1] == UNLABELLED).all()


def test_batches_depend_on_seed_and_number_alone(corpus: Corpus, tokenizer: Tokenizer) -> None:
    assert torch.equal(corpus.batch(300).tokens, corpus.batch(300).tokens)
    assert not torch.equal(corpus.batch(0).tokens[:, -25:], corpus.batch(1).tokens[:, -25:])
    other = mixed(tokenizer, {"text-to-image": 1.0}, seed=1)
    assert not torch.equal(corpus.batch(0).tokens[:, -25:], other.batch(0).tokens[:, -25:])


@given(number=st.integers(0, 10**6), ranks=st.integers(1, 5))
def test_ranks_share_a_batch(tokenizer: Tokenizer, number: int, ranks: int) -> None:
    corpus = mixed_once(tokenizer)
    whole, parts = corpus.batch(number), [corpus.batch(number, rank, ranks) for rank in range(ranks)]
    for row in range(8):
        part = parts[row % ranks].tokens[row // ranks]
        length = min(len(part), whole.tokens.shape[1])
        assert torch.equal(part[:length], whole.tokens[row, :length])
        assert not whole.tokens[row, length:].any()


_kept: list[Corpus] = []


def mixed_once(tokenizer: Tokenizer) -> Corpus:
    if not _kept:
        _kept.append(mixed(tokenizer, dict.fromkeys(SCENE_TASKS, 1.0)))
    return _kept[0]


@pytest.mark.parametrize("task", sorted(SCENE_TASKS))
def test_every_task_is_a_conversation(tokenizer: Tokenizer, task: str) -> None:
    corpus = mixed_once(tokenizer)
    album = corpus.groups[0].parts[0].album
    turns = SCENE_TASKS[task](album, np.random.default_rng(3))
    assert len(turns) % 2 == 0
    assert all(turn.text for turn in turns)
    sample = encode_conversation(turns, corpus.tokenizer, corpus.vocabulary)
    shown = sum(len(turn.pictures) for turn in turns)
    assert sample.tokens.count(corpus.vocabulary.begin_image) == shown
    assert sample.tokens.count(corpus.vocabulary.separator) == len(turns)
    of_one = {"text-to-image", "beside", "pair", "answer", "quiz", "is-there", "count", "describe"}
    assert shown == (0 if task.startswith("text-") and task != "text-to-image" else 1 if task in of_one else 2)
    # Learnt are the model's turns, each from its first token to its separator.
    answers, ends = 0, [i for i, token in enumerate(sample.tokens) if token == corpus.vocabulary.separator]
    for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        assert set(sample.learnt[begin + 1 : end + 1]) == {number % 2 == 1}
        answers += number % 2
    assert answers == len(turns) // 2
    assert not sample.learnt[0]


def test_one_mark_for_each_picture(tokenizer: Tokenizer) -> None:
    vocabulary = read_vocabulary(tokenizer.to_str())
    with pytest.raises(InvalidRequest, match="2 marks"):
        encode_conversation([Turn("<|image|> and <|image|>", ([5],))], for_text(tokenizer), vocabulary)


def run(corpus: Corpus, folder: Path, stop: int, muon: bool = False) -> list[float]:
    torch.set_num_threads(1)
    recipe = Recipe(steps=60, rate=3e-3, muon=muon)
    stage = Stage(tiny(corpus.vocabulary.size), corpus, recipe, folder, "stage")
    stage.resume()
    losses = []
    while stage.step < stop:
        losses.append(stage.train_step()["loss"])
    stage.save()
    return losses


@pytest.mark.parametrize(("muon", "left"), [(False, 0.93), (True, 0.95)])
def test_training_learns_and_resumes_alike(corpus: Corpus, tmp_path: Path, muon: bool, left: float) -> None:
    whole = run(corpus, tmp_path / "whole", 30, muon)
    assert np.mean(whole[-5:]) < left * whole[0]
    run(corpus, tmp_path / "cut", 12, muon)
    assert run(corpus, tmp_path / "cut", 30, muon) == whole[12:]


def test_muon_takes_torchs_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator) / 50) for shape in ((64, 96), (96, 32))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    before = [p.detach().clone() for p in ours]
    pair = Muon(ours, 1e-2, 0.1), torch.optim.Muon(theirs, 1e-2, 0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for mine, other, old in zip(ours, theirs, before, strict=True):
        # torch's iterations are in bfloat16: three digits of each step.
        assert (mine - other).abs().max() < 0.02 * (other - old).abs().max()


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest(corpus: Corpus) -> None:
    model = tiny(corpus.vocabulary.size)
    muon, adamw = MuonAdamW(model, 1e-3, 0.1).parts
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in taken}
    assert names == {name for name, _ in model.named_parameters() if name.endswith("proj.weight")}
    assert len(taken) + sum(len(group["params"]) for group in adamw.param_groups) == len(list(model.parameters()))


def test_another_recipe_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    run(corpus, tmp_path, 1)
    recipe = replace(Recipe(steps=60, rate=3e-3), seed=1)
    with pytest.raises(ValueError, match="another recipe"):
        Stage(tiny(corpus.vocabulary.size), corpus, recipe, tmp_path, "stage").resume()


def test_drawing_without_guidance_follows_the_full_forward(corpus: Corpus) -> None:
    model = tiny(corpus.vocabulary.size).eval()
    prompts = [asked(corpus, "a red cube"), asked(corpus, "a large shiny blue cone on a gray floor")]
    layout = ImageLayout(64, 64, corpus.vocabulary)
    codes = draw(model, layout, prompts, Sampling(guidance=1.0, top_k=1), seed=0)
    assert codes.shape == (2, 4, 4)
    low, high = corpus.vocabulary.code_range
    for prompt, picture in zip(prompts, codes, strict=True):
        image = layout.encode(picture.numpy())
        logits = model.logits(torch.tensor([prompt + image]))[0]
        for index, token in enumerate(image):
            if low <= token < high:
                assert int(logits[len(prompt) + index - 1, low:high].argmax()) == token - low


def test_many_rows_draw_what_few_do(corpus: Corpus) -> None:
    """Their attention is compiled, where that of few is torch's."""
    model = tiny(corpus.vocabulary.size).eval()
    prompts = [asked(corpus, "a red cube"), asked(corpus, "a large shiny blue cone on a gray floor")] * (MANY // 4)
    layout, sampling = ImageLayout(64, 64, corpus.vocabulary), Sampling(guidance=2.0, top_k=1)
    many = draw(model, layout, prompts, sampling, seed=0)
    few = draw(model, layout, prompts[:2], sampling, seed=0)
    assert torch.equal(many, few.repeat(MANY // 4, 1, 1))


def test_answers_in_text_follow_the_full_forward(corpus: Corpus) -> None:
    model = tiny(corpus.vocabulary.size).eval()
    prompts = [asked(corpus, "a red cube"), asked(corpus, "what is this")]
    for prompt, answer in zip(prompts, say(model, prompts, corpus.vocabulary.separator, longest=6), strict=True):
        assert len(answer) == 6 or corpus.vocabulary.separator not in answer
        logits = model.logits(torch.tensor([prompt + answer]))[0]
        for index, token in enumerate(answer):
            assert int(logits[len(prompt) + index - 1].argmax()) == token


def asked(corpus: Corpus, prompt: str) -> list[int]:
    return encode_prompt(corpus.tokenizer, corpus.vocabulary, "text-to-image", width=64, height=64, prompt=prompt)


def test_checkpoint_reads_back(corpus: Corpus, tmp_path: Path) -> None:
    model = tiny(corpus.vocabulary.size)
    checkpoint.write_decoder(tmp_path, model.config, model.state_dict(), positions=256)
    read = DecoderConfig.from_json(json.loads((tmp_path / "config.json").read_text()))
    assert read == model.config
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == read.shapes()  # noqa: SIM118


def test_small_decoder_is_small() -> None:
    assert small_decoder(3000).parameters < 7_000_000
