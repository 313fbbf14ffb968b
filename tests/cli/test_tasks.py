"""`mgpt transform`, `ask`, `chat` and `batch`, run as a user runs them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mgpt_edge
from mgpt_edge.runtime.family.tasks import template
from mgpt_edge.runtime.results.events import Answer

pytestmark = pytest.mark.filterwarnings("default::mgpt_edge.runtime.errors.CompatibilityWarning")


@pytest.fixture
def bundle(bundle_of):
    return bundle_of("talker", "fp32").folder


@pytest.fixture
def photo(mgpt) -> Path:
    path = Path("photo.png")
    Image.effect_noise((70, 60), 90).save(path)
    return path


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_transform(mgpt, bundle, photo):
    code, out, _ = mgpt("transform", photo, "--task", "depth", "--seed", 3, "--size", "64x32", "--model", bundle)
    assert (code, out.strip()) == (0, "out.png")
    expected = mgpt_edge.load(bundle).transform(photo, "depth", seed=3, size=(64, 32))
    assert np.array_equal(pixels("out.png"), np.asarray(expected))
    code, out, _ = mgpt(
        "transform", photo, "--task", "edit", "--instruction", "make it blue", "--count", 2, "--size", "32x32",
        "--json", "-o", "e.png", "--model", bundle,
    )  # fmt: skip
    pictures = json.loads(out)["pictures"]
    assert [(p["path"], p["task"], p["prompt"]) for p in pictures] == [
        ("e-0.png", "edit", "make it blue"),
        ("e-1.png", "edit", "make it blue"),
    ]
    assert "more than its own words (edit)" in mgpt("generate", "--from-image", "e-0.png", "--model", bundle)[2]


def test_kept_rows(mgpt, bundle):
    mgpt("generate", "a cat", "--size", "64x64", "--seed", 3, "-o", "a.png", "--model", bundle)
    code, out, _ = mgpt(
        "generate", "--from-image", "a.png", "--keep-rows", "0-1,3", "--seed", 4, "--json", "--model", bundle
    )
    assert code == 0
    assert json.loads(out)["pictures"][0]["kept_rows"] == [0, 1, 3]


def test_ask(mgpt, bundle, photo):
    expected = mgpt_edge.load(bundle).ask(photo, "what?", seed=1)
    code, out, _ = mgpt("ask", photo, "what?", "--seed", 1, "--json", "--model", bundle)
    assert (code, json.loads(out)) == (0, {"answer": expected, "complete": True, "pictures": []})
    code, out, _ = mgpt("ask", photo, "what?", "--seed", 1, "--model", bundle)
    assert (code, out) == (0, expected + "\n")


def test_ask_keeps_the_pictures_of_an_answer(mgpt, bundle, photo):
    model = mgpt_edge.load(bundle)
    seed = next(seed for seed in range(20) if "<|image|>" in model.ask(photo, "what?", seed=seed))
    answer = Answer.of(model.stream("what?", images=photo, task="chat", seed=seed))
    code, out, _ = mgpt("ask", photo, "what?", "--seed", seed, "--json", "--model", bundle)
    assert code == 0
    names = json.loads(out)["pictures"]
    assert names == [f"answer-{number}.png" for number in range(1, 1 + len(answer.images))]
    assert all(np.array_equal(pixels(name), image) for name, image in zip(names, answer.images, strict=True))
    number = len(names) + 1
    code, out, _ = mgpt("ask", photo, "what?", "--seed", seed, "--model", bundle)
    assert (code, f"[answer-{number}.png]" in out) == (0, True)
    tokens = answer.end.tokens.index(model.manifest.vocabulary.end_image)  # one too few
    code, _, err = mgpt("ask", photo, "what?", "--seed", seed, "--max-tokens", tokens, "--model", bundle)
    assert (code, "partial.png]" in err) == (8, True)
    assert "allow more with max_tokens" in err
    code, out, err = mgpt("ask", photo, "what?", "--seed", seed, "--max-tokens", 1, "--model", bundle)
    assert (code, "cut here" in err) in {(0, True), (8, False)}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["transform", "photo.png", "--task", "dept"], 2, "did you mean 'depth'"),
        (["transform", "photo.png", "--task", "edit"], 2, "say with --instruction"),
        (["transform", "missing.png", "--task", "depth"], 2, "there is no picture missing.png"),
        (["transform", "photo.png", "--task", "text-to-image", "--instruction", "x"], 2, "no picture from a picture"),
        (["transform", "photo.png", "--task", "describe"], 2, "see generate, ask and describe"),
        (["ask", "missing.png", "what?"], 2, "there is no picture missing.png"),
        (["ask", "photo.png", "what?", "--max-tokens", "0"], 2, "max_tokens"),
        (["transform", "photo.png", "--task", "from-depth"], 2, "say with --instruction"),
        (["generate", "a cat", "--task", "chat"], 2, "no picture from words alone; see ask"),
        (["generate", "--from-image", "photo.png", "--keep-rows", "5-2"], 2, "does not say how it was drawn"),
        (["generate", "a cat", "--keep-rows", "0-1"], 2, "--from-image"),
        (["generate", "--from-image", "photo.png", "--keep-rows", "x"], 2, "does not say how it was drawn"),
        (["chat", "-o", "nowhere"], 2, "nowhere is no folder"),
        (["chat", "--context", "0"], 2, "context"),
        (["batch", "missing.jsonl", "-o", "out"], 2, "missing.jsonl"),
    ],
)
def test_errors_are_one_line(mgpt, bundle, photo, arguments, code, message):
    got, out, err = mgpt(*arguments, "--model", bundle)
    assert (got, out) == (code, "")
    assert message in err
    assert err.startswith("mgpt: ")


def test_chat(mgpt, bundle, photo, monkeypatch):
    said = [
        "what is that?",
        "/image missing.png",
        "/image photo.png",
        "look <|image|>",
        "again <|image|>",
        "again",
        "/image photo.png",
        "/image",
        "/seed 5",
        "/x",
        "/draw a cat",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(said)))
    code, out, err = mgpt("chat", "--seed", 0, "--model", bundle)
    assert code == 0
    assert "there is no picture missing.png" in err
    assert "1 marks <|image|> for 0 pictures" in err
    left = [int(count) for count in re.findall(r"\[(\d+) tokens left\]", err)]
    assert len(left) == 4
    waiting = [int(count) for count in re.findall(r"\[pictures that go with your next message: (\d+)\]", err)]
    assert waiting == [0, 1, 1, 0]
    assert left == sorted(left, reverse=True)
    conversation = mgpt_edge.load(bundle).chat(seed=0)
    answers = [conversation.say("what is that?"), conversation.say("look <|image|>", photo), conversation.say("again")]
    side = conversation.model.manifest.pictures.target_size
    asked = template("text-to-image").format(width=side, height=side, prompt="a cat")
    answers.append(conversation.say(asked, seed=5))
    number = 0
    for answer in answers:
        text = answer.text
        for image in answer.images:
            number += 1
            text = text.replace("<|image|>", f"[chat-{number}.png]", 1)
            assert np.array_equal(pixels(f"chat-{number}.png"), np.asarray(image))
        assert text in out
    assert number
    assert "drops those added" in out


JOBS = """{"prompt": "a cat", "size": "32x32", "seed": 1}
{"task": "depth", "image": "photo.png", "size": "32x32", "name": "depth"}

{"image": "photo.png", "question": "what?", "seed": 1}
{"image": "missing.png", "question": "what?"}
{"prompt": "a", "count": 3}
{"prompt": "a", "name": "../x"}
{"prompt": 3}
nonsense
[]
{"prompt": "a", "image": "photo.png"}
{"prompt": "b", "name": "depth"}
{"prompt": "a", "sede": 1}
{"task": "detect", "image": "photo.png", "instruction": "a cat", "size": "32x32", "guidance": 2, "name": "last"}"""


def test_batch(mgpt, bundle, photo):
    Path("jobs.jsonl").write_text(JOBS, encoding="utf-8")
    code, out, err = mgpt("batch", "jobs.jsonl", "-o", "out", "--model", bundle)
    assert code == 1
    assert out.splitlines() == [
        "out/1.png",
        "out/depth.png",
        "out/4.txt",
        "out/last.png",
        "4 done, 0 skipped, 9 failed",
    ]
    lines = [line for line in err.splitlines() if line.startswith("jobs.jsonl:")]
    assert [line.split(":")[1] for line in lines] == ["5", "6", "7", "8", "9", "10", "11", "12", "13"]
    assert "did you mean 'seed'" in lines[-1]
    assert "an earlier job is called 'depth'" in lines[-2]
    model = mgpt_edge.load(bundle)
    assert np.array_equal(pixels("out/1.png"), np.asarray(model.generate("a cat", size=(32, 32), seed=1)))
    assert Path("out/4.txt").read_text(encoding="utf-8") == model.ask(photo, "what?", seed=1) + "\n"
    Path("out/last.png").unlink()
    code, out, _ = mgpt("batch", "jobs.jsonl", "-o", "out", "--json", "--model", bundle)
    assert (code, json.loads(out)) == (1, {"done": 1, "skipped": 3, "failed": 9})
    Path("jobs.jsonl").write_text(JOBS.splitlines()[0], encoding="utf-8")
    assert mgpt("batch", "jobs.jsonl", "-o", "again", "--model", bundle)[0] == 0


def test_a_strange_job_stops_no_other(mgpt, bundle, photo):
    strange = [
        {"prompt": "a", "name": "x" * 300},
        {"prompt": "a", "name": "\ud800"},
        {"image": "p" * 5000, "question": "what?"},
        {"prompt": "two\u2028lines", "size": "32x32"},
    ]
    text = "\ufeff" + "\n".join(json.dumps(job, ensure_ascii=number != 3) for number, job in enumerate(strange))
    Path("jobs.jsonl").write_bytes(text.encode())
    code, out, err = mgpt("batch", "jobs.jsonl", "-o", "out", "--model", bundle)
    assert (code, out.splitlines()) == (1, ["out/4.png", "1 done, 0 skipped, 3 failed"])
    assert [line.split(":")[1] for line in err.splitlines() if line.startswith("jobs.jsonl:")] == ["1", "2", "3"]
    Path("jobs.jsonl").write_bytes((text + "\n" * 20 + json.dumps(strange[3])).encode())
    code, out, _ = mgpt("batch", "jobs.jsonl", "-o", "out", "--model", bundle)
    assert out.splitlines() == ["out/24.png", "1 done, 1 skipped, 3 failed"]
