"""The family's VQGAN in plain PyTorch: pictures to codes and codes to pictures.

The architecture is taming-transformers' (arXiv 2012.09841), module names included, so that state-dict keys are those of
Meta's `vqgan.ckpt`. Widths, depth and the number of GroupNorm groups are data: the family's file says 128 channels in
32 groups, a small one says less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class VQConfig:
    """Dimensions of a VQGAN.

    Attributes:
        channels: Width of the finest level; level l has `channels * channel_multipliers[l]`.
        residual_blocks: Blocks a level in the encoder; the decoder has one more.
        attention_resolutions: Sides of the feature maps, at the nominal `resolution`, whose blocks are followed by
            attention. The attention in the middle is always there.
        z_channels: Width between the network and the 1x1 convolutions around the codebook.
        embed_dim: Length of a codebook row.
        groups: GroupNorm groups; every level's width is a multiple.
        resolution: Nominal side in pixels; pictures of any size pass.
    """

    channels: int
    channel_multipliers: tuple[int, ...]
    residual_blocks: int
    z_channels: int
    embed_dim: int
    codes: int
    attention_resolutions: tuple[int, ...] = ()
    groups: int = 32
    in_channels: int = 3
    out_channels: int = 3
    resolution: int = 256

    def __post_init__(self) -> None:
        numbers = ("channels", "residual_blocks", "z_channels", "embed_dim", "codes", "groups", "in_channels",
                   "out_channels", "resolution")  # fmt: skip
        for name in numbers:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                msg = f"VQ config: {name} must be a whole number from 1, got {value!r}"
                raise ValueError(msg)
        if not self.channel_multipliers or any(not isinstance(m, int) or m < 1 for m in self.channel_multipliers):
            msg = f"VQ config: channel multipliers must be whole numbers, got {self.channel_multipliers!r}"
            raise ValueError(msg)
        for width in self.widths:
            if width % self.groups:
                msg = f"VQ config: {width} channels can't form {self.groups} equal groups"
                raise ValueError(msg)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the finest first."""
        return tuple(self.channels * m for m in self.channel_multipliers)

    @property
    def stride(self) -> int:
        """Pixels a code covers on each side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @classmethod
    def from_yaml(cls, document: Mapping[str, Any]) -> VQConfig:
        """Reads the parsed `vqgan.yaml` of taming-transformers (`model.params`); `num_groups` is an addition of ours.

        Raises:
            ValueError: A key is missing, or asks for something this network does not do.
        """
        try:
            params = document["model"]["params"]
            network = params["ddconfig"]
            if network.get("double_z", False):
                msg = "VQ config: double_z is a KL autoencoder's, a VQGAN has none"
                raise ValueError(msg)
            return cls(
                channels=network["ch"],
                channel_multipliers=tuple(network["ch_mult"]),
                residual_blocks=network["num_res_blocks"],
                attention_resolutions=tuple(network.get("attn_resolutions", ())),
                z_channels=network["z_channels"],
                embed_dim=params["embed_dim"],
                codes=params["n_embed"],
                groups=network.get("num_groups", 32),
                in_channels=network.get("in_channels", 3),
                out_channels=network.get("out_ch", 3),
                resolution=network.get("resolution", 256),
            )
        except (KeyError, TypeError, AttributeError) as error:
            msg = f"VQ config: expected taming's vqgan.yaml with model.params.ddconfig, failed at {error}"
            raise ValueError(msg) from error

    def to_yaml(self) -> dict[str, Any]:
        """The document that `from_yaml` reads."""
        network = {
            "double_z": False,
            "z_channels": self.z_channels,
            "resolution": self.resolution,
            "in_channels": self.in_channels,
            "out_ch": self.out_channels,
            "ch": self.channels,
            "ch_mult": list(self.channel_multipliers),
            "num_res_blocks": self.residual_blocks,
            "attn_resolutions": list(self.attention_resolutions),
            "dropout": 0.0,
            "num_groups": self.groups,
        }
        return {"model": {"params": {"embed_dim": self.embed_dim, "n_embed": self.codes, "ddconfig": network}}}


class VQGAN(nn.Module):
    """Encoder, codebook and decoder."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.codes, config.embed_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def latents(self, image: Tensor) -> Tensor:
        """Picture [B, 3, H, W] in [-1, 1] -> what the codebook is compared with, [B, embed_dim, h, w]."""
        return self.quant_conv(self.encoder(image))

    def encode(self, image: Tensor) -> Tensor:
        """Picture [B, 3, H, W] in [-1, 1] -> codes [B, h, w], int64."""
        return self.quantize(self.latents(image))

    def picture(self, latents: Tensor) -> Tensor:
        """Codebook rows [B, embed_dim, h, w] -> picture [B, 3, H, W], about [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, h, w] -> picture [B, 3, H, W], about [-1, 1]."""
        return self.picture(self.quantize.embedding(codes).permute(0, 3, 1, 2))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels [B, H, W, 3], uint8 -> codes [B, h, w]."""
        return self.encode(pixels.permute(0, 3, 1, 2).float() / 255 * 2 - 1)

    def decode_pixels(self, codes: Tensor) -> Tensor:
        """Codes [B, h, w] -> pixels [B, H, W, 3], uint8; truncated, as the reference does."""
        image = (self.decode(codes).clamp(-1, 1) + 1) / 2 * 255
        return image.permute(0, 2, 3, 1).to(torch.uint8)


class Quantizer(nn.Module):
    """The codebook; the nearest row by squared distance."""

    def __init__(self, codes: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, embed_dim, h, w] -> codes [B, h, w]; ties go to the lower code."""
        rows, table = latents.permute(0, 2, 3, 1), self.embedding.weight
        # |row|² is the same for every code.
        return (table.square().sum(1) - 2 * rows @ table.T).argmin(-1)


class Encoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths, side = config.widths, config.resolution
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        before = widths[0]
        for level, width in enumerate(widths):
            stage = Level(config, before, width, config.residual_blocks, side)
            if level != len(widths) - 1:
                stage.downsample = Downsample(width)
                side //= 2
            self.down.append(stage)
            before = width
        self.mid = Middle(before, config.groups)
        self.norm_out = nn.GroupNorm(config.groups, before, eps=1e-6)
        self.conv_out = nn.Conv2d(before, config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level, stage in enumerate(self.down):
            x = stage(x)
            if level != len(self.down) - 1:
                x = stage.downsample(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = config.widths
        side = config.resolution // config.stride
        before = widths[-1]
        self.conv_in = nn.Conv2d(config.z_channels, before, 3, padding=1)
        self.mid = Middle(before, config.groups)
        stages = []
        for level in reversed(range(len(widths))):
            stage = Level(config, before, widths[level], config.residual_blocks + 1, side)
            if level != 0:
                stage.upsample = Upsample(widths[level])
                side *= 2
            stages.insert(0, stage)
            before = widths[level]
        self.up = nn.ModuleList(stages)
        self.norm_out = nn.GroupNorm(config.groups, before, eps=1e-6)
        self.conv_out = nn.Conv2d(before, config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(range(len(self.up))):
            x = self.up[level](x)
            if level != 0:
                x = self.up[level].upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Level(nn.Module):
    """The blocks at one resolution; `downsample` or `upsample` beside them is the caller's to apply."""

    def __init__(self, config: VQConfig, before: int, width: int, blocks: int, side: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(before if b == 0 else width, width, config.groups) for b in range(blocks)
        )
        attended = side in config.attention_resolutions
        self.attn = nn.ModuleList(AttentionBlock(width, config.groups) for _ in range(blocks if attended else 0))

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        return x


class Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width, groups)
        self.attn_1 = AttentionBlock(width, groups)
        self.block_2 = ResidualBlock(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class ResidualBlock(nn.Module):
    def __init__(self, before: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, eps=1e-6)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if before != width:
            self.nin_shortcut = nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttentionBlock(nn.Module):
    """One head over all positions."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).flatten(2) for layer in (self.q, self.k, self.v))
        # Written out: as one operator it would need an opset that older ONNX Runtimes do not read.
        weights = torch.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, dim=-1)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
