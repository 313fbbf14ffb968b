"""The family's VQ models in plain PyTorch: pictures to codes and codes to pictures.

The architecture is taming-transformers' (VQGAN, arXiv 2012.09841), module names included, so that state-dict keys are
those of Meta's `vqgan.ckpt`; Lumina-mGPT 2.0 has ai-forever's MoVQGAN, whose decoder has other norms and whose keys are
those of `movqgan_270M.ckpt`. Widths, depth, norms and the number of GroupNorm groups are data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgpt_edge.export.vqblocks import Downsample, GroupNorm, Level, Middle, SpatialNorm, Upsample

if TYPE_CHECKING:
    from collections.abc import Mapping

MODULATED = "movqgan.models.vqgan.MOVQ"
"""`model.target` in a MoVQGAN's yaml: its only difference from a VQGAN's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VQConfig:
    """Dimensions of a VQGAN or a MoVQGAN.

    Attributes:
        channels: Width of the finest level; level l has `channels * channel_multipliers[l]`.
        residual_blocks: Blocks a level in the encoder; the decoder has one more.
        attention_resolutions: Sides of the feature maps, at the nominal `resolution`, whose blocks are followed by
            attention. The attention in the middle is always there.
        z_channels: Width between the network and the 1x1 convolutions around the codebook.
        embed_dim: Length of a codebook row.
        groups: GroupNorm groups; every level's width is a multiple.
        resolution: Nominal side in pixels; pictures of any size pass.
        modulated: Whether it is a MoVQGAN: the codes scale and shift the decoder's norms, and levels of pixels are
            rounded (Lumina-mGPT 2.0) instead of cut off (Lumina-mGPT 1).
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
    modulated: bool = False

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
        """Reads the parsed yaml of taming-transformers or MoVQGAN; `num_groups` is an addition of ours.

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
                modulated=document["model"].get("target") == MODULATED,
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
        params = {"embed_dim": self.embed_dim, "n_embed": self.codes, "ddconfig": network}
        return {"model": {**({"target": MODULATED} if self.modulated else {}), "params": params}}


CHAMELEON = VQConfig(
    channels=128,
    channel_multipliers=(1, 1, 2, 2, 4),
    residual_blocks=2,
    z_channels=256,
    embed_dim=256,
    codes=8192,
    resolution=512,
)
"""Meta's `vqgan.yaml`, of Lumina-mGPT 1."""
MOVQGAN_270M = VQConfig(
    channels=256,
    channel_multipliers=(1, 2, 2, 4),
    residual_blocks=2,
    z_channels=4,
    embed_dim=4,
    codes=16384,
    attention_resolutions=(32,),
    modulated=True,
)
"""ai-forever's `movqgan_270M.yaml`, of Lumina-mGPT 2.0."""


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
        return self.decoder(self.post_quant_conv(latents), latents)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, h, w] -> picture [B, 3, H, W], about [-1, 1]."""
        return self.picture(self.quantize.embedding(codes).permute(0, 3, 1, 2))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels [B, H, W, 3], uint8 -> codes [B, h, w]."""
        # Cast before anything else: TensorRT does nothing else with bytes.
        return self.encode(pixels.float().permute(0, 3, 1, 2) / 255 * 2 - 1)

    def decode_pixels(self, codes: Tensor) -> Tensor:
        """Codes [B, h, w] -> pixels [B, H, W, 3], uint8; rounded or cut off as the reference does."""
        image = (self.decode(codes).clamp(-1, 1) + 1) / 2 * 255
        image = image.round() if self.config.modulated else image
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
        norm = partial(GroupNorm, config.groups, eps=1e-6)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        before = widths[0]
        for level, width in enumerate(widths):
            attended = side in config.attention_resolutions
            stage = Level(norm, before, width, config.residual_blocks, attended=attended)
            if level != len(widths) - 1:
                stage.downsample = Downsample(width)
                side //= 2
            self.down.append(stage)
            before = width
        self.mid = Middle(norm, before)
        self.norm_out = norm(before)
        self.conv_out = nn.Conv2d(before, config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level, stage in enumerate(self.down):
            x = stage(x)
            if level != len(self.down) - 1:
                x = stage.downsample(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x), None)))


class Decoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths, side = config.widths, config.resolution // config.stride
        norm = partial(GroupNorm, config.groups, eps=1e-6)
        if config.modulated:
            norm = partial(SpatialNorm, config.groups, embed_dim=config.embed_dim)
        before = widths[-1]
        self.conv_in = nn.Conv2d(config.z_channels, before, 3, padding=1)
        self.mid = Middle(norm, before)
        stages = []
        for level in reversed(range(len(widths))):
            attended = side in config.attention_resolutions
            stage = Level(norm, before, widths[level], config.residual_blocks + 1, attended=attended)
            if level != 0:
                stage.upsample = Upsample(widths[level])
                side *= 2
            stages.insert(0, stage)
            before = widths[level]
        self.up = nn.ModuleList(stages)
        self.norm_out = norm(before)
        self.conv_out = nn.Conv2d(before, config.out_channels, 3, padding=1)

    def forward(self, z: Tensor, zq: Tensor) -> Tensor:
        """What is drawn from, z [B, z_channels, h, w], and the codebook rows it came from, zq [B, embed_dim, h, w]."""
        x = self.mid(self.conv_in(z), zq)
        for level in reversed(range(len(self.up))):
            x = self.up[level](x, zq)
            if level != 0:
                x = self.up[level].upsample(x)
        return self.conv_out(F.silu(self.norm_out(x, zq)))
