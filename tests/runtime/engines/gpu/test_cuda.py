"""ONNX Runtime's engine for the GPU, with this process' memory for the GPU's, and runs that wait for the stream."""

from __future__ import annotations

import gc
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnxruntime import OrtValue

from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.runtime.engines.base import Segment
from mgpt_edge.runtime.engines.gpu import device as gpu
from mgpt_edge.runtime.engines.gpu.cuda import CudaEngine
from mgpt_edge.runtime.errors import IncompatibleEngine, OutOfMemory
from mgpt_edge.runtime.golden import recompute
from mgpt_edge.runtime.model import Model
from tests.fake_cuda import STREAM, FakeCuda
from tests.reference import load_decoder
from tests.runtime.engines.gpu.drawing import drawn, without_drawer


class Binding:
    """ONNX Runtime's, that tells the host's arrays from the device's, which are bound by their addresses."""

    def __init__(self, binding):
        self.binding, self.host = binding, {}

    def __getattr__(self, name):
        return getattr(self.binding, name)

    def bind_ortvalue_input(self, name, value):
        # A GPU's provider copies any other of the host's arrays when it is bound, and not again.
        assert name.startswith("total.")
        self.host[name] = value


class Session:
    """A session whose runs over bound arrays come when the stream does; of the host it reads what is there now."""

    def __init__(self, session, cuda):
        self.session, self.cuda = session, cuda

    def __getattr__(self, name):
        return getattr(self.session, name)

    def io_binding(self):
        return Binding(self.session.io_binding())

    def run_with_iobinding(self, binding, options):
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        read = {name: OrtValue.ortvalue_from_numpy(value.numpy().copy()) for name, value in binding.host.items()}

        def run():
            for name, value in read.items():
                binding.binding.bind_ortvalue_input(name, value)
            self.session.run_with_iobinding(binding.binding)

        self.cuda.enqueue(STREAM, run)


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(gpu, "_runtime", lambda: fake)
    loaded = CudaEngine.session
    monkeypatch.setattr(CudaEngine, "session", lambda engine, name: Session(loaded(engine, name), fake))
    monkeypatch.setattr(CudaEngine, "_providers", lambda _: ["CPUExecutionProvider"])
    monkeypatch.setattr(CudaEngine, "provider", "CPUExecutionProvider")
    monkeypatch.setattr(CudaEngine, "device", "cpu")
    return fake


@pytest.fixture
def engine(cuda, bundle_of):
    return lambda kind, precision: CudaEngine(bundle_of(kind, precision, "cuda"), threads=1)


@pytest.mark.parametrize("kind", ["7b", "34b"])
def test_logits_equal_pytorch(kind, engine, checkpoints, monkeypatch):
    """Two rows of different length: prompts longer than a pass, single tokens, one that idles, one that goes back."""
    monkeypatch.setattr(CudaEngine, "widest", 5)
    checkpoint = Checkpoint.open(checkpoints[kind])
    rng = np.random.default_rng(0)
    tokens = [rng.integers(10, checkpoint.vocabulary.size, count).tolist() for count in (30, 24)]
    rows = engine(kind, "fp16").open((30, 24))
    feed = lambda *parts: rows.forward([Segment(row, tokens[row][a:b]) for row, a, b in parts], "text")  # noqa: E731
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


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pictures_draw_themselves(guidance, library, cuda, bundle_of):
    """The tokens that go through the host otherwise, and one wait a row of codes."""
    bundle = bundle_of("7b", "fp16", "cuda")
    itself, through = Model(bundle), Model(bundle)
    through.engine.open = lambda *given: without_drawer(CudaEngine.open(through.engine, *given))
    for size, seed in (((96, 160), 3), ((128, 128), 4)):
        settings = {"size": size, "seed": seed, "guidance": guidance, "top_k": 20}
        expected, _, _ = drawn(through, cuda, settings)
        tokens, rows, waits = drawn(itself, cuda, settings)
        assert tokens == expected
        assert waits < len(rows) + 10  # some for the prompt
    assert cuda.launches == 0


def test_a_prompt_is_copied_from_row_to_row(engine):
    rows = engine("7b", "fp16").open((12, 9))
    rows.forward([Segment(0, [1, 20, 30, 40])], "text")
    rows.copy_prefix(0, 1, 3)
    assert rows.length(1) == 3
    one, other = rows.forward([Segment(1, [50, 60])], "text")[0].copy(), rows
    other.rollback(0, 3)
    np.testing.assert_array_equal(one, other.forward([Segment(0, [50, 60])], "text")[0])


def test_closed_rows_give_their_memory_back_at_once(library, cuda, engine):
    loaded = engine("7b", "fp16")
    rows = loaded.open((12, 9))
    rows.forward([Segment(0, [1, 20, 30, 40])], "text")
    free, address = cuda.free, next(iter(rows.cache.values())).address
    gc.disable()
    del rows
    gc.enable()
    assert cuda.free > free
    assert address not in cuda.blocks


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ({"device": "cuda"}, r"reads cos, .*, tokens\.1 elsewhere than on a GPU .*pip install -U 'mgpt-edge\[cuda\]'"),
        ({"type": "tensor(int64)"}, r"takes tokens of int64 .*export it again"),
    ],
)
def test_arrays_that_would_be_copied_when_bound_are_refused(spoilt, said, cuda, engine, monkeypatch):
    """An input that ONNX Runtime wants on the CPU, where a GPU's address would be read once; and older bundles."""
    if "device" in spoilt:
        monkeypatch.setattr(CudaEngine, "device", "cuda")
    else:
        inputs = [SimpleNamespace(name="tokens.0", type="tensor(int64)")]
        monkeypatch.setattr(Session, "get_inputs", lambda _: inputs, raising=False)
        places = [SimpleNamespace(name="Cpu")]
        monkeypatch.setattr(Session, "get_input_memory_infos", lambda _: places, raising=False)
    with pytest.raises(IncompatibleEngine, match=said):
        engine("7b", "fp16")


def test_no_memory_on_the_device(cuda, engine):
    loaded = engine("7b", "fp16")
    assert loaded.free_bytes() == cuda.free
    cuda.free = 1000
    with pytest.raises(OutOfMemory, match=r"0 MiB wanted on a GPU, 0 MiB are free; see: mgpt estimate"):
        loaded.open((100, 50))


def test_a_provider_that_falls_back_is_an_error(bundle_of, monkeypatch):
    """ONNX Runtime's CPU package only warns."""
    monkeypatch.setattr(gpu, "_runtime", FakeCuda)
    with pytest.raises(
        IncompatibleEngine, match=r"does not run on a GPU, but on .*CPUExecutionProvider.*mgpt-edge\[cuda\]"
    ):
        CudaEngine(bundle_of("7b", "fp16", "cuda"), threads=1)


def test_no_cuda_python_is_explained(bundle_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(IncompatibleEngine, match=r"cuda-python can't be imported .*mgpt-edge\[cuda\]"):
        CudaEngine(bundle_of("7b", "fp16", "cuda"), threads=1)
