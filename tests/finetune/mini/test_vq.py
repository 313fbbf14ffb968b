"""The VQGAN: Meta's names, any size, and a training that learns and resumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mgpt_edge.export.vqgan import VQGAN, VQConfig
from mgpt_edge.finetune.mini.vq import Codebook, Source, VQRecipe, VQTraining, each_psnr, measure, small_vq
from mgpt_edge.finetune.mini.world import render, sample_scene

if TYPE_CHECKING:
    from pathlib import Path

TINY = VQConfig(
    channels=8, channel_multipliers=(1, 1, 2), residual_blocks=1, z_channels=16, embed_dim=8, codes=32, groups=4
)


def pictures(count: int, side: int = 32) -> np.ndarray:
    return np.stack([render(sample_scene(seed), side, side).picture for seed in range(count)])


def test_the_familys_keys_and_shapes() -> None:
    config = VQConfig(
        channels=128,
        channel_multipliers=(1, 1, 2, 2, 4),
        residual_blocks=2,
        z_channels=256,
        embed_dim=256,
        codes=8192,
        resolution=512,
    )
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in VQGAN(config).state_dict().items()}
    expected = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
        "encoder.down.2.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.4.block.1.conv2.bias": (512,),
        "encoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "encoder.norm_out.weight": (512,),
        "encoder.conv_out.weight": (256, 512, 3, 3),
        "decoder.conv_in.weight": (512, 256, 3, 3),
        "decoder.mid.block_2.norm1.weight": (512,),
        "decoder.up.4.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.up.3.block.0.nin_shortcut.weight": (256, 512, 1, 1),
        "decoder.up.1.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.up.0.block.2.conv1.weight": (128, 128, 3, 3),
        "decoder.conv_out.weight": (3, 128, 3, 3),
        "quantize.embedding.weight": (8192, 256),
        "quant_conv.weight": (256, 256, 1, 1),
        "post_quant_conv.bias": (256,),
    }
    assert expected.items() <= shapes.items()
    for absent in ("encoder.down.4.downsample.conv.weight", "decoder.up.0.upsample.conv.weight"):
        assert absent not in shapes
    assert not [name for name in shapes if ".attn." in name]
    assert config.stride == 16


def test_attention_at_named_resolutions() -> None:
    config = VQConfig(
        channels=8,
        channel_multipliers=(1, 2),
        residual_blocks=1,
        z_channels=8,
        embed_dim=4,
        codes=8,
        groups=4,
        attention_resolutions=(16,),
        resolution=32,
    )
    names = set(VQGAN(config).state_dict())
    assert "encoder.down.1.attn.0.q.weight" in names
    assert "decoder.up.1.attn.1.proj_out.bias" in names
    assert "encoder.down.0.attn.0.q.weight" not in names
    assert VQGAN(config).decode(VQGAN(config).encode(torch.zeros(1, 3, 32, 32))).shape == (1, 3, 32, 32)


def test_yaml_round_trip() -> None:
    assert VQConfig.from_yaml(small_vq().to_yaml()) == small_vq()
    with pytest.raises(ValueError, match="n_embed"):
        VQConfig.from_yaml({"model": {"params": {"ddconfig": {"ch": 8, "ch_mult": [1], "num_res_blocks": 1,
                                                              "z_channels": 8}, "embed_dim": 4}}})  # fmt: skip
    with pytest.raises(ValueError, match="equal groups"):
        VQConfig(channels=10, channel_multipliers=(1,), residual_blocks=1, z_channels=4, embed_dim=4, codes=4, groups=4)


def test_pixels_of_any_size() -> None:
    model = VQGAN(TINY).eval()
    pixels = torch.randint(0, 256, (2, 32, 48, 3), dtype=torch.uint8)
    codes = model.encode_pixels(pixels)
    assert codes.shape == (2, 8, 12)
    assert codes.dtype == torch.int64
    drawn = model.decode_pixels(codes)
    assert drawn.shape == pixels.shape
    assert drawn.dtype == torch.uint8


def test_pixels_are_truncated_not_rounded() -> None:
    model = VQGAN(TINY)
    torch.nn.init.zeros_(model.decoder.conv_out.weight)
    torch.nn.init.constant_(model.decoder.conv_out.bias, 0.999)
    assert model.decode_pixels(torch.zeros(1, 2, 2, dtype=torch.int64)).unique().tolist() == [254]


def test_nearest_code() -> None:
    model = VQGAN(TINY)
    latents = torch.randn(2, 8, 3, 3)
    rows = latents.permute(0, 2, 3, 1).flatten(0, 2)
    expected = torch.cdist(rows, model.quantize.embedding.weight).argmin(1).view(2, 3, 3)
    assert torch.equal(model.quantize(latents), expected)


def test_codebook_follows_and_restarts() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.cat([torch.full((50, 2), -1.0), torch.full((50, 2), 1.0)]) + 0.01 * torch.randn(100, 2)
    table = torch.nn.Parameter(torch.zeros(4, 2), requires_grad=False)
    book = Codebook(table, decay=0.5, restart_below=0.2)
    book.start(latents, generator)
    assert torch.cdist(latents, table).min(1).values.max() < 0.1
    table.data[0] = 100.0
    book.sums[0], book.counts[0] = 0.0, 0.0
    book.follow(latents, torch.cdist(latents, table).argmin(1), generator)
    assert table.abs().max() < 1.1


def recipe(steps: int) -> VQRecipe:
    return VQRecipe(config=TINY, steps=steps, batch=4, warmup_steps=6, crop=32)


def train(folder: Path, stop: int, resume: bool = False) -> list[float]:
    training = VQTraining(recipe(40), [Source(pictures(8))], folder)
    assert training.resume() == resume
    torch.set_num_threads(1)
    records = []
    while training.step < stop:
        records.append(training.train_step()["loss"])
    training.save()
    return records


def test_training_learns_and_resumes_alike(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 14)
    assert np.mean(whole[-3:]) < 0.6 * whole[0]
    train(tmp_path / "cut", 8)
    assert train(tmp_path / "cut", 14, resume=True) == whole[8:]


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    train(tmp_path, 1)
    with pytest.raises(ValueError, match="another recipe"):
        VQTraining(recipe(41), [Source(pictures(8))], tmp_path).resume()


def test_psnr_is_each_pictures_own() -> None:
    black = np.zeros((2, 8, 4, 3), np.uint8)
    drawn = black + np.array([5, 100], np.uint8)[:, None, None, None]
    assert each_psnr(drawn, black) == pytest.approx([20 * np.log10(255 / 5), 20 * np.log10(255 / 100)], abs=1e-4)


def test_measure_counts_codes() -> None:
    figures = measure(VQGAN(TINY).eval(), pictures(3))
    assert 0 < figures["codes_used"] <= 1
    assert 0 < figures["psnr"] < 60
