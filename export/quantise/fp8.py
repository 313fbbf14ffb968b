"""FP8 (e4m3) weights and activations: one scale an output channel, one for everything that a linear is given.

The latter is fixed when a checkpoint is exported, by the largest that was measured.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from mgpt_edge.export.lower.half import HALF
from mgpt_edge.export.lower.linears import last
from mgpt_edge.export.quantise.precision import Precision, keep_statistics
from mgpt_edge.export.quantise.weight_only import half_scale

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mgpt_edge.export.lower.products import Linear

FP8 = ir.DataType.FLOAT8E4M3FN
LARGEST = 448.0
"""The largest number of the format; beyond it there is no infinity, so what is larger becomes this."""


def pack(weight: NDArray[np.float32]) -> tuple[NDArray[ml_dtypes.float8_e4m3fn], NDArray[np.float16]]:
    """Weight [out, in] -> values [in, out] and scales [out]: a value v of channel c stands for v * scale[c]."""
    scales = half_scale(np.abs(weight).max(1) / np.float32(LARGEST))
    values = np.empty(weight.shape[::-1], ml_dtypes.float8_e4m3fn)
    for start in range(0, len(weight), 1024):  # in pieces, to keep the float temporaries small
        rows = slice(start, start + 1024)
        values[:, rows] = (weight[rows] / scales[rows, None].astype(np.float32)).T.astype(values.dtype)
    return values, scales


def activation_scale(largest: float) -> np.float16:
    """The scale under which activations up to `largest` are all kept."""
    return half_scale(np.float32(largest / LARGEST))[()]


class Fp8Linear(nn.Module):
    """The exported linear, as its operators compute it, with sums in float32.

    Args:
        weight: float32 [out, in].
        largest: magnitude of the activations that were measured.
    """

    def __init__(self, weight: Tensor, largest: float) -> None:
        super().__init__()
        values, scales = pack(weight.float().numpy())
        half = values.astype(np.float16) * scales
        self.register_buffer("rounded", torch.from_numpy(half.astype(np.float32)).T)
        self.scale = float(activation_scale(largest))

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [..., in] -> float32 [..., out], float16 on the way in and out."""
        kept = (x.half().float() / self.scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        activations = (kept.half() * torch.tensor(self.scale).half()).float()
        return (activations @ self.rounded.T).half().float()


def _operands(linear: Linear) -> list[ir.Value]:
    """As 8-bit integers, in floats of 8 bits."""
    tape, weights, name = linear.tape, linear.weights, linear.name
    packed = lru_cache(maxsize=1)(lambda: pack(linear.finite()))
    values = weights.add(f"{name}.fp8", FP8, linear.shape[::-1], lambda: packed()[0])
    scales = weights.add(f"{name}.scale", HALF, linear.shape[:1], lambda: last(packed)[1])
    scale = weights.constant(activation_scale(linear.largest_input()))
    return [linear.rounded(scale, FP8.numpy()), tape.op("DequantizeLinear", [values, scales], {"axis": 1})]


E4M3 = Precision(
    name="fp8",
    order=6,
    bits=8,
    least_sm=89,
    linear=dict.fromkeys(("bytes", "halves"), Fp8Linear),
    statistics=True,
    rescale=keep_statistics,
    image_head="int8",
    emit=dict.fromkeys(("tensorrt", "tensorrt10"), _operands),
)
