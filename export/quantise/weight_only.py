"""Weights of 8 or 4 bits, float16 products: what TensorRT unpacks inside its matrix kernels.

One scale an output channel for 8 bits, one a block of inputs for 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 128
"""Inputs that share a scale of 4-bit weights; TensorRT takes 64 and 128."""
SMALLEST_SCALE = np.float16(2**-24)


def fits(width: int) -> bool:
    """Whether blocks divide a linear's inputs; of others the weights keep 8 bits."""
    return width % BLOCK == 0


def bits_of(precision: str, width: int) -> int:
    """Bits of the weights of a linear with `width` inputs."""
    return 4 if precision == "int4" and fits(width) else 8


def pack(weight: NDArray[np.float32], bits: int) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Weight [out, in] -> values [in, out] in -2^(bits-1)..2^(bits-1)-1, and their scales [blocks, out].

    A value q of block b stands for q * scale[b]; of 8 bits all inputs are one block.
    """
    out, width = weight.shape
    blocks = width // BLOCK if bits == 4 else 1
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = np.empty((width, out), np.int8)
    scales = np.empty((blocks, out), np.float16)
    for start in range(0, out, 1024):  # in pieces, to keep the float temporaries small
        rows = slice(start, start + 1024)
        part = weight[rows].reshape(-1, blocks, width // blocks)
        scale, _, _ = scaled(part, bits)
        quantised = np.clip(np.rint(part / scale[..., None].astype(np.float32)), lowest, highest)
        values[:, rows] = quantised.reshape(len(scale), width).T
        scales[:, rows] = scale.T
    return values, scales


def scaled(
    blocks: NDArray[np.float32], bits: int = 4
) -> tuple[NDArray[np.float16], NDArray[np.int64], NDArray[np.int8]]:
    """Of blocks [..., inputs]: their scales, and the input whose value the scale comes from with its value, [...]."""
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    above, below = blocks.max(-1) / highest, blocks.min(-1) / lowest
    end = np.where(above >= below, blocks.argmax(-1), blocks.argmin(-1))
    value = np.where(np.maximum(above, below) <= 0, 0, np.where(above >= below, highest, lowest))
    return half_scale(np.maximum(above, below)), end, value.astype(np.int8)


def half_scale(exact: NDArray[np.float32]) -> NDArray[np.float16]:
    """The next float16 that is no smaller, so that nothing is cut off, and never 0."""
    scale = exact.astype(np.float16)
    return np.maximum(np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale), SMALLEST_SCALE)


def unpack(values: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.float16]:
    """The weight [in, out] that `pack`'s result stands for."""
    return values.astype(np.float16) * np.repeat(scales, len(values) // len(scales), axis=0)


class WeightOnlyLinear(nn.Module):
    """The exported linear: float16 weights and activations, sums in float32.

    Args:
        weight: float32 [out, in].
        precision: `int8` or `int4`.
    """

    def __init__(self, weight: Tensor, precision: str) -> None:
        super().__init__()
        packed = pack(weight.float().numpy(), bits_of(precision, weight.shape[1]))
        self.register_buffer("rounded", torch.from_numpy(unpack(*packed).astype(np.float32)).T)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [..., in] -> float32 [..., out], rounded to float16 on the way in and out."""
        return (x.half().float() @ self.rounded.T).half().float()
