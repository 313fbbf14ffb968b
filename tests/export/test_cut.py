"""A decoder in parts computes what the whole does."""

from __future__ import annotations

import shutil

import numpy as np
import onnxruntime as ort
import pytest

from mgpt_edge.export.cut import cut, layers_of

ROWS, WIDTH = 2, 3
KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}


def run(path, given):
    """Outputs by name; inputs are taken from `given`, which gets the outputs."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    outputs = session.run(names, {value.name: given[value.name] for value in session.get_inputs()})
    given.update(zip(names, outputs, strict=True))
    return given


def inputs_of(path):
    rng, given = np.random.default_rng(0), {}
    for value in ort.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs():
        shape = [{"rows": ROWS, "width": WIDTH}.get(size, size) for size in value.shape]
        kind = KINDS[value.type]
        whole = np.issubdtype(kind, np.integer)
        given[value.name] = rng.integers(1, 20, shape).astype(kind) if whole else rng.normal(size=shape).astype(kind)
    return given


@pytest.mark.parametrize(
    ("kind", "precision", "engine"),
    [("7b", "fp16", "rtx"), ("34b", "fp16", "rtx"), ("7b", "int8", "rtx"), ("7b", "fp16", "tensorrt10")],
)
def test_parts_compute_what_the_whole_does(kind, precision, engine, bundle_of, tmp_path):
    bundle = bundle_of(kind, precision, engine)
    whole, layers = bundle.folder / "decoder.onnx", bundle.manifest.dimensions.layers
    expected = run(whole, inputs_of(whole))
    shutil.copy(bundle.path("decoder.data"), tmp_path)
    given = inputs_of(whole)
    for number, part in enumerate(cut(whole, layers)):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(part.SerializeToString())
        assert layers_of(part) == {number}
        run(path, given)
    assert layers > 1
    for name, value in expected.items():
        assert np.array_equal(value, given[name]), name
