"""A quantised layer computes in eager PyTorch what its exported form computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from mgpt_edge.export.graphfile import write_graph
from mgpt_edge.export.lower.cpu import LOWERING
from mgpt_edge.export.quantise import int4, int8
from mgpt_edge.export.rounding import quantised_linear
from mgpt_edge.export.trace import trace_head
from mgpt_edge.runtime.engines.graphs import session_options
from mgpt_edge.runtime.errors import CheckpointError


def exported(weight: np.ndarray, precision: str, folder) -> ort.InferenceSession:
    graph = LOWERING.head(trace_head(weight.shape[1], weight.shape[0]), lambda _: weight, precision, None)
    for _ in write_graph(graph, folder, "head"):
        pass
    return ort.InferenceSession(folder / "head.onnx", session_options(1), providers=["CPUExecutionProvider"])


def test_int8_is_equal_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((96, 128)).astype(np.float32)
    x = rng.standard_normal((1, 7, 128)).astype(np.float32) * np.logspace(-3, 3, 7, dtype=np.float32)[:, None]
    x[0, 3] = 0
    (got,) = exported(weight, "int8", tmp_path).run(None, {"hidden": x})
    expected = quantised_linear(torch.from_numpy(weight), "int8", "cpu")(torch.from_numpy(x)).numpy()
    assert np.array_equal(got, expected)
    assert not got[0, 3].any()


def test_int8_token_does_not_depend_on_its_neighbours(tmp_path):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((64, 96)).astype(np.float32)
    x = rng.standard_normal((1, 33, 96)).astype(np.float32)
    session = exported(weight, "int8", tmp_path)
    whole = session.run(None, {"hidden": x})[0]
    for width in (1, 2, 5, 16):
        for start in range(0, 33, width):
            part = session.run(None, {"hidden": x[:, start : start + width]})[0]
            assert np.array_equal(part, whole[:, start : start + width])


def test_int4_unpacks_to_what_the_engine_computes(tmp_path):
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((48, 64)).astype(np.float32)
    x = rng.standard_normal((1, 3, 64)).astype(np.float32)
    (got,) = exported(weight, "int4", tmp_path).run(None, {"hidden": x})
    expected = x @ int4.unpack(*int4.pack(weight)).T
    assert np.abs(got - expected).max() <= 0.02 * np.abs(expected).max()  # the engine rounds x to 8 bits


def test_packing_error_is_half_a_step():
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((40, 64)).astype(np.float32)
    weight[5] = 0
    packed, scale = int8.pack(weight)
    assert np.all(np.abs(packed.T * scale[:, None] - weight) <= scale[:, None] * 0.5001)
    values, scales = int4.pack(weight)
    error = np.abs(int4.unpack(values, scales) - weight).reshape(40, 2, 32)
    # The side away from the extreme value ends at 7 steps, not 8.
    assert np.all(error <= np.abs(scales[..., None]) * 1.0001)
    assert np.mean(error <= np.abs(scales[..., None]) * 0.5001) > 0.95


def test_int4_refuses_a_width_it_cannot_pack():
    with pytest.raises(CheckpointError, match="--precision int8"):
        int4.pack(np.ones((4, 40), np.float32))


def test_codes_have_a_head_of_8_bits_beside_4(bundle_of):
    folder = bundle_of("7b", "int4", "cpu").folder
    image, text = (onnx.load(folder / f"head_{head}.onnx", load_external_data=False) for head in ("image", "text"))
    assert {"MatMulIntegerToFloat"} == {node.op_type for node in image.graph.node if "MatMul" in node.op_type}
    assert {"MatMulNBits"} == {node.op_type for node in text.graph.node if "MatMul" in node.op_type}
