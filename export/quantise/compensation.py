"""4-bit weights rounded one input after another, errors made good by the inputs behind (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

DAMPING = 0.01
"""Share of its mean that is added to the diagonal of the inputs' second moments, as in the paper."""


def compensated(weight: Tensor, moments: Tensor, blocks: ModuleType) -> tuple[Tensor, Tensor]:
    """Rounds a linear's inputs in turn; those not rounded yet take over what the rounded ones leave wrong.

    Args:
        weight: [out, in].
        moments: the inputs' second moments, float32 [in, in], of any scale.
        blocks: of `rounding.blocks_of`.

    Returns:
        Values -8..7 int8 [out, in] and scales float32 [out, in / BLOCK], which packing finds again.
    """
    left, factor = weight.float().clone(), _factor(moments)
    values, scales = torch.empty(weight.shape, dtype=torch.int8), []
    for start in range(0, weight.shape[1], blocks.BLOCK):
        stop = start + blocks.BLOCK
        part = left[:, start:stop].contiguous()
        scale, end, value = map(torch.from_numpy, blocks.scaled(part.numpy()))
        scale = scale.float()
        wrong = torch.empty_like(part)
        for i in range(blocks.BLOCK):
            # What the scale comes from keeps its value, so that the scale can be found again.
            chosen = torch.where(end == i, value, (part[:, i] / scale).round().clamp(-8, 7))
            wrong[:, i] = (part[:, i] - chosen * scale) / factor[start + i, start + i]
            part[:, i + 1 :] -= wrong[:, i, None] * factor[start + i, start + i + 1 : stop]
            values[:, start + i] = chosen
        left[:, stop:] -= wrong @ factor[start:stop, stop:]
        scales.append(scale)
    return values, torch.stack(scales, 1)


def _factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse: row i is how inputs behind i make up for an error at i."""
    damped = moments.double()
    diagonal = damped.diagonal()
    diagonal += DAMPING * diagonal.mean().clamp_min(1e-12)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()
