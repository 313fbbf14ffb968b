"""Every task's tokens are those of a plain PyTorch loop that has no cache; bad input leaves a usable model."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import mgpt_edge
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.runtime.decoding.steps import End
from mgpt_edge.runtime.errors import BundleError, IncompleteAnswer, InvalidRequest
from mgpt_edge.runtime.family.tasks import template
from mgpt_edge.runtime.results.events import Picture
from mgpt_edge.runtime.results.metadata import save
from tests import reference

if TYPE_CHECKING:
    from mgpt_edge.runtime.model import Model

pytestmark = pytest.mark.filterwarnings("ignore::mgpt_edge.runtime.errors.CompatibilityWarning")
SIZE = (64, 96)
DRAWN = {"size": SIZE, "top_k": 30}


@pytest.fixture(scope="module")
def model(bundle_of) -> Model:
    return mgpt_edge.load(bundle_of("talker", "fp32").folder)


@pytest.fixture(scope="module")
def decoder(checkpoints):
    return reference.load_decoder(Checkpoint.open(checkpoints["talker"]))


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    x, y = np.meshgrid(np.arange(200), np.arange(290))
    return Image.fromarray(np.stack([x % 256, y % 256, (x * y) % 256], -1).astype(np.uint8))


def words(model: Model, text: str) -> list[int]:
    return model.tokenizer.encode(text, add_special_tokens=False).ids


def plain(decoder, model: Model, history: list[int], request, **options) -> tuple[int, ...]:
    return tuple(reference.answer(decoder, model.manifest.vocabulary, history, request, **options))


@pytest.mark.parametrize(
    ("task", "instruction", "before", "after", "guidance"),
    [
        ("depth", None, "Depth estimation. ", "", 1.0),
        ("edit", "paint it red", "paint it red ", "", 2.5),
        (
            "from-edges", "a cat",
            "Generate an image according to the provided image, and according to the following caption:\na cat ",
            "", 3.0,
        ),
    ],
)  # fmt: skip
def test_a_picture_from_a_picture(task, instruction, before, after, guidance, model, decoder, photo):
    v = model.manifest.vocabulary
    settings = {**DRAWN, "guidance": guidance}
    history = [v.bos, *words(model, before), *model.intake.look(photo, SIZE), *words(model, after), v.separator]
    request = model.request(instruction or "", task=task, seed=5, **settings)
    expected = plain(decoder, model, history, request, size=SIZE, picture=True)
    events = model.stream(instruction or "", images=photo, task=task, seed=5, **settings)
    (picture,) = (event for event in events if isinstance(event, Picture))
    assert picture.tokens == expected
    image = model.transform(photo, task, instruction, seed=5, **settings)
    assert image.size == SIZE
    assert np.array_equal(np.asarray(image), np.asarray(picture.image))
    assert (image.info["mgpt"]["task"], image.info["mgpt"]["prompt"]) == (task, instruction or "")


def test_a_task_has_the_pictures_own_size_and_the_bundles_defaults(model, photo):
    (image,) = model.transform(photo.resize((1000, 300)), "depth", seed=1, count=1)
    assert image.size in model.manifest.pictures.trained_sizes
    assert image.size == (224, 64)
    assert (image.info["mgpt"]["guidance"], image.info["mgpt"]["top_k"]) == (1.0, 200)


def test_several_from_one_prompt_are_those_alone(model, photo):
    for guidance in (1.0, 2.0):
        settings = {**DRAWN, "guidance": guidance}
        three = model.transform(photo, "depth", seed=7, count=3, **settings)
        alone = [model.transform(photo, "depth", seed=7 + i, **settings) for i in range(3)]
        assert [image.tobytes() for image in three] == [image.tobytes() for image in alone]


def test_a_list_of_prompts_of_different_length(model):
    prompts = ["a cat", "the cat sat on a mat and looked at the moon", "a"]
    together = model.generate(prompts, seed=3, size=(32, 64), count=2)
    alone = [model.generate(text, seed=3 + 2 * i, size=(32, 64), count=2) for i, text in enumerate(prompts)]
    assert [image.info["mgpt"] for image in together] == [image.info["mgpt"] for pair in alone for image in pair]
    assert [image.tobytes() for image in together] == [image.tobytes() for pair in alone for image in pair]


@pytest.mark.parametrize("seed", [1, 9, 28])
def test_an_answer_to_text_alone(seed, model, decoder):
    v = model.manifest.vocabulary
    history = [v.bos, *words(model, "who are you?"), v.separator]
    settings = {"seed": seed, "text_top_k": 100}
    expected = plain(decoder, model, history, model.request("who are you?", task="chat", **settings))
    assert v.begin_image not in expected
    *_, end = model.stream("who are you?", task="chat", **settings)
    assert isinstance(end, End)
    assert end.tokens == expected
    assert model.ask((), "who are you?", **settings) == model.tokenizer.decode(list(expected))


@pytest.mark.parametrize(("guidance", "seed"), [(1.0, 10), (3.0, 11)])
def test_a_chat_of_three_turns(guidance, seed, model, decoder, photo):
    """A picture in turn one; the model answers turn two with pictures of sizes of its own."""
    v = model.manifest.vocabulary
    chat = model.chat(seed=seed, guidance=guidance)
    turns = [("what is that?", [photo]), ("again", []), ("and <|image|> as well", [photo])]
    history, waiting, answered = [v.bos], 1, []
    for text, images in turns:
        before, _, after = text.partition("<|image|>")
        seen = [token for image in images for token in model.intake.look(image)]
        said = [*words(model, before), *seen, *words(model, after)] if after else [*seen, *words(model, " " + text)]
        said = said if images else words(model, text)
        history += [*said, v.separator]
        request = model.request(text, task="chat", seed=seed, guidance=guidance)
        expected = plain(decoder, model, history, request)
        answer = chat.say(text, images)
        assert answer.end.tokens == expected
        # What was said before is not computed again: only the new turn and what no pass has needed yet.
        assert answer.end.prefilled == len(said) + 1 + waiting
        assert answer.end.complete
        assert answer.text.count("<|image|>") == len(answer.images) == expected.count(v.end_image)
        waiting = len(answer.end.unfed)
        history += expected
        answered.append(answer)
    assert answered[1].images
    assert chat.tokens_left == chat.context - len(history)


def test_pictures_in_an_answer_have_the_size_that_was_asked_for(model, decoder):
    v = model.manifest.vocabulary
    settings = {"seed": 7, "size": (96, 32), "max_tokens": 200}
    *_, end = model.stream("so", task="chat", **settings)
    history = [v.bos, *words(model, "so"), v.separator]
    request = model.request("so", task="chat", **settings)
    assert end.tokens == plain(decoder, model, history, request, size=(96, 32), limit=200)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_guesses_change_no_conversation(bundle_of, photo, guidance):
    """Earlier turns in the rows, pictures in answers, and one that is cut within a picture."""
    model = mgpt_edge.load(bundle_of("talker", "int8", "native").folder)

    def said(speculate, limit):
        chat = model.chat(seed=10, guidance=guidance, speculate=speculate, max_tokens=limit)
        return [turn(chat, *said) for said in (("what is that?", [photo]), ("again", []), ("so", [photo]))]

    def turn(chat, text, images):
        try:
            return chat.say(text, images).end.tokens
        except IncompleteAnswer as error:
            return str(error), error.tokens

    for limit in (None, 12, 20, 31):
        assert said("auto", limit) == said(9, limit) == said("off", limit)


def test_several_answers_come_in_the_order_of_their_seeds(bundle_of, photo):
    model = mgpt_edge.load(bundle_of("talker", "int8", "native").folder)
    settings = {"size": (64, 64), "guidance": 2.0, "temperature": 0.5, "speculate": 8}
    several = model.transform(photo, "depth", seed=3, count=4, **settings)
    assert [image.info["mgpt"]["seed"] for image in several] == [3, 4, 5, 6]
    for number, image in enumerate(several):
        assert image.tobytes() == model.transform(photo, "depth", seed=3 + number, **settings).tobytes()


def test_streamed_text_is_the_answer(model):
    for seed in range(6):
        events = list(model.stream("so", task="chat", seed=seed))
        text = "".join(event.text for event in events if isinstance(event, mgpt_edge.Text))
        assert text == model.ask((), "so", seed=seed).replace("<|image|>", "")


def test_a_description_is_the_answer_to_the_familys_own_words(model, decoder, photo):
    v = model.manifest.vocabulary
    before, after = template("describe").split("<|image|>")
    history = [v.bos, *words(model, before), *model.intake.look(photo), *words(model, after), v.separator]
    expected = plain(decoder, model, history, model.request("", task="describe", seed=1))
    *_, end = model.stream("", images=photo, task="describe", seed=1)
    assert end.tokens == expected
    with pytest.raises(InvalidRequest, match="takes one picture"):
        model.stream("", images=[photo, photo], task="describe")


def turns(chat, model) -> list[tuple[int, ...]]:
    return [chat.say(text).end.tokens for text in ("the cat", "again", "so")]


def test_a_turn_that_fails_or_is_closed_is_taken_back(model, photo):
    expected = turns(model.chat(seed=10), model)
    chat = model.chat(seed=10, max_tokens=None)
    got = [chat.say("the cat").end.tokens]
    events = chat.stream("something else", photo)
    next(events)
    with pytest.raises(InvalidRequest, match="another turn"):
        next(chat.stream("meanwhile"))
    events.close()
    left = chat.tokens_left
    for text, images, message in (
        ("", (), "empty"),
        ("<|image|>", (), "1 marks"),
        ("two: <|image|>", (photo, photo), "1 marks .* for 2 pictures"),
        ("look", "missing.png", "there is no picture"),
        ("! " * 1500, (), r"needs \d+ tokens more than the 2352 it can hold"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            chat.say(text, images)
    assert chat.tokens_left == left
    got += [chat.say(text).end.tokens for text in ("again", "so")]
    assert got == expected


def test_a_stale_stream_is_refused(model):
    chat = model.chat(seed=1)
    stale = chat.stream("one")
    chat.say("two")
    with pytest.raises(InvalidRequest, match="another turn"):
        next(stale)


def test_an_answer_cut_within_a_picture_is_an_error_with_what_there_is(model):
    chat = model.chat(seed=6, max_tokens=14)
    with pytest.raises(IncompleteAnswer, match="within a picture, after 13 of 14 tokens") as caught:
        chat.say("the cat")
    error = caught.value
    assert error.image.size == (64, 32)
    assert np.asarray(error.image)[:16].max() > 0
    assert error.answer.images[-1] is error.image
    assert error.answer.text.endswith("<|image|>")
    assert chat.tokens_left == chat.context - 1
    chat.request = replace(chat.request, max_tokens=None)
    assert chat.say("the cat").end.tokens == model.chat(seed=6).say("the cat").end.tokens


def test_a_cut_text_goes_on_with_the_next_turn(model, decoder):
    v = model.manifest.vocabulary
    chat = model.chat(seed=3, max_tokens=2)
    first = chat.say("and then").end
    assert (first.complete, len(first.tokens)) == (False, 2)
    history = [v.bos, *words(model, "and then"), v.separator, *first.tokens, v.separator, *words(model, "go on")]
    request = model.request("go on", task="chat", seed=3)
    assert chat.say("go on").end.tokens == plain(decoder, model, [*history, v.separator], request, limit=2)


def test_a_picture_that_can_never_fit_is_refused_at_once(model):
    with pytest.raises(
        IncompleteAnswer, match=r"announced a picture of 512x512, which takes 1060 tokens, \d+ more .* max_tokens"
    ) as caught:
        for seed in range(50):
            model.ask((), "so", seed=seed, size=(512, 512), max_tokens=100)
    # What was said before the picture takes room, too.
    assert int(re.search(r"(\d+) more", str(caught.value))[1]) > 960


def test_a_picture_longer_than_the_conversation_says_so(model):
    chat = model.chat(seed=6, context=20)
    with pytest.raises(IncompleteAnswer, match="allow more with a longer context"):
        chat.say("the cat")
    assert chat.tokens_left == 19


def test_an_answer_that_broke_off_is_said_again_with_another_seed(model):
    chat = model.chat(seed=6, max_tokens=14)
    with pytest.raises(IncompleteAnswer):
        chat.say("the cat")
    answers = [model.chat(seed=seed, max_tokens=14) for seed in range(20)]
    for seed, other in enumerate(answers):
        try:
            expected = other.say("the cat").end.tokens
        except IncompleteAnswer:
            continue
        assert chat.say("the cat", seed=seed).end.tokens == expected
        return
    pytest.fail("every seed draws")


def test_a_conversation_filled_to_its_end_has_no_tokens_left(model):
    chat = model.chat(seed=0, context=12, temperature=0.0)
    end = None
    for seed in range(40):
        try:
            end = chat.say("the cat", seed=seed).end
            break
        except IncompleteAnswer:
            continue
    assert end is not None
    assert not end.complete
    assert chat.tokens_left == 0
    with pytest.raises(InvalidRequest, match=r"needs \d+ tokens more than the 12"):
        chat.say("again")


def test_kept_rows_stay_and_the_seed_decides_the_rest(model, monkeypatch, tmp_path):
    image = model.generate("a cat", seed=4, size=SIZE)
    (picture,) = (e for e in model.stream("a cat", seed=4, size=SIZE) if isinstance(e, Picture))
    monkeypatch.setattr(type(model.intake), "look", lambda *_: list(picture.tokens))
    for keep in (range(2), [0, 3, 5], range(6), ()):
        assert model.redraw(image, keep_rows=keep, seed=4).tobytes() == image.tobytes()
    save(image, tmp_path / "a.png")
    events = model.draw(model.request("a cat", seed=9, size=SIZE), keep=tmp_path / "a.png", keep_rows=[0, 3])
    (other,) = (event.tokens for event in events if isinstance(event, Picture))
    width = SIZE[0] // 16 + 1
    for row in (0, 3):
        assert picture.tokens[3 + row * width :][:width] == other[3 + row * width :][:width]
    assert picture.tokens != other
    again = model.redraw(tmp_path / "a.png", keep_rows=[0, 3], seed=9)
    assert again.info["mgpt"]["kept_rows"] == [0, 3]
    assert again.info["mgpt"]["prompt"] == "a cat"


def test_kept_rows_with_other_words(model):
    image = model.generate("a cat", seed=4, size=SIZE)
    again = model.redraw(image, "a dog", keep_rows=range(2), seed=4)
    assert (again.info["mgpt"]["prompt"], again.info["mgpt"]["kept_rows"]) == ("a dog", [0, 1])
    assert again.size == SIZE


def test_rows_of_any_picture_can_be_kept(model, photo):
    image = model.redraw(photo, "a cat", keep_rows=range(3), size=SIZE, seed=1)
    assert image.size == SIZE
    with pytest.raises(InvalidRequest, match="does not say which words"):
        model.redraw(photo)
    with pytest.raises(InvalidRequest, match="has the rows 0 to 5"):
        model.redraw(photo, "a cat", keep_rows=[6], size=SIZE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p: m.transform(p, "dept"), "did you mean 'depth'"),
        (lambda m, p: m.transform(p, "chat"), "see generate, ask and describe"),
        (lambda m, p: m.transform(p, "edit"), "the instruction must be a text"),
        (lambda m, p: m.transform(p, "depth", "nicely"), "takes a picture and no words"),
        (lambda m, p: m.transform([p, p], "depth"), "takes one picture, got 2"),
        (lambda m, p: m.generate("a cat", images=p), "unknown setting 'images'"),
        (lambda m, p: m.stream("a cat", images=p), "takes no picture, got 1"),
        (lambda m, p: m.transform(p, "depth", max_tokens=5), "max_tokens is for answers in text"),
        (lambda m, p: m.transform(p, "depth", size=(65, 64)), "nearest size is 64x64"),
        (lambda m, p: m.ask(p, "what <|image|> <|image|>?"), "2 marks .* for 1 pictures"),
        (lambda m, p: m.ask(p, "what?", count=2), "count must be a whole number from 1 to 1"),
        (lambda m, p: m.ask(p, " "), "not empty"),
        (lambda m, p: m.chat(context=0), "context"),
        (lambda m, p: m.generate([]), "not empty"),
    ],
)
def test_bad_requests(call, message, model, photo):
    with pytest.raises(InvalidRequest, match=message):
        call(model, photo)


def test_a_task_that_was_not_trained(bundle_of, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_of("talker", "fp32").folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tasks"] = {"text-to-image": manifest["defaults"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidRequest, match=r"was not trained for 'depth'; it knows text-to-image \(.*mgpt\.json"):
        mgpt_edge.load(folder).transform(Image.new("RGB", (64, 64)), "depth")


def test_a_bundle_without_an_encoder_draws_and_says_what_looking_needs(bundle_of, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_of("talker", "fp32").folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("vq_encoder.onnx", "vq_encoder.data"):
        (folder / name).unlink()
        del manifest["files"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    model = mgpt_edge.load(folder)
    assert model.generate("a cat", size=(32, 32)).size == (32, 32)
    with pytest.raises(BundleError, match=r"no vq_encoder\.onnx.*export the checkpoint again"):
        model.ask(Image.new("RGB", (64, 64)), "what?")
