"""INT4 weights in blocks along the input, float activations: the fewest bytes a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mgpt_edge.export.quantise.int8 import Int8Linear
from mgpt_edge.export.quantise.precision import Precision
from mgpt_edge.export.quantise.weight_only import WeightOnlyLinear
from mgpt_edge.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 32


def fits(width: int) -> bool:
    """Whether blocks divide a linear's inputs; of others the weights keep 8 bits."""
    return width % BLOCK == 0


def pack(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Weight [out, in] -> pairs of 4-bit values uint8 [out, in / BLOCK, BLOCK / 2], low half first, and scales.

    Scales are [out, in / BLOCK], numbers that bfloat16 holds; a value q stands for (q - 8) * scale. The scale takes the
    sign that lets the largest value of a block stand at -8, the one end of the range that has no opposite.

    Raises:
        CheckpointError: `in` is no multiple of BLOCK.
    """
    out, width = weight.shape
    if not fits(width):
        msg = f"int4 packs blocks of {BLOCK} inputs, and a linear layer here has {width}; export with --precision int8"
        raise CheckpointError(msg)
    packed = np.empty((out, width // BLOCK, BLOCK // 2), np.uint8)
    scales = np.empty((out, width // BLOCK), np.float32)
    for start in range(0, out, 1024):  # in pieces, to keep the float temporaries small
        rows = slice(start, start + 1024)
        blocks = weight[rows].reshape(-1, width // BLOCK, BLOCK)
        scale, _, _ = scaled(blocks)
        values = np.clip(np.rint(blocks / scale[..., None]) + 8, 0, 15).astype(np.uint8)
        packed[rows] = values[..., ::2] | values[..., 1::2] << 4
        scales[rows] = scale
    return packed, scales


def scaled(blocks: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int8]]:
    """Of blocks [..., BLOCK]: their scales, and the input whose value the scale comes from with its -8..7, [...]."""
    end = np.abs(blocks).argmax(-1)
    extreme = np.take_along_axis(blocks, end[..., None], -1)[..., 0]
    scale = _bfloat16(np.where(extreme == 0, np.float32(1), extreme / np.float32(-8)))
    return scale, end, np.where(extreme == 0, 0, -8).astype(np.int8)


def unpack(packed: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weight [out, in] that `pack`'s result stands for."""
    values = np.stack((packed & 15, packed >> 4), -1).reshape(*scales.shape, BLOCK).astype(np.float32) - 8
    return (values * scales[..., None]).reshape(len(packed), -1)


def _bfloat16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest numbers that bfloat16 holds."""
    return torch.from_numpy(x).to(torch.bfloat16).float().numpy()


class Int4Linear(nn.Module):
    """The exported linear with exact float activations; both engines round them to 8 bits in each block.

    Args:
        weight: float32 [out, in].
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("rounded", torch.from_numpy(unpack(*pack(weight.float().numpy()))))

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [..., in] -> float32 [..., out]."""
        return x @ self.rounded.T


def _linear(weight: Tensor, _: float) -> nn.Module:
    return Int4Linear(weight) if fits(weight.shape[1]) else Int8Linear(weight)


INT4 = Precision(
    name="int4",
    order=3,
    bits=4,
    linear={"bytes": _linear, "halves": lambda weight, _: WeightOnlyLinear(weight, "int4")},
    image_head="int8",
)
