"""ONNX Runtime's engine for the GPU, with a host's memory in the GPU's place: only the device's name is another."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.runtime import gpu
from mgpt_edge.runtime.engines.base import Fed
from mgpt_edge.runtime.engines.cuda import CudaEngine
from mgpt_edge.runtime.errors import IncompatibleEngine, OutOfMemory
from mgpt_edge.runtime.golden import recompute
from tests.fake_cuda import FakeCuda
from tests.reference import load_decoder


@pytest.fixture
def fake(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(gpu, "_runtime", lambda: fake)
    return fake


@pytest.fixture
def engine(fake, bundle_of, monkeypatch):
    monkeypatch.setattr(CudaEngine, "providers", ("CPUExecutionProvider",))
    monkeypatch.setattr(CudaEngine, "provider", "CPUExecutionProvider")
    monkeypatch.setattr(CudaEngine, "device", "cpu")
    return lambda kind, precision: CudaEngine(bundle_of(kind, precision, "cuda"), threads=1)


@pytest.mark.parametrize("kind", ["7b", "34b"])
def test_logits_equal_pytorch(kind, engine, checkpoints):
    """Two rows of different length: prompts, single tokens, several at once, one that idles, and one that goes back."""
    checkpoint = Checkpoint.open(checkpoints[kind])
    rng = np.random.default_rng(0)
    tokens = [rng.integers(10, checkpoint.vocabulary.size, count).tolist() for count in (30, 24)]
    rows = engine(kind, "fp16").open((30, 24))
    feed = lambda *parts: rows.forward([Fed(row, tokens[row][a:b]) for row, a, b in parts], "text")  # noqa: E731
    feed((0, 0, 9), (1, 0, 3))
    feed((0, 9, 16))
    rows.rollback(0, 10)
    feed((0, 10, 29), (1, 3, 23))
    got = feed((0, 29, 30), (1, 23, 24))
    decoder = load_decoder(checkpoint)
    for row in (0, 1):
        with torch.inference_mode():
            expected = decoder.lm_head(decoder.hidden(torch.tensor([tokens[row]]))[0, -1]).numpy()
        np.testing.assert_allclose(got[row][0], expected, atol=5e-3 * np.abs(expected).max())


@pytest.mark.parametrize(("precision", "largest"), [("fp16", 2e-3), ("int8", 3e-3), ("int4", 3e-3)])
def test_golden_logits(precision, largest, engine):
    loaded = engine("34b", precision)
    assert recompute(loaded.bundle, loaded) <= largest


def test_a_prompt_is_copied_from_row_to_row(fake, engine):
    rows = engine("7b", "fp16").open((12, 9))
    rows.forward([Fed(0, [1, 20, 30, 40])], "text")
    rows.copy_prefix(0, 1, 3)
    assert rows.length(1) == 3
    one, other = rows.forward([Fed(1, [50, 60])], "text")[0].copy(), rows
    other.rollback(0, 3)
    np.testing.assert_array_equal(one, other.forward([Fed(0, [50, 60])], "text")[0])


def test_no_memory_on_the_device(fake, engine):
    loaded = engine("7b", "fp16")
    assert loaded.free_bytes() == fake.free
    fake.free = 1000
    with pytest.raises(OutOfMemory, match=r"no memory for the K/V of 100 \+ 50 tokens"):
        loaded.open((100, 50))


def test_a_provider_that_falls_back_is_an_error(fake, bundle_of):
    """ONNX Runtime's CPU package only warns."""
    with pytest.raises(
        IncompatibleEngine, match=r"does not run on a GPU, but on .*CPUExecutionProvider.*mgpt-edge\[cuda\]"
    ):
        CudaEngine(bundle_of("7b", "fp16", "cuda"), threads=1)


def test_no_cuda_python_is_explained(bundle_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(IncompatibleEngine, match=r"cuda-python can't be imported .*mgpt-edge\[cuda\]"):
        CudaEngine(bundle_of("7b", "fp16", "cuda"), threads=1)
