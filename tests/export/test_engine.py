"""The compiled graphs against transformers' Chameleon, which nobody here wrote."""

from __future__ import annotations

import gc
import json
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mgpt_edge.bench.rivals.reference import chameleon
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.runtime.engines.base import Segment
from mgpt_edge.runtime.engines.cpu import CpuEngine

if TYPE_CHECKING:
    from transformers import ChameleonModel

TOLERANCE = 1e-4  # relative to the largest logit


@torch.inference_mode()
def logits_of(oracle: tuple[ChameleonModel, torch.Tensor], tokens: list[int]) -> np.ndarray:
    model, head = oracle
    return (model(input_ids=torch.tensor([tokens])).last_hidden_state[0] @ head.T).numpy()


@pytest.mark.parametrize("kind", ["7b", "34b"])
def test_logits_equal_transformers(kind, bundle_of, checkpoints):
    bundle = bundle_of(kind, "fp32")
    vocabulary = bundle.manifest.vocabulary
    rng = np.random.default_rng(1)
    rows = [rng.integers(10, vocabulary.size, count).tolist() for count in (40, 31)]
    rows = [[token if token != 5 else 6 for token in row] for row in rows]
    reference = chameleon(Checkpoint.open(checkpoints[kind]))
    expected = [logits_of(reference, row) for row in rows]
    scale = max(np.abs(e).max() for e in expected)

    engine = CpuEngine(bundle, threads=2)
    opened = engine.open((40, 31))
    fed = [0, 0]
    # Prefill of different lengths, single steps, two tokens at once, uneven widths, an idle row.
    for counts in ((9, 3), (1, 1), (1, 1), (2, 2), (1, 5), (7, 1), (12, 0), (1, 1)):
        parts = tuple(row[done : done + count] for row, done, count in zip(rows, fed, counts, strict=True))
        fed = [done + count for done, count in zip(fed, counts, strict=True)]
        feeds = [Segment(row, part) for row, part in enumerate(parts) if part]
        for feed, got in zip(feeds, opened.forward(feeds, "text"), strict=True):
            assert np.abs(got[0] - expected[feed.sequence][fed[feed.sequence] - 1]).max() <= TOLERANCE * scale
        assert [opened.length(row) for row in (0, 1)] == fed


def test_image_head_is_a_slice_of_the_text_head(bundle_of):
    engine = CpuEngine(bundle_of("7b", "fp32"), threads=1)
    low, high = engine.bundle.manifest.vocabulary.code_range
    for last in (1, 2):
        feeds = [Segment(0, [1, 2, 3]), Segment(1, [4, 5], last)]
        text = np.concatenate(engine.open((4, 4)).forward(feeds, "text"))
        image = np.concatenate(engine.open((4, 4)).forward(feeds, "image"))
        assert len(image) == 1 + last
        np.testing.assert_allclose(image, text[:, low:high], rtol=1e-5, atol=1e-6)


def test_rollback_forgets(bundle_of):
    engine = CpuEngine(bundle_of("34b", "int8", "cpu"), threads=1)
    rows = engine.open((20, 20))

    def forward(first, second):
        return np.concatenate(rows.forward([Segment(0, first), Segment(1, second)], "image"))

    start = forward([1, 2, 3], [4])
    before = forward([5], [6])
    forward([7, 8], [9])
    rows.rollback(0, 3)
    rows.rollback(1, 1)
    assert np.array_equal(forward([5], [6]), before)
    for row in (0, 1):
        rows.rollback(row, 0)
    assert np.array_equal(forward([1, 2, 3], [4]), start)


@pytest.mark.parametrize(("precision", "tolerance"), [("int8", 0.05), ("int4", 0.5)])
def test_quantised_logits_stay_near(precision, tolerance, bundle_of):
    """Small random layers are the worst case; trained ones are measured by their pictures."""
    feeds = [Segment(0, [1, 20, 30, 40, 50]), Segment(1, [7, 8])]
    exact, packed = (
        np.concatenate(CpuEngine(bundle_of("7b", name, "cpu"), threads=1).open((8, 8)).forward(feeds, "text"))
        for name in ("fp32", precision)
    )
    assert np.linalg.norm(packed - exact) <= tolerance * np.linalg.norm(exact)


def test_closed_rows_are_gone_at_once(bundle_of):
    """Their keys and values are gigabytes of a large model: none may wait for the garbage collector."""
    rows = CpuEngine(bundle_of("7b", "fp32", "cpu"), threads=1).open((8, 8))
    rows.forward([Segment(0, [1, 20, 30])], "text")
    alive = weakref.ref(rows)
    gc.disable()
    del rows
    gc.enable()
    assert alive() is None


def test_golden_logits_come_from_pytorch(bundle_of):
    from mgpt_edge.runtime.golden import recompute

    for precision, largest in (("fp32", 1e-5), ("int8", 2e-2), ("int4", 5e-2)):
        bundle = bundle_of("34b", precision, "cpu")
        assert recompute(bundle, CpuEngine(bundle, threads=1)) <= largest


def test_manifest_is_plain_json(bundle_of):
    bundle = bundle_of("7b", "fp32")
    data = json.loads((bundle.folder / "manifest.json").read_text())
    assert data["precision"] == "fp32"
    assert set(data["files"]) == {path.name for path in bundle.folder.iterdir()} - {"manifest.json"}
