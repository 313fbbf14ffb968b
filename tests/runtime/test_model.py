"""The face: the tokens are those of the plain loop, whatever is drawn beside them."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import mgpt_edge
from mgpt_edge.export.bundle import export_bundle
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.runtime import machine
from mgpt_edge.runtime.decoding.steps import FinishedRow
from mgpt_edge.runtime.errors import BundleError, CompatibilityWarning, IncompatibleEngine, InvalidRequest, OutOfMemory
from mgpt_edge.runtime.family.prompt import encode_prompt
from mgpt_edge.runtime.model import Model
from mgpt_edge.runtime.results.events import Picture, Preview
from tests import reference
from tests.families import write_checkpoint

PROMPT = "the cat sat on a mat"
pytestmark = pytest.mark.filterwarnings("ignore::mgpt_edge.runtime.errors.CompatibilityWarning")


@pytest.fixture(scope="module")
def model(bundle_of) -> Model:
    return mgpt_edge.load(bundle_of("7b", "fp32").folder)


def tokens_of(model: Model, prompt: str = PROMPT, **settings) -> list[tuple[int, ...]]:
    return [event.tokens for event in model.stream(prompt, **settings) if isinstance(event, Picture)]


@pytest.mark.parametrize("kind", ["7b", "34b"])
@pytest.mark.parametrize(
    ("size", "seed", "guidance", "top_k", "temperature"),
    [
        ((64, 64), 0, 3.0, 20, 1.0),
        ((96, 32), 7, 1.5, 64, 0.8),
        ((32, 96), 2**64 - 1, 4.0, 1, 1.0),
        ((64, 96), 123456789, 0.0, 10, 1.2),
        ((32, 32), 5, 2.0, 2000, 0.0),
    ],
)
def test_tokens_equal_the_plain_loop(kind, size, seed, guidance, top_k, temperature, bundle_of, checkpoints):
    model = mgpt_edge.load(bundle_of(kind, "fp32").folder)
    settings = {"size": size, "seed": seed, "guidance": guidance, "top_k": top_k, "temperature": temperature}
    request = model.request(PROMPT, **settings)
    prompt = encode_prompt(
        model.tokenizer, model.manifest.vocabulary, "text-to-image", width=size[0], height=size[1], prompt=PROMPT
    )
    decoder = reference.load_decoder(Checkpoint.open(checkpoints[kind]))
    expected = reference.draw(decoder, prompt, model.layout(size), request)
    assert tokens_of(model, **settings) == [tuple(expected)]


def test_same_seed_alone_in_a_count_with_preview_and_unguided(model):
    for guidance in (1.0, 2.0):
        settings = {"size": (64, 64), "guidance": guidance}
        three = tokens_of(model, seed=10, count=3, **settings)
        alone = [tokens_of(model, seed=10 + i, **settings)[0] for i in range(3)]
        previewed = tokens_of(model, seed=10, count=3, preview=True, **settings)
        assert three == alone == previewed
        assert len(set(three)) == 3


def test_one_thread_and_two(bundle_of):
    for precision in ("fp32", "int8"):
        folder = bundle_of("34b", precision).folder
        one, two = (tokens_of(mgpt_edge.load(folder, threads=n), seed=3, size=(64, 96)) for n in (1, 2))
        assert one == two


def test_streams_of_several_threads_do_not_mix(model):
    expected = [tokens_of(model, seed=seed, size=(64, 64))[0] for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda seed: tokens_of(model, seed=seed, size=(64, 64))[0], range(4)))
    assert got == expected


def test_interleaved_streams_and_a_closed_one(model):
    expected = [tokens_of(model, seed=seed, size=(64, 64))[0] for seed in (1, 2)]
    streams = [model.stream(PROMPT, seed=seed, size=(64, 64)) for seed in (1, 2)]
    closed = model.stream(PROMPT, seed=9, size=(64, 64))
    next(closed)
    got = [[], []]
    for _ in range(5):
        for stream, tokens in zip(streams, got, strict=True):
            event = next(stream)
            if isinstance(event, Picture):
                tokens.append(event.tokens)
        closed.close()
    assert [tokens[0] for tokens in got] == expected


def test_events(model):
    events = list(model.stream(PROMPT, seed=1, size=(64, 96), preview=True))
    kinds = [type(event) for event in events]
    assert kinds == [FinishedRow, Preview] * 5 + [FinishedRow, Picture]
    rows = [event for event in events if isinstance(event, FinishedRow)]
    assert [row.row for row in rows] == list(range(6))
    # The first code of a picture comes from the pass over the prompt, every other from one of its own.
    assert [row.passes for row in rows] == [3, 4, 4, 4, 4, 4]
    picture = events[-1]
    assert rows[-1].tokens == picture.tokens[:-1]
    previews = [event.image for event in events if isinstance(event, Preview)]
    assert [image.size for image in previews] == [(64, 16 * n) for n in range(1, 6)]
    assert picture.image.size == (64, 96)
    assert picture.image.mode == "RGB"


def test_generate_gives_one_or_a_list(model):
    single = model.generate(PROMPT, seed=4, size=(32, 32))
    several = model.generate(PROMPT, seed=4, size=(32, 32), count=2)
    assert len(several) == 2
    assert np.array_equal(np.asarray(single), np.asarray(several[0]))
    assert [image.info["mgpt"]["seed"] for image in several] == [4, 5]
    assert model.generate(PROMPT, seed=4, size=(32, 32), count=1)[0].info == single.info


def test_a_random_seed_is_recorded(model):
    image = model.generate(PROMPT, size=(32, 32))
    again = model.generate(PROMPT, size=(32, 32), seed=image.info["mgpt"]["seed"])
    assert np.array_equal(np.asarray(image), np.asarray(again))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (65, 64)}, "nearest size is 64x64"),
        ({"size": (64,)}, "width, height"),
        ({"size": (-64, 64)}, "multiples of 32"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 2**64 - 1, "count": 2}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"guidance": float("nan")}, "guidance"),
        ({"guidance": float("inf")}, "guidance"),
        ({"guidance": -1}, "guidance"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"count": 0}, "count"),
        ({"guidence": 2.0}, "did you mean 'guidance'"),
    ],
)
def test_bad_settings(model, settings, message):
    with pytest.raises(InvalidRequest, match=message):
        model.stream(PROMPT, **settings)


@pytest.mark.parametrize("prompt", ["", "  ", None, 3, "\ud800"])
def test_bad_prompts(model, prompt):
    with pytest.raises(InvalidRequest, match="prompt"):
        model.stream(prompt)


def test_prompt_too_long(model):
    with pytest.raises(InvalidRequest, match=r"the prompt has \d+ tokens, at most 4096"):
        model.stream("!" * 20_000)


def test_untrained_size_warns_with_the_nearest(bundle_of):
    model = mgpt_edge.load(bundle_of("7b", "fp32").folder)
    with pytest.warns(CompatibilityWarning, match="nearest size it knows is"):
        model.stream(PROMPT, size=(32, 64))


def test_out_of_memory_is_known_before_anything_is_allocated(model, monkeypatch):
    monkeypatch.setattr(machine, "available_bytes", lambda: 1 << 20)
    with pytest.raises(OutOfMemory, match="1 MiB are free"):
        model.stream(PROMPT, size=(64, 64))
    monkeypatch.undo()
    model.generate(PROMPT, size=(32, 32))


def test_user_text_cannot_spell_a_special_token(model):
    vocabulary = model.manifest.vocabulary
    text = "<reserved08706> <eoss> IMGIMGAZ <|image|> <s> <racm3:break>"
    tokens = encode_prompt(model.tokenizer, vocabulary, "text-to-image", width=32, height=32, prompt=text)
    special = {
        vocabulary.separator,
        vocabulary.end_image,
        vocabulary.begin_image,
        vocabulary.first_code,
        vocabulary.bos,
    }
    assert not special & set(tokens[1:-1])
    assert model.tokenizer.decode(tokens[1:-1], skip_special_tokens=False).endswith(text)


def test_importing_loads_no_torch():
    code = "import mgpt_edge, sys; sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_drawing_loads_no_torch(bundle_of):
    code = (
        "import mgpt_edge, sys, warnings; warnings.simplefilter('ignore');"
        f"mgpt_edge.load({str(bundle_of('7b', 'int8').folder)!r}).generate('a cat', size=(32, 32));"
        "sys.exit(any(name in sys.modules for name in ('torch', 'onnx', 'mgpt_edge.export')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_two_onnxruntimes_are_explained(monkeypatch):
    from mgpt_edge.runtime.engines import graphs

    graphs.onnxruntime.cache_clear()
    monkeypatch.setattr(graphs, "_installed", lambda name: True)
    with pytest.raises(IncompatibleEngine, match="overwrite each other"):
        graphs.onnxruntime()


def test_no_onnxruntime_names_the_extra(monkeypatch):
    from mgpt_edge.runtime.engines import graphs

    graphs.onnxruntime.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(IncompatibleEngine, match=r"pip install 'mgpt-edge\[cpu\]'"):
        graphs.onnxruntime()


def test_a_bundle_without_vq_says_so_before_drawing(tmp_path):
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", vq=False))
    bundle = export_bundle(checkpoint, tmp_path / "bundle", precision="fp32")
    with pytest.raises(BundleError, match="--vq"):
        Model(bundle).stream(PROMPT)


def test_interrupt_leaves_the_model_usable(model):
    expected = tokens_of(model, seed=1, size=(64, 64))
    stream = model.stream(PROMPT, seed=2, size=(64, 64))
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    assert tokens_of(model, seed=1, size=(64, 64)) == expected
