"""The graph that TensorRT 10 compiles, run by ONNX Runtime's CPU provider, against the PyTorch reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from mgpt_edge.export import compiler
from mgpt_edge.export.checkpoint import Checkpoint, to_array
from mgpt_edge.export.graphfile import write_graph
from mgpt_edge.export.lower import tensorrt10
from mgpt_edge.export.lower.vq import lower_vq
from mgpt_edge.export.targets import Rtx
from mgpt_edge.export.trace import trace_decoder, trace_vq_decoder
from mgpt_edge.runtime.family.rotary import rotary_tables
from tests.families import write_checkpoint
from tests.reference import load_decoder

CAPACITY = 64
PAST = (21, 7)  # rows are ragged
TAKEN = {
    *("Add", "And", "Cast", "Concat", "Constant", "DequantizeLinear", "Div", "Expand", "Gather", "GreaterOrEqual"),
    *("LayerNormalization", "Less", "LessOrEqual", "MatMul", "Mul", "Or", "QuantizeLinear", "Range", "ReduceMean"),
    *("Reshape", "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze"),
    "Where",
}
"""Operators that the documentation of TensorRT 10's parser lists, of those needed here."""


@pytest.fixture(scope="module", params=["7b", "34b"])
def checkpoint(request, checkpoints):
    return Checkpoint.open(checkpoints[request.param])


def lowered(checkpoint, precision, folder):
    graph = trace_decoder(checkpoint.config, checkpoint.norm_groups)
    graph = tensorrt10.lower_decoder(graph, checkpoint.array, precision, CAPACITY, lambda _: 4.0)
    for _ in write_graph(graph, folder, "decoder"):
        pass
    return folder / "decoder.onnx"


@pytest.fixture(scope="module")
def session(checkpoint, tmp_path_factory):
    return ort.InferenceSession(
        lowered(checkpoint, "fp16", tmp_path_factory.mktemp("tensorrt10")), providers=["CPUExecutionProvider"]
    )


class Rows:
    """Runs passes, and puts the new keys and values into the cache as the CUDA code does."""

    def __init__(self, session, config):
        self.session = session
        self.tables = rotary_tables(CAPACITY, config.head_dim, config.rope_theta)
        self.cache = {
            value.name: np.full([2, *value.shape[1:]], 9, np.float16)  # what was there before must not be seen
            for value in session.get_inputs()
            if value.name.startswith("past")
        }

    def forward(self, tokens, lengths, totals):
        feed = {"tokens": tokens, "lengths": np.array(lengths, np.int32), "cos": self.tables[0], "sin": self.tables[1]}
        hidden, *fresh = self.session.run(None, feed | self.cache)
        for cache, new in zip(self.cache.values(), fresh, strict=True):
            for row, (length, total) in enumerate(zip(lengths, totals, strict=True)):
                cache[row, :, length:total] = new[row, :, : total - length]
        return hidden


@pytest.mark.parametrize("width", [1, 2, 16])
def test_equals_pytorch_on_ragged_rows(width, checkpoint, session):
    rng = np.random.default_rng(width)
    tokens = [rng.integers(10, checkpoint.vocabulary.size, past + width) for past in PAST]
    rows = Rows(session, checkpoint.config)
    prompt = np.full((2, max(PAST)), 11, np.int32)
    for row, past in enumerate(PAST):
        prompt[row, :past] = tokens[row][:past]
    rows.forward(prompt, (0, 0), PAST)
    got = rows.forward(np.stack([row[-width:] for row in tokens]).astype(np.int32), PAST, PAST)

    decoder = load_decoder(checkpoint)
    for row in (0, 1):
        with torch.inference_mode():
            expected = decoder.hidden(torch.from_numpy(tokens[row])[None])[0, -width:].numpy()
        np.testing.assert_allclose(got[row], expected, atol=5e-3 * np.abs(expected).max())
    fresh = [name.replace("past", "fresh") for name in rows.cache]
    assert [value.name for value in session.get_outputs()] == ["hidden", *fresh]


@pytest.mark.parametrize("precision", tensorrt10.LOWERING.precisions)
def test_only_operators_that_the_old_parser_takes(precision, checkpoint, tmp_path):
    model = onnx.load(lowered(checkpoint, precision, tmp_path))
    assert {node.op_type for node in model.graph.node} <= TAKEN
    assert not model.functions
    assert {(opset.domain, opset.version) for opset in model.opset_import} == {("", 21 if precision == "int4" else 20)}
    ort.InferenceSession(tmp_path / "decoder.onnx", providers=["CPUExecutionProvider"])  # they exist in that opset


@pytest.mark.parametrize("precision", ["int4", "w8a8"])
def test_a_newer_tensorrt_takes_it_without_a_warning(precision, checkpoint, tmp_path):
    """TensorRT 10 itself was never at hand; this one has its parser's successor."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'mgpt-edge[rtx]'")
    path = lowered(checkpoint, precision, tmp_path)
    widths = [{"rows": (2, 2, 2), "width": sizes} for sizes in ((1, 1, 1), (2, 16, 32))]
    assert compiler.compile_graph(Rtx("rtx", [89]), path, widths, attentions=0, progress=lambda *_: None)


def test_norms_of_groups_are_split(tmp_path):
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path))
    config = checkpoint.vq.config

    def decoded(change, name):
        graph = lower_vq(
            trace_vq_decoder(config), lambda key: to_array(checkpoint.vq.load(key.removeprefix("module.")))
        )
        for _ in write_graph(change(graph), tmp_path, name):
            pass
        codes = np.arange(12).reshape(1, 3, 4)
        session = ort.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        return {node.op_type for node in graph.graph}, session.run(None, {"codes": codes})[0].astype(int)

    (_, expected), (kinds, got) = decoded(lambda graph: graph, "whole"), decoded(tensorrt10.split_group_norms, "split")
    assert "GroupNormalization" not in kinds
    assert np.abs(got - expected).max() <= 1
