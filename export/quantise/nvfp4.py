"""NVFP4 weights and activations: e2m1 values, an e4m3 scale for each 16 inputs, and one float32 scale above those.

Scales of weights are computed here. Of activations only the one above is fixed at export, by the largest that was
measured; each block's own is found while running.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from mgpt_edge.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 16
LARGEST, LARGEST_SCALE = 6.0, 448.0
"""The largest numbers of e2m1 and of e4m3."""
SMALLEST_SCALE = np.float32(1e-30)

Packed = tuple["NDArray[ml_dtypes.float4_e2m1fn]", "NDArray[ml_dtypes.float8_e4m3fn]", np.float32]


def global_scale(largest: float) -> np.float32:
    """The scale above the blocks' under which magnitudes up to `largest` are all kept."""
    return np.maximum(np.float32(largest / (LARGEST * LARGEST_SCALE)), SMALLEST_SCALE)


def pack(weight: NDArray[np.float32]) -> Packed:
    """Weight [out, in] -> values [in, out], scales [in / BLOCK, out], and the scale of the scales.

    Raises:
        CheckpointError: `in` is no multiple of BLOCK.
    """
    out, width = weight.shape
    if width % BLOCK:
        msg = f"nvfp4 packs blocks of {BLOCK} inputs, and a linear layer here has {width}; export with --precision int8"
        raise CheckpointError(msg)
    above = global_scale(float(np.abs(weight).max()))
    values = np.empty((width, out), ml_dtypes.float4_e2m1fn)
    scales = np.empty((width // BLOCK, out), ml_dtypes.float8_e4m3fn)
    for start in range(0, out, 1024):  # in pieces, to keep the float temporaries small
        rows = slice(start, start + 1024)
        kept, scale = (x.numpy() for x in round_blocks(torch.from_numpy(weight[rows]), float(above)))
        values[:, rows], scales[:, rows] = kept.reshape(len(kept), -1).T.astype(values.dtype), scale.T
    return values, scales, above


def round_blocks(x: Tensor, above: float) -> tuple[Tensor, Tensor]:
    """Float32 [..., in] -> values that e2m1 holds [..., in / BLOCK, BLOCK], and those of e4m3 that multiply them."""
    blocks = x.unflatten(-1, (-1, BLOCK))
    exact = blocks.abs().amax(-1) / LARGEST / above
    scales = exact.clamp_max(LARGEST_SCALE).to(torch.float8_e4m3fn).float()
    step = (scales * above)[..., None]
    values = (blocks / torch.where(step == 0, 1.0, step)).clamp(-LARGEST, LARGEST)
    return _e2m1(values), scales


def _e2m1(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy().astype(ml_dtypes.float4_e2m1fn).astype(np.float32))


class Nvfp4Linear(nn.Module):
    """The exported linear, as its operators compute it, with sums in float32.

    Args:
        weight: float32 [out, in].
        largest: magnitude of the activations that were measured.
    """

    def __init__(self, weight: Tensor, largest: float) -> None:
        super().__init__()
        values, scales, above = pack(weight.float().numpy())
        steps = np.repeat(scales.astype(np.float32) * above, BLOCK, axis=0)
        left = (values.astype(np.float32) * steps).astype(np.float16)
        self.register_buffer("rounded", torch.from_numpy(left.astype(np.float32)).T)
        self.above = float(global_scale(largest))

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [..., in] -> float32 [..., out], float16 on the way in and out."""
        values, scales = round_blocks(x.half().float(), self.above)
        kept = (values * (scales * self.above)[..., None]).flatten(-2).half().float()
        return (kept @ self.rounded.T).half().float()
