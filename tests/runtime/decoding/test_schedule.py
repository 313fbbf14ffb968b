"""Many answers at a time: what each is does not depend on the others, and nothing is computed twice."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt_edge.runtime.decoding.schedule import decode
from mgpt_edge.runtime.decoding.steps import End, FinishedRow
from mgpt_edge.runtime.decoding.window import Costs, Window
from mgpt_edge.runtime.engines import load_engine
from mgpt_edge.runtime.engines.native import NativeSequences
from mgpt_edge.runtime.family.grammar import Form
from mgpt_edge.runtime.family.layout import ImageLayout
from mgpt_edge.runtime.intake.job import Job
from mgpt_edge.runtime.intake.request import Request
from mgpt_edge.runtime.model import Model


@pytest.fixture(scope="module")
def native(bundle_of):
    return load_engine(bundle_of("7b", "int8", "native"), 1)


def job(engine, prompt, size=(64, 32), task="text-to-image", **given):
    values = {"prompt": "x", "size": None, "seed": 3, "guidance": 2.0, "top_k": 6, "text_top_k": 5, "temperature": 0.7}
    vocabulary = engine.bundle.manifest.vocabulary
    layout = ImageLayout(*size, vocabulary)
    picture = task != "chat"
    form = Form(
        vocabulary=vocabulary,
        stride=16,
        limit=len(layout) if picture else 12,
        layout=layout if picture else None,
        picture=picture,
    )
    return Job(Request(**{**values, "task": task, **given}), prompt, form)


def answers(engine, jobs, streams, window=None):
    """Pictures' last rows by number, each answer's tokens as a set, and the passes of the rows."""
    capacities = [max(column) for column in zip(*(job.capacities for job in jobs), strict=True)]
    rows = Counting(engine.open(tuple(capacities), streams))
    pictures, tokens = {}, set()
    for step in decode(rows, jobs, window):
        if isinstance(step, FinishedRow):
            pictures[step.picture] = step.tokens
        elif isinstance(step, End):
            tokens.add(step.tokens)
    return pictures, tokens, rows


@dataclass
class Counting:
    """Rows, and how many tokens each pass was fed."""

    rows: object
    fed: list[int] = field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.rows, name)

    def forward(self, feeds, head):
        self.fed.append(sum(len(fed.tokens) for fed in feeds))
        return self.rows.forward(feeds, head)


prompts = st.lists(st.integers(90, 99), min_size=1, max_size=6)
sizes = st.sampled_from([(32, 32), (64, 32), (32, 64)])


@settings(max_examples=15)
@given(
    asked=st.lists(st.tuples(prompts, sizes, st.integers(1, 4), st.sampled_from([1.0, 2.0])), min_size=1, max_size=3),
    streams=st.integers(2, 5),
    width=st.sampled_from([None, 3]),
    group=st.sampled_from([1, 3]),
)
def test_an_answer_does_not_know_what_is_drawn_beside_it(native, asked, streams, width, group):
    settings = {"speculate": 3, "approximate": group} if width else {}
    jobs = [
        job(native, [1, *prompt], size, count=count, seed=number, guidance=guidance, **settings)
        for number, (prompt, size, count, guidance) in enumerate(asked)
    ]
    window = None if width is None else Window(width, Costs())
    alone, tokens, _ = answers(native, jobs, 1, window)
    beside, others, _ = answers(native, jobs, streams, window)
    assert beside == alone
    assert others == tokens
    assert list(alone) == list(range(sum(count for _, _, count, _ in asked)))


def test_words_and_pictures_take_turns(native):
    """Streams that want another head wait for theirs; none waits for ever."""
    jobs = [
        job(native, [1, 95, 96], task="chat", seed=5),
        job(native, [1, 91], count=2),
        job(native, [1, 92, 93, 94], task="chat", seed=8),
    ]
    assert answers(native, jobs, 3)[:2] == answers(native, jobs, 1)[:2]


def test_one_prompt_is_computed_once_and_passes_are_shared(native):
    prompt = [1, *range(60, 90)]
    _, _, alone = answers(native, [job(native, prompt)], 1)
    _, _, shared = answers(native, [job(native, prompt, count=4)], 4)
    assert len(shared.fed) == len(alone.fed)
    assert shared.fed[0] == alone.fed[0]
    assert shared.fed[1:] == [4 * fed for fed in alone.fed[1:]]


def test_the_next_prompt_is_computed_beside_others_codes(native):
    """Two streams, three prompts: as many passes as the longer stream's answers take one after another."""
    jobs = [
        job(native, [1, *range(60, 90)], (64, 32)),
        job(native, [1, *range(70, 90)], (32, 32)),
        job(native, [1, *range(65, 90)], (32, 64)),
    ]
    alone = [len(answers(native, [one], 1)[2].fed) for one in jobs]
    _, _, shared = answers(native, jobs, 2)
    assert len(shared.fed) == max(alone[0], alone[1] + alone[2])


def test_a_list_of_prompts_shares_passes(bundle_of):
    model = Model(bundle_of("7b", "int8", "native"))
    together = model.generate(["a cat", "a dog"], size=(128, 128), seed=4, count=2, speculate="off")
    alone = [
        model.generate(prompt, size=(128, 128), seed=seed, speculate="off")
        for prompt, seed in (("a cat", 4), ("a cat", 5), ("a dog", 6), ("a dog", 7))
    ]
    for drawn, expected in zip(together, alone, strict=True):
        assert np.array_equal(np.asarray(drawn), np.asarray(expected))
        assert drawn.info == expected.info


def test_an_engine_of_one_stream_draws_one_after_another(bundle_of):
    model = Model(bundle_of("7b", "fp32"))
    first, second = model.generate("a cat", size=(128, 128), seed=4, count=2)
    assert np.array_equal(np.asarray(second), np.asarray(model.generate("a cat", size=(128, 128), seed=5)))
    assert not np.array_equal(np.asarray(first), np.asarray(second))


def test_streams_are_as_many_as_memory_takes(bundle_of, monkeypatch):
    from mgpt_edge.runtime.intake import memory

    manifest = bundle_of("7b", "int8", "native").manifest
    layout, capacities = ImageLayout(64, 32, manifest.vocabulary), (100, 50)
    each = memory._token_bytes(manifest) * 150
    one = memory._beyond_weights(memory.estimate(manifest, layout, capacities, 20, reads=True))
    for free, expected in ((one + 100 * each, 8), (one + 6 * each, 4), (one, 1), (0, 1)):
        assert memory.streams_that_fit(manifest, layout, capacities, 20, 8, free=free) == expected


def test_a_picture_of_any_size_begins_in_both_rows(native):
    """Without a size, begin-of-image is forced and the rest is the model's: the unconditional row sees it all."""
    asked = job(native, [1, 91, 92], guidance=2.0)
    free = replace(asked, form=replace(asked.form, layout=None, limit=20_000))
    rows = native.open((20_010, 20_000))
    seen = [[], []]

    def forward(feeds, head):
        for fed in feeds:
            seen[fed.sequence] += fed.tokens
        return NativeSequences.forward(rows, feeds, head)

    rows.forward = forward
    next(decode(rows, [free]))
    begun = seen[0].index(free.form.vocabulary.begin_image)
    drawn = seen[0][begun:]
    assert len(seen[1]) > 3
    assert seen[1] == drawn[: len(seen[1])]
