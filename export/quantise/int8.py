"""INT8 weights and activations: a scale per output channel, and one per token found while running.

A scale per token, not per tensor: a token's result then does not depend on its neighbours, so the same
picture comes out whatever shares the pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mgpt_edge.export.quantise.precision import Precision
from mgpt_edge.export.quantise.weight_only import WeightOnlyLinear

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST = 127
SMALLEST_SCALE = 1e-30  # a row of zeros divides by this, not by zero


def pack(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weight [out, in] -> int8 [in, out] and scales [out]; the lowering of an engine orders it further."""
    scale = np.maximum(np.abs(weight).max(axis=1) / np.float32(LARGEST), np.float32(SMALLEST_SCALE))
    quantised = np.empty(weight.shape[::-1], np.int8)
    for start in range(0, len(weight), 1024):  # in pieces: a 7B head in float64 temporaries would not fit
        rows = slice(start, start + 1024)
        quantised[:, rows] = np.rint(weight[rows] / scale[rows, None]).astype(np.int8).T
    return quantised, scale


class Int8Linear(nn.Module):
    """What the exported linear computes, in eager PyTorch and to the bit.

    Args:
        weight: float32 [out, in].
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        quantised, scale = pack(weight.float().numpy())
        self.register_buffer("quantised", torch.from_numpy(quantised))
        self.register_buffer("scale", torch.from_numpy(scale))

    @property
    def rounded(self) -> Tensor:
        """The weight [out, in] that the quantised one stands for."""
        return self.quantised.T * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [..., in] -> float32 [..., out]."""
        token = (x.abs().amax(-1, keepdim=True) * np.float32(1 / LARGEST)).clamp_min(SMALLEST_SCALE)
        activations = torch.round(x / token).clamp(-128, LARGEST)
        # Sums of int8 products stay below 2^53, so float64 holds what the int32 accumulator holds.
        total = (activations.double() @ self.quantised.double()).float()
        return total * self.scale * token


INT8 = Precision(
    name="int8",
    order=2,
    bits=8,
    linear={
        "bytes": lambda weight, _: Int8Linear(weight),
        "halves": lambda weight, _: WeightOnlyLinear(weight, "int8"),
    },
)
