"""INT8 weights and activations with scales that are fixed at export: one an output channel, one for all of an input.

Weights are packed as `weight_only` does with 8 bits. What an input's few large channels would cost is moved to the
weights before (`equalise.smooth`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mgpt_edge.export.equalise import smooth
from mgpt_edge.export.quantise.precision import Precision
from mgpt_edge.export.quantise.weight_only import half_scale, pack, unpack

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from mgpt_edge.export.lower.products import Linear

LARGEST = 127


def activation_scale(largest: float) -> NDArray[np.float16]:
    """The scale [] under which activations up to `largest` are all kept."""
    return half_scale(np.float32(largest / LARGEST))


class W8A8Linear(nn.Module):
    """The exported linear, as its operators compute it, with sums in float32.

    Args:
        weight: float32 [out, in].
        largest: magnitude of the activations that were measured.
    """

    def __init__(self, weight: Tensor, largest: float) -> None:
        super().__init__()
        left = unpack(*pack(weight.float().numpy(), 8))
        self.register_buffer("rounded", torch.from_numpy(left.astype(np.float32)).T)
        self.scale = float(activation_scale(largest))

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [..., in] -> float32 [..., out], float16 on the way in and out."""
        kept = torch.round(x.half().float() / self.scale).clamp(-LARGEST - 1, LARGEST)
        activations = (kept * self.scale).half().float()
        return (activations @ self.rounded.T).half().float()


def _operands(linear: Linear) -> list[ir.Value]:
    """Both sides through 8 bits: TensorRT multiplies those."""
    scale = linear.weights.constant(activation_scale(linear.largest_input()))
    return [linear.rounded(scale, np.int8), linear.unpacked(8)]


W8A8 = Precision(
    name="w8a8",
    order=5,
    bits=8,
    linear=dict.fromkeys(("bytes", "halves"), W8A8Linear),
    statistics=True,
    rescale=lambda checkpoint, statistics, _: smooth(checkpoint, statistics),
    emit=dict.fromkeys(("tensorrt", "tensorrt10"), _operands),
)
