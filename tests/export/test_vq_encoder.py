"""The compiled VQ encoder against transformers' Chameleon, and every size of the family there and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

from mgpt_edge.export import trace
from mgpt_edge.export.checkpoint import to_array
from mgpt_edge.export.graphfile import write_graph
from mgpt_edge.export.lower.vq import lower_vq
from mgpt_edge.export.vqgan import CHAMELEON, VQGAN, VQConfig
from mgpt_edge.runtime.family.layout import buckets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[[np.ndarray], np.ndarray]

# As narrow as GroupNorm's 32 groups in transformers allow, with the family's five levels.
LIKE_FAMILY = VQConfig(
    channels=32,
    channel_multipliers=(1, 1, 2, 2, 4),
    residual_blocks=2,
    z_channels=32,
    embed_dim=32,
    codes=256,
    resolution=512,
)
NARROW = VQConfig(
    channels=2,
    channel_multipliers=(1, 1, 1, 1, 1),
    residual_blocks=1,
    z_channels=2,
    embed_dim=2,
    codes=8,
    groups=1,
    resolution=64,
)


def compiled(model: VQGAN, half: str, folder: Path) -> Run:
    """One of the VQ graphs, alone."""
    traced = {"vq_encoder": trace.trace_vq_encoder, "vq_decoder": trace.trace_vq_decoder}[half](model.config)
    weights = model.state_dict()
    graph = lower_vq(traced, lambda name: to_array(weights[name.removeprefix("module.")]))
    for _ in write_graph(graph, folder, half):
        pass
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(folder / f"{half}.onnx", options, providers=["CPUExecutionProvider"])
    return lambda array: session.run(None, {session.get_inputs()[0].name: array[None]})[0][0]


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_codes_equal_transformers(tmp_path):
    config = LIKE_FAMILY
    torch.manual_seed(0)
    theirs = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            base_channels=config.channels,
            channel_multiplier=list(config.channel_multipliers),
            num_res_blocks=config.residual_blocks,
            latent_channels=config.z_channels,
            embed_dim=config.embed_dim,
            num_embeddings=config.codes,
            resolution=config.resolution,
        )
    ).eval()
    ours = VQGAN(config).eval()
    with torch.no_grad():
        # A codebook where the latents are, or all would be nearest to the same few codes.
        latents = ours.latents(torch.rand(1, 3, 256, 256) * 2 - 1)[0].flatten(1).T
        ours.quantize.embedding.weight.copy_(latents + 0.1 * latents.std() * torch.randn_like(latents))
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert missing == []
    assert all(name.startswith("decoder.") for name in unexpected)
    encode = compiled(ours, "vq_encoder", tmp_path)
    for width, height in ((64, 64), (96, 32), (32, 128)):
        pixels = picture(width, height)
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 * 2 - 1
        with torch.inference_mode():
            table = theirs.quantize.embedding.weight
            latents = theirs.quant_conv(theirs.encoder(image))[0].permute(1, 2, 0)
            expected = theirs.encode(image).image_tokens.view(latents.shape[:2])
            two = torch.cdist(latents.flatten(0, 1), table).topk(2, largest=False).values.view(*latents.shape[:2], 2)
        codes = encode(pixels)
        assert len(np.unique(codes)) > codes.size // 4
        # Where two codes are equally near, rounding chooses.
        clear = (two[..., 1] - two[..., 0] > 1e-3 * two[..., 0]).numpy()
        assert clear.mean() > 0.9
        assert np.array_equal(codes[clear], expected.numpy()[clear])


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> tuple[Run, Run]:
    folder = tmp_path_factory.mktemp("narrow")
    torch.manual_seed(0)
    model = VQGAN(NARROW).eval()
    return compiled(model, "vq_encoder", folder), compiled(model, "vq_decoder", folder)


def keeps_size(halves: tuple[Run, Run], width: int, height: int) -> None:
    encode, decode = halves
    codes = encode(picture(width, height))
    assert codes.shape == (height // 16, width // 16)
    assert decode(codes).shape == (height, width, 3)


@pytest.mark.parametrize(
    "target", [512, pytest.param(768, marks=pytest.mark.slow), pytest.param(1024, marks=pytest.mark.slow)]
)
def test_every_bucket_there_and_back(target, narrow):
    for width, height in buckets(target):
        keeps_size(narrow, width, height)


@pytest.mark.slow
def test_the_real_shape_there_and_back(tmp_path):
    torch.manual_seed(0)
    model = VQGAN(CHAMELEON).eval()
    halves = compiled(model, "vq_encoder", tmp_path), compiled(model, "vq_decoder", tmp_path)
    for width, height in ((512, 512), (1024, 256), (288, 896)):
        keeps_size(halves, width, height)
