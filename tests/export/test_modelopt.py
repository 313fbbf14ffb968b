"""Scales and rounded values, against nvidia-modelopt's where that is installed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from mgpt_edge.export.quantise import fp8, int8, nvfp4


@pytest.fixture(scope="module")
def qtensor():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("modelopt.torch.quantization.qtensor", reason="pip install nvidia-modelopt")


@pytest.fixture(scope="module")
def weight():
    """Channels of very different size."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(40, 64)) * np.exp(rng.normal(size=(40, 1)))).astype(np.float32)


def test_int8(qtensor, weight):
    theirs, scales = qtensor.INT8QTensor.quantize(torch.from_numpy(weight), axis=0)
    values, ours = int8.pack(weight)
    np.testing.assert_allclose(ours, scales.flatten(), rtol=1e-6)
    np.testing.assert_array_equal(values.T, theirs._quantized_data)


def test_fp8(qtensor, weight):
    """Our scales are float16, so theirs agree to half of its last bit; under ours they round alike."""
    values, ours = fp8.pack(weight)
    _, scales = qtensor.FP8QTensor.quantize(torch.from_numpy(weight), axis=0)
    np.testing.assert_allclose(ours.astype(np.float32), scales.flatten(), rtol=2**-10)
    given = torch.from_numpy(ours.astype(np.float32))[:, None]
    theirs, _ = qtensor.FP8QTensor.quantize(torch.from_numpy(weight), scales=given, axis=0)
    np.testing.assert_array_equal(values.T.astype(np.float32), theirs._quantized_data.float())


def test_nvfp4(qtensor, weight):
    theirs, scales, above = qtensor.NVFP4QTensor.quantize(torch.from_numpy(weight), nvfp4.BLOCK)
    values, ours, ours_above = nvfp4.pack(weight)
    assert ours_above == pytest.approx(float(above), rel=1e-6)
    np.testing.assert_array_equal(ours.T.astype(np.float32), scales.float())
    packed = theirs._quantized_data
    codes = torch.stack((packed & 15, packed >> 4), -1).flatten(-2).numpy()
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    found = np.where(codes & 8, -1, 1) * magnitudes[codes & 7]
    np.testing.assert_array_equal(values.T.astype(np.float32), found)
