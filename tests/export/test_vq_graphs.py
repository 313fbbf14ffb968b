"""The VQ graphs compute what the PyTorch VQGAN computes, at any height and width."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.vqgan import VQGAN
from mgpt_edge.runtime.engines import load_engine
from mgpt_edge.runtime.engines.cpu import CpuEngine

SIZES = [(32, 32), (64, 96), (160, 32), (128, 128)]


@pytest.fixture(scope="module")
def engine(bundle_of):
    return CpuEngine(bundle_of("7b", "fp32"), threads=2)


@pytest.fixture(scope="module")
def vqgan(checkpoints):
    vq = Checkpoint.open(checkpoints["7b"]).vq
    model = VQGAN(vq.config).eval()
    model.load_state_dict({name: vq.load(name) for name in vq.shapes})
    return model


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_decoder(engine, vqgan, width, height):
    stride = vqgan.config.stride
    codes = np.random.default_rng(0).integers(0, vqgan.config.codes, (height // stride, width // stride))
    with torch.inference_mode():
        expected = vqgan.decode_pixels(torch.from_numpy(codes)[None])[0].numpy()
    got = engine.decode_pixels(codes)
    assert got.shape == (height, width, 3)
    assert got.dtype == np.uint8
    # Truncation to whole levels may fall on the other side of one.
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert np.mean(got == expected) > 0.99


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_encoder(engine, vqgan, width, height):
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = vqgan.encode_pixels(torch.from_numpy(pixels)[None])[0].numpy()
    got = engine.encode_pixels(pixels)
    assert got.shape == (height // vqgan.config.stride, width // vqgan.config.stride)
    # Rounding may choose the other of two codes that are equally near.
    assert np.mean(got == expected) > 0.99


def test_weights_of_half_the_bytes_beside_4_bits(engine, bundle_of):
    """The same pictures but for a level of a few pixels."""
    narrow = bundle_of("7b", "int4")
    for name in ("vq_decoder.data", "vq_encoder.data"):
        whole = engine.bundle.manifest.files[name].bytes
        assert narrow.manifest.files[name].bytes < 0.65 * whole  # each begins on a page of its own
    codes = np.random.default_rng(0).integers(0, engine.bundle.manifest.vocabulary.codes, (8, 8))
    got, expected = (side.decode_pixels(codes).astype(int) for side in (load_engine(narrow, 1), engine))
    assert np.abs(got - expected).max() <= 1
    assert np.mean(got == expected) > 0.9
