"""Lumina-mGPT 2.0 from a checkpoint to its pictures: another tokenizer, another VQ model, panels; the same loop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import mgpt_edge
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.vqgan import VQGAN
from mgpt_edge.runtime.errors import BundleError, CheckpointError, InvalidRequest
from mgpt_edge.runtime.family.prompt import SEPARATOR
from mgpt_edge.runtime.results.events import Picture
from tests import reference
from tests.families import write_second

if TYPE_CHECKING:
    from mgpt_edge.runtime.model import Model

pytestmark = pytest.mark.filterwarnings("ignore::mgpt_edge.runtime.errors.CompatibilityWarning")
SIZE = (32, 64)
DRAWN = {"size": SIZE, "top_k": 30, "guidance": 2.5, "seed": 5}
FIRST = f"Generate an image of 32x64 according to the following prompt:\na dog.{SEPARATOR}"
PAIR = (
    "Generate a dual-panel image of 32x64 where the <lower half> displays a <depth map>, while the <upper half> "
    f"retains the original image for direct visual comparison:\na dog.{SEPARATOR}"
)
PANEL = (
    "Generate a dual-panel image of 32x64 where the <upper half> displays a <canny edge map>, while the <lower half> "
    f"retains the original image for direct visual comparison:\na dog.{SEPARATOR}"
)


@pytest.fixture(scope="module")
def checkpoint(checkpoints) -> Checkpoint:
    return Checkpoint.open(checkpoints["2.0"])


@pytest.fixture(scope="module")
def model(bundle_of) -> Model:
    return mgpt_edge.load(bundle_of("2.0", "fp32").folder, threads=1)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    x, y = np.meshgrid(np.arange(70), np.arange(60))
    return Image.fromarray(np.stack([x % 256, y % 256, (x * y) % 256], -1).astype(np.uint8))


def drawn(events) -> Picture:
    (picture,) = (event for event in events if isinstance(event, Picture))
    return picture


def opened(name: str) -> Image.Image:
    with Image.open(name) as image:
        return image.copy()


def test_the_manifest_says_what_differs(model):
    m = model.manifest
    assert (m.pictures.stride, m.pictures.channels) == (8, 16)
    assert m.vocabulary.separator is None
    assert set(m.tasks) == {"text-to-image", "pair-depth", "pair-canny", "pair-hed", "pair-pose",
                            "panel-depth", "panel-canny", "panel-subject"}  # fmt: skip


@pytest.mark.parametrize(("task", "said"), [("text-to-image", FIRST), ("pair-depth", PAIR)])
def test_pictures_from_words_equal_a_plain_loop(task, said, model, checkpoint):
    v = model.manifest.vocabulary
    # The whole question is one text, as in the family: here a merge joins the prompt's end and the separator's words.
    words = model.tokenizer.encode(said).ids
    assert words != [*model.tokenizer.encode(said.removesuffix(SEPARATOR)).ids, *model.tokenizer.encode(SEPARATOR).ids]
    assert v.bos == json.loads(checkpoint.tokenizer_json)["added_tokens"][0]["id"]
    request = model.request("a dog.", task=task, **DRAWN)
    decoder = reference.load_decoder(checkpoint)
    expected = reference.answer(decoder, v, [v.bos, *words], request, size=SIZE, picture=True, stride=8)
    picture = drawn(model.stream("a dog.", task=task, **DRAWN))
    assert len(expected) == 8 * (4 + 1) + 4
    assert picture.tokens == tuple(expected)
    assert picture.image.size == SIZE


def test_a_supplied_upper_half_equals_a_plain_loop(model, checkpoint, photo):
    v = model.manifest.vocabulary
    half = model.intake.look(photo, (32, 32))
    # The half's own tokens, but for its height and its end.
    given = [half[0], v.grid(2), *half[2:-1]]
    request = model.request("a dog.", task="panel-canny", **DRAWN)
    history = [v.bos, *model.tokenizer.encode(PANEL).ids]
    decoder = reference.load_decoder(checkpoint)
    expected = reference.answer(decoder, v, history, request, size=SIZE, picture=True, stride=8, given=given)
    picture = drawn(model.stream("a dog.", images=photo, task="panel-canny", **DRAWN))
    assert picture.tokens == tuple(expected)
    assert list(picture.tokens[: len(given)]) == given
    image = model.transform(photo, "panel-canny", "a dog.", **DRAWN)
    assert np.array_equal(image, picture.image)
    assert model.redraw(image, "a dog.", task="pair-depth", keep_rows=range(4), size=SIZE).size == SIZE


def test_pixels_are_those_of_the_torch_model(model, checkpoint):
    vq = VQGAN(checkpoint.vq.config).eval()
    vq.load_state_dict({name: checkpoint.vq.load(name) for name in checkpoint.vq.shapes})
    picture = drawn(model.stream("a dog.", **DRAWN))
    codes = model.layout(SIZE).decode(list(picture.tokens))
    import torch

    with torch.inference_mode():
        expected = vq.decode_pixels(torch.from_numpy(codes)[None])[0].numpy()
    assert np.abs(np.asarray(picture.image).astype(int) - expected).max() <= 1


def test_the_upper_half_is_the_trained_size_that_keeps_most(model, photo):
    assert model.transform(photo.resize((64, 64)), "panel-depth", "a dog.", top_k=5).size == (96, 128)
    (image,) = model.transform(photo.resize((200, 100)), "panel-subject", "a dog.", top_k=5, count=1)
    assert image.size == (128, 128)
    assert image.info["mgpt"]["guidance"] == 4.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p: m.transform([p, p], "panel-depth", "a dog"), "takes one picture, got 2"),
        (lambda m, p: m.generate("a dog", task="panel-depth"), "no picture from words alone; see transform"),
        (lambda m, _: list(m.stream("a dog", task="panel-depth")), "takes one picture, got 0"),
        (lambda m, p: m.transform(p, "panel-depth", "a dog", size=(64, 96)), "multiple of 64 pixels, asked for 64x96"),
        (lambda m, p: m.transform(p, "panel-depth"), "the prompt must be a text"),
        (lambda m, p: m.transform(p, "pair-depth", "a dog"), "makes no picture from a picture"),
        (lambda m, p: m.stream("a dog", images=p, task="pair-depth"), "takes no picture, got 1"),
        (lambda m, p: m.ask(p, "what?"), "was not trained for 'chat'"),
    ],
)
def test_bad_requests(call, message, model, photo):
    with pytest.raises(InvalidRequest, match=message):
        call(model, photo)


def test_a_separator_with_an_id_of_its_own(tmp_path):
    checkpoint = Checkpoint.open(write_second(tmp_path, separator=True))
    v = checkpoint.vocabulary
    assert v.turn_end == (v.separator,)
    assert v.separator > v.first_code


def changed(folder: Path, name: str, **values: object) -> None:
    data = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(data | values))


def test_how_a_conversation_begins(tmp_path):
    folder = write_second(tmp_path)
    ids = {t["content"]: t["id"] for t in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}
    changed(folder, "tokenizer_config.json", eos_token={"content": "<|im_end|>"})
    assert Checkpoint.open(folder).vocabulary.bos == ids["<|im_end|>"]
    changed(folder, "tokenizer_config.json", bos_token="<|im_start|>")
    assert Checkpoint.open(folder).vocabulary.bos == ids["<|im_start|>"]
    changed(folder, "tokenizer_config.json", bos_token="<s>")
    with pytest.raises(CheckpointError, match="no token <s>; tokenizer_config"):
        Checkpoint.open(folder)
    changed(folder, "tokenizer_config.json", bos_token=None, eos_token=None)
    with pytest.raises(CheckpointError, match="neither bos_token nor eos_token"):
        Checkpoint.open(folder)


def test_without_a_separator_there_are_no_conversations(tmp_path, bundle_of):
    folder = write_second(tmp_path / "checkpoint")
    changed(folder, "mgpt.json", tasks={"chat": {}})
    with pytest.raises(CheckpointError, match="leave chat and describe out of its tasks"):
        Checkpoint.open(folder)
    shutil.copytree(bundle_of("2.0", "fp32").folder, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    manifest["tasks"]["describe"] = manifest["defaults"]
    changed(tmp_path / "bundle", "manifest.json", tasks=manifest["tasks"])
    with pytest.raises(BundleError, match="without a separator"):
        mgpt_edge.load(tmp_path / "bundle")


def test_the_command_from_export_to_pictures(checkpoints, bundle_of, mgpt, photo):
    photo.save("photo.png")
    code, out, _ = mgpt("export", checkpoints["2.0"], "-o", "int8")
    assert (code, "int8 for native" in out) == (0, True)
    assert mgpt("estimate", "int8", "--size", "64x64")[0] == 0
    for bundle in ("int8", bundle_of("2.0", "fp32").folder):
        assert mgpt("verify", bundle)[0] == 0
        model = ("--model", bundle, "--seed", 3, "--size", "32x64")
        assert mgpt("generate", "a dog.", *model, "-o", "drawn.png")[0] == 0
        assert mgpt("generate", "a dog.", "--task", "pair-pose", *model, "-o", "pair.png")[0] == 0
        assert mgpt("generate", "--from-image", "pair.png", "--model", bundle, "-o", "again.png")[0] == 0
        assert np.array_equal(opened("pair.png"), opened("again.png"))
        panel = ("photo.png", "--task", "panel-depth", "--instruction", "a dog.")
        assert mgpt("transform", *panel, *model, "-o", "below.png")[0] == 0
        assert {opened(name).size for name in ("drawn.png", "pair.png", "below.png")} == {SIZE}
        settings = {"seed": 3, "size": "32x64"}
        pair, panel = {"prompt": "a dog.", "task": "pair-pose"}, {"task": "panel-depth", "image": "photo.png"}
        jobs = [pair | settings, panel | settings | {"instruction": "a dog."}, {"prompt": "a dog.", "task": "depth"}]
        Path("jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
        code, _, error = mgpt("batch", "jobs.jsonl", "-o", f"{bundle}-out", "--model", bundle)
        assert (code, "jobs.jsonl:3: a job has a prompt" in error) == (1, True)
        assert np.array_equal(opened("pair.png"), opened(f"{bundle}-out/1.png"))
        assert np.array_equal(opened("below.png"), opened(f"{bundle}-out/2.png"))
