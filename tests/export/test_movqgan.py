"""MoVQGAN against diffusers' VQ model with spatially conditioned norms, and the published file's names and shapes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from diffusers import VQModel
from safetensors.torch import save_file

from mgpt_edge.export.shards import Shards
from mgpt_edge.export.vqfiles import HELP, VQFiles, vq_shapes
from mgpt_edge.export.vqgan import MOVQGAN_270M, VQGAN, VQConfig
from mgpt_edge.runtime.errors import CheckpointError
from mgpt_edge.runtime.family.layout import buckets
from tests.export.test_vq_encoder import NARROW, compiled, picture

if TYPE_CHECKING:
    from pathlib import Path

# The published one, as narrow as 32 groups allow: attention at the coarsest of its four levels.
LIKE_FAMILY = replace(MOVQGAN_270M, channels=32, codes=64)
# Of diffusers' names, the parts that it calls otherwise than the family.
RENAMED = {
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1": "mid_block.attentions.0",
    "nin_shortcut": "conv_shortcut",
    ".block.": ".resnets.",
    ".attn.": ".attentions.",
    ".upsample.": ".upsamplers.0.",
    ".downsample.": ".downsamplers.0.",
    ".q.": ".to_q.",
    ".k.": ".to_k.",
    ".v.": ".to_v.",
    "proj_out": "to_out.0",
    "encoder.norm_out": "encoder.conv_norm_out",
    "decoder.norm_out": "decoder.conv_norm_out",
}


def diffusers_model(config: VQConfig) -> VQModel:
    widths, levels = config.widths, len(config.widths)
    return VQModel(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * (levels - 1) + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * (levels - 1),
        layers_per_block=config.residual_blocks,
        latent_channels=config.z_channels,
        vq_embed_dim=config.embed_dim,
        num_vq_embeddings=config.codes,
        norm_num_groups=config.groups,
        norm_type="spatial",
    ).eval()


def diffusers_name(name: str, levels: int) -> str:
    for level in range(levels):
        name = name.replace(f"decoder.up.{level}.", f"decoder.up_blocks.{levels - 1 - level}.")
        name = name.replace(f"encoder.down.{level}.", f"encoder.down_blocks.{level}.")
    for ours, theirs in RENAMED.items():
        name = name.replace(ours, theirs)
    # In an attention the norm's own name depends on its kind.
    attention = name.replace(".norm.", ".group_norm." if name.startswith("encoder") else ".spatial_norm.")
    return attention if ".attentions." in name else name


@pytest.fixture(scope="module")
def ours() -> VQGAN:
    torch.manual_seed(0)
    model = VQGAN(LIKE_FAMILY).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".norm" in name:  # of all kinds: torch's ones and zeros would hide a wrong name
                weight.add_(0.3 * torch.randn_like(weight))
        model.quantize.embedding.weight.normal_()
    return model


@pytest.fixture(scope="module")
def theirs(ours: VQGAN) -> VQModel:
    model = diffusers_model(LIKE_FAMILY)
    expected = model.state_dict()
    state = {diffusers_name(name, 4): weight for name, weight in ours.state_dict().items()}
    # Convolutions over single positions are linear layers there.
    model.load_state_dict({name: weight.reshape(expected[name].shape) for name, weight in state.items()}, strict=True)
    return model


@pytest.mark.parametrize(("high", "wide"), [(4, 4), (3, 6), (8, 2)])
@torch.inference_mode()
def test_the_decoder_equals_diffusers(high, wide, ours, theirs):
    codes = torch.from_numpy(np.random.default_rng(high).integers(0, LIKE_FAMILY.codes, (1, high, wide)))
    rows = ours.quantize.embedding(codes).permute(0, 3, 1, 2)
    expected = theirs.decode(rows, force_not_quantize=True).sample
    assert expected.shape == (1, 3, 8 * high, 8 * wide)
    torch.testing.assert_close(ours.decode(codes), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_the_encoder_equals_diffusers(ours, theirs):
    image = torch.rand(1, 3, 64, 96) * 2 - 1
    latents = theirs.encode(image).latents
    torch.testing.assert_close(ours.encoder(image), theirs.encoder(image), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.latents(image), latents, rtol=1e-4, atol=1e-4)
    expected = theirs.quantize(latents)[2][2].view(1, 8, 12)
    assert torch.equal(ours.encode(image), expected)


@torch.inference_mode()
def test_compiled_it_draws_and_reads_the_same(ours, tmp_path):
    decode, encode = compiled(ours, "vq_decoder", tmp_path), compiled(ours, "vq_encoder", tmp_path)
    for width, height in ((32, 32), (96, 64), (32, 96)):
        codes = np.random.default_rng(width).integers(0, LIKE_FAMILY.codes, (height // 8, width // 8))
        image = ours.decode(torch.from_numpy(codes)[None])[0].permute(1, 2, 0).numpy()
        exact = np.clip((image + 1) * 127.5, 0, 255)
        drawn = decode(codes)
        assert (drawn.shape, drawn.dtype) == ((height, width, 3), np.uint8)
        assert np.abs(drawn - exact).max() <= 0.5 + 1e-2  # rounded, not cut off
        pixels = picture(width, height)
        expected = ours.encode_pixels(torch.from_numpy(pixels)[None])[0].numpy()
        assert np.mean(encode(pixels) == expected) > 0.99


def test_sizes_of_all_shapes_there_and_back(tmp_path):
    torch.manual_seed(0)
    model = VQGAN(replace(NARROW, channel_multipliers=(1, 1, 1, 1), modulated=True)).eval()
    encode, decode = compiled(model, "vq_encoder", tmp_path), compiled(model, "vq_decoder", tmp_path)
    for width, height in buckets(512)[::8]:
        codes = encode(picture(width, height))
        assert codes.shape == (height // 8, width // 8)
        assert decode(codes).shape == (height, width, 3)


def test_the_published_model_has_the_published_shapes():
    shapes = vq_shapes(MOVQGAN_270M)
    assert MOVQGAN_270M.stride == 8
    assert shapes["quantize.embedding.weight"] == (16384, 4)
    assert shapes["post_quant_conv.weight"] == (4, 4, 1, 1)
    assert shapes["decoder.conv_in.weight"] == (1024, 4, 3, 3)
    assert shapes["decoder.mid.attn_1.norm.conv_y.weight"] == (1024, 4, 1, 1)
    assert shapes["decoder.up.3.attn.2.norm.norm_layer.weight"] == (1024,)
    assert shapes["decoder.up.2.block.0.norm1.conv_b.bias"] == (1024,)
    assert shapes["decoder.norm_out.conv_b.weight"] == (256, 4, 1, 1)
    assert shapes["encoder.down.3.attn.1.norm.weight"] == (1024,)
    assert "encoder.down.2.attn.0.norm.weight" not in shapes
    assert sum(map(math.prod, shapes.values())) == pytest.approx(270e6, rel=0.01)


def test_the_yaml_says_which_kind_it_is():
    document = MOVQGAN_270M.to_yaml()
    assert document["model"]["target"] == "movqgan.models.vqgan.MOVQ"
    assert VQConfig.from_yaml(document) == MOVQGAN_270M
    assert "target" not in NARROW.to_yaml()["model"]


def published(folder: Path, **extra: torch.Tensor) -> Path:
    """The published file's names and shapes, in no memory to speak of."""
    state = {name: torch.zeros(1).expand(shape) for name, shape in vq_shapes(MOVQGAN_270M).items()}
    torch.save(state | extra, folder / "movqgan_270M.ckpt")
    return folder / "movqgan_270M.ckpt"


def test_the_published_file_needs_no_yaml(tmp_path, recwarn):
    file = published(tmp_path, **{"ema_decoder.decay": torch.zeros(1), "loss.logvar": torch.zeros(1)})
    for place in (tmp_path, file):
        found = VQFiles.find(tmp_path, place, Shards({}), None)
        assert (found.config, found.files, found.has_decoder) == (MOVQGAN_270M, (file,), True)
        assert found.load("decoder.norm_out.conv_y.bias").shape == (256,)
    assert not recwarn.list


def test_a_file_of_another_model_is_refused(tmp_path):
    save_file({"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3)}, tmp_path / "movqgan_270M.safetensors")
    with pytest.raises(CheckpointError, match="tensors of the VQ model are missing"):
        VQFiles.find(tmp_path, None, Shards({}), None)
    with pytest.raises(CheckpointError, match=r"movqgan_270M\.ckpt is here.*ai-forever/MoVQGAN"):
        VQFiles.find(tmp_path, tmp_path.parent, Shards({}), None)
    assert "movqgan_270M.ckpt" in HELP
