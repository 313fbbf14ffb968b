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
    assert "mgpt transform" in mgpt("generate", "--from-image", "e-0.png", "--model", bundle)[2]


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
    assert (code, json.loads(out)) == (0, {"answer": expected, "complete": True})
    code, out, _ = mgpt("ask", photo, "what?", "--seed", 1, "--model", bundle)
    assert (code, out) == (0, expected + "\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["transform", "photo.png", "--task", "dept"], 2, "did you mean 'depth'"),
        (["transform", "photo.png", "--task", "edit"], 2, "the instruction must be a text"),
        (["transform", "missing.png", "--task", "depth"], 2, "there is no picture missing.png"),
        (["transform", "photo.png", "--task", "text-to-image", "--instruction", "x"], 2, "takes no picture"),
        (["ask", "missing.png", "what?"], 2, "there is no picture missing.png"),
        (["ask", "photo.png", "what?", "--max-tokens", "0"], 2, "max_tokens"),
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
        "/x",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(said)))
    code, out, err = mgpt("chat", "--seed", 0, "--model", bundle)
    assert code == 0
    assert "there is no picture missing.png" in err
    assert "1 marks <|image|> for 0 pictures" in err
    left = [int(count) for count in re.findall(r"\[(\d+) tokens left\]", err)]
    assert len(left) == 3
    assert left == sorted(left, reverse=True)
    conversation = mgpt_edge.load(bundle).chat(seed=0)
    answers = [conversation.say("what is that?"), conversation.say("look <|image|>", photo), conversation.say("again")]
    number = 0
    for answer in answers:
        text = answer.text
        for image in answer.images:
            number += 1
            text = text.replace("<|image|>", f"[chat-{number}.png]", 1)
            assert np.array_equal(pixels(f"chat-{number}.png"), np.asarray(image))
        assert text in out
    assert number
    assert "/quit ends" in out


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
        "out/01.png",
        "out/depth.png",
        "out/04.txt",
        "out/last.png",
        "4 done, 0 skipped, 9 failed",
    ]
    lines = [line for line in err.splitlines() if line.startswith("jobs.jsonl:")]
    assert [line.split(":")[1] for line in lines] == ["5", "6", "7", "8", "9", "10", "11", "12", "13"]
    assert "did you mean 'seed'" in lines[-1]
    assert "an earlier job is called 'depth'" in lines[-2]
    model = mgpt_edge.load(bundle)
    assert np.array_equal(pixels("out/01.png"), np.asarray(model.generate("a cat", size=(32, 32), seed=1)))
    assert Path("out/04.txt").read_text(encoding="utf-8") == model.ask(photo, "what?", seed=1) + "\n"
    Path("out/last.png").unlink()
    code, out, _ = mgpt("batch", "jobs.jsonl", "-o", "out", "--json", "--model", bundle)
    assert (code, json.loads(out)) == (1, {"done": 1, "skipped": 3, "failed": 9})
    Path("jobs.jsonl").write_text(JOBS.splitlines()[0], encoding="utf-8")
    assert mgpt("batch", "jobs.jsonl", "-o", "again", "--model", bundle)[0] == 0
