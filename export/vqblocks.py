"""What the VQ models of both generations are made of; module names are taming-transformers'.

A block's norms are GroupNorms, or in MoVQGAN's decoder norms that the codes themselves scale and shift: `zq` is the
codebook rows [B, embed_dim, h, w], and None where no norm looks at them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    Norm = Callable[[int], nn.Module]
    """Channels -> a norm that is called with (x, zq)."""


class GroupNorm(nn.GroupNorm):
    """The plain norm; it does not look at the codes."""

    def forward(self, x: Tensor, zq: Tensor | None) -> Tensor:  # noqa: ARG002
        return super().forward(x)


class SpatialNorm(nn.Module):
    """Spatially conditioned norm of MoVQGAN (arXiv 2209.09002, equations 4 and 5): GroupNorm(x) * y(zq) + b(zq).

    The equations enlarge zq to the size of x. Here the rows of pixels that a row of codes covers share its y and b:
    the same numbers, but no tensors of y and b at the size of the picture.
    """

    def __init__(self, groups: int, width: int, embed_dim: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_y = nn.Conv2d(embed_dim, width, 1)
        self.conv_b = nn.Conv2d(embed_dim, width, 1)

    def forward(self, x: Tensor, zq: Tensor) -> Tensor:
        high, wide = zq.shape[-2], x.shape[-1]
        zq = F.interpolate(zq, size=(high, wide), mode="nearest")
        rows = self.norm_layer(x).reshape(*x.shape[:2], high, x.shape[-2] // high, wide)
        return (rows * self.conv_y(zq).unsqueeze(3) + self.conv_b(zq).unsqueeze(3)).reshape(x.shape)


class Level(nn.Module):
    """The blocks at one resolution; `downsample` or `upsample` beside them is the caller's to apply."""

    def __init__(self, norm: Norm, before: int, width: int, blocks: int, *, attended: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(norm, before if b == 0 else width, width) for b in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(norm, width) for _ in range(blocks if attended else 0))

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x, zq)
            if len(self.attn):
                x = self.attn[index](x, zq)
        return x


class Middle(nn.Module):
    def __init__(self, norm: Norm, width: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(norm, width, width)
        self.attn_1 = AttentionBlock(norm, width)
        self.block_2 = ResidualBlock(norm, width, width)

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, zq), zq), zq)


class ResidualBlock(nn.Module):
    def __init__(self, norm: Norm, before: int, width: int) -> None:
        super().__init__()
        self.norm1 = norm(before)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.norm2 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if before != width:
            self.nin_shortcut = nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor, zq: Tensor | None) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x, zq)))
        y = self.conv2(F.silu(self.norm2(y, zq)))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttentionBlock(nn.Module):
    """One head over all positions."""

    def __init__(self, norm: Norm, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, zq: Tensor | None) -> Tensor:
        y = self.norm(x, zq)
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
