"""The graph that TensorRT compiles, run by ONNX Runtime's CPU provider, against the PyTorch reference."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.graphfile import write_graph
from mgpt_edge.export.lower import tensorrt
from mgpt_edge.export.trace import trace_decoder, trace_head
from mgpt_edge.runtime.errors import CheckpointError
from mgpt_edge.runtime.rotary import rotary_tables
from tests.reference import load_decoder

CAPACITY = 64
PAST = (21, 7)  # rows are ragged


@pytest.fixture(scope="module", params=["7b", "34b"])
def checkpoint(request, checkpoints):
    return Checkpoint.open(checkpoints[request.param])


@pytest.fixture(scope="module")
def session(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorrt")
    graph = trace_decoder(checkpoint.config, checkpoint.norm_groups)
    for _ in write_graph(tensorrt.lower_decoder(graph, checkpoint.array, "fp16", CAPACITY), folder, "decoder"):
        pass
    return ort.InferenceSession(folder / "decoder.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("width", [1, 2, 16])
def test_equals_pytorch_on_ragged_rows(width, checkpoint, session):
    config = checkpoint.config
    rng = np.random.default_rng(width)
    tokens = [rng.integers(10, checkpoint.vocabulary.size, past + width) for past in PAST]
    tables = rotary_tables(CAPACITY, config.head_dim, config.rope_theta)
    cache = {
        value.name: np.zeros([2 if size == "rows" else size for size in value.shape], np.float16)
        for value in session.get_inputs()
        if value.name.startswith("past")
    }

    def forward(tokens, lengths):
        feed = {"tokens": tokens, "lengths": np.array(lengths, np.int32), "cos": tables[0], "sin": tables[1]}
        hidden, *present = session.run(None, feed | cache)
        cache.update(zip(cache, present, strict=True))
        return hidden

    # The shorter row's prompt is padded: what stands behind its length must not be seen later.
    prompt = np.full((2, max(PAST)), 11, np.int32)
    for row, past in enumerate(PAST):
        prompt[row, :past] = tokens[row][:past]
    forward(prompt, (0, 0))
    got = forward(np.stack([row[-width:] for row in tokens]).astype(np.int32), PAST)

    decoder = load_decoder(checkpoint)
    for row in (0, 1):
        with torch.inference_mode():
            expected = decoder.hidden(torch.from_numpy(tokens[row])[None])[0, -width:].numpy()
        np.testing.assert_allclose(got[row], expected, atol=5e-3 * np.abs(expected).max())
    assert [value.name for value in session.get_outputs()[1:]] == [name.replace("past", "present") for name in cache]


def test_head_equals_pytorch(tmp_path):
    rng = np.random.default_rng(0)
    weight, x = (rng.standard_normal(shape, np.float32) for shape in ((48, 64), (1, 3, 64)))
    graph = tensorrt.lower_head(trace_head(64, 48), lambda _: weight, "fp16")
    for _ in write_graph(graph, tmp_path, "head"):
        pass
    (got,) = ort.InferenceSession(tmp_path / "head.onnx").run(None, {"hidden": x})
    np.testing.assert_allclose(got, x @ weight.T, atol=0.03)


def test_a_weight_beyond_float16_is_refused(tmp_path):
    weight = np.full((48, 64), 1e6, np.float32)
    graph = tensorrt.lower_head(trace_head(64, 48), lambda _: weight, "fp16")
    with pytest.raises(CheckpointError, match=r"weight is beyond float16 \(1e\+06\)"):
        list(write_graph(graph, tmp_path, "head"))
