"""The graph that TensorRT compiles, run by ONNX Runtime's CPU provider, against the PyTorch reference."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.graphfile import write_graph
from mgpt_edge.export.lower import tensorrt
from mgpt_edge.export.quantise import weight_only
from mgpt_edge.export.rounding import quantised_linear
from mgpt_edge.export.trace import trace_decoder, trace_head
from mgpt_edge.runtime.errors import CheckpointError
from mgpt_edge.runtime.family.rotary import rotary_tables
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


LARGEST = 3.0  # activations beyond it are cut off in w8a8 and fp8


def head(weight, precision, folder):
    graph = tensorrt.lower_head(trace_head(*weight.shape[::-1]), lambda _: weight, precision, lambda _: LARGEST)
    for _ in write_graph(graph, folder, "head"):
        pass
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # else it rounds the activations too
    return ort.InferenceSession(folder / "head.onnx", options)


@pytest.mark.parametrize(
    ("precision", "width"),
    [("fp16", 64), ("int8", 64), ("int8", 256), ("int4", 256), ("int4", 320), ("w8a8", 64), ("fp8", 64)],
)
def test_head_equals_pytorch(precision, width, tmp_path):
    """Also of a width that blocks of 4 bits don't divide."""
    rng = np.random.default_rng(0)
    weight, x = (rng.standard_normal(shape, np.float32) for shape in ((48, width), (1, 3, width)))
    weight[5] = 0
    (got,) = head(weight, precision, tmp_path).run(None, {"hidden": x})
    expected = quantised_linear(torch.from_numpy(weight), precision, "rtx", LARGEST)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max())


def test_nvfp4_equals_pytorch_by_the_reference_evaluator(tmp_path):
    """ONNX Runtime's CPU provider has no 4-bit floats."""
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((48, 64), np.float32), rng.uniform(-LARGEST, LARGEST, (1, 5, 64)).astype(np.float32)
    weight[5, 16:32] = x[0, 1, :16] = 0
    graph = tensorrt.lower_head(trace_head(64, 48), lambda _: weight, "nvfp4", lambda _: LARGEST)
    for _ in write_graph(graph, tmp_path, "head"):
        pass
    (got,) = ReferenceEvaluator(str(tmp_path / "head.onnx")).run(None, {"hidden": x})
    expected = quantised_linear(torch.from_numpy(weight), "nvfp4", "rtx", LARGEST)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max())
    assert 0.02 < np.abs(expected - x @ weight.T).max() / np.abs(expected).max() < 0.2


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("w8a8", 8), ("fp8", 8), ("int4", 4)])
def test_weights_of_few_bits_are_stored_as_such(precision, bits, tmp_path):
    head(np.random.default_rng(1).standard_normal((256, 512), np.float32), precision, tmp_path)
    scales = 256 * (4 if bits == 4 else 1) * 2
    assert (tmp_path / "head.data").stat().st_size == pytest.approx(256 * 512 * bits / 8 + scales, abs=4096)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([("int8", 96), ("int4", 128), ("int4", 256)]), st.integers(0, 2**32 - 1), st.floats(-6, 2))
def test_packing_is_off_by_half_a_step(form, seed, magnitude):
    precision, width = form
    rng = np.random.default_rng(seed)
    weight = (10**magnitude * rng.standard_normal((8, width))).astype(np.float32)
    values, scales = weight_only.pack(weight, weight_only.bits_of(precision, width))
    step = np.repeat(scales.astype(np.float32), width // len(scales), axis=0)
    error = np.abs(values * step - weight.T)
    assert (error <= step * 0.5001).all()


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4", "fp8"])
@pytest.mark.parametrize(("value", "said"), [(1e6, r"1e\+06"), (np.nan, "nan")])
def test_a_weight_beyond_float16_is_refused(precision, value, said, tmp_path):
    with pytest.raises(CheckpointError, match=rf"weight is beyond float16 \({said}\)"):
        head(np.full((48, 128), value, np.float32), precision, tmp_path)
