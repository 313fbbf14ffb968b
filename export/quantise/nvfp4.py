"""NVFP4 weights and activations: e2m1 values, an e4m3 scale for each 16 inputs, and one float32 scale above those.

Scales of weights are computed here. Of activations only the one above is fixed at export, by the largest that was
measured; each block's own is found while running.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tape import Tape
from torch import Tensor, nn

from mgpt_edge.export.lower.linears import last
from mgpt_edge.export.quantise.precision import Precision, keep_statistics
from mgpt_edge.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mgpt_edge.export.lower.products import Linear
    from mgpt_edge.export.lower.weights import Weights

BLOCK = 16
LARGEST, LARGEST_SCALE = 6.0, 448.0
"""The largest numbers of e2m1 and of e4m3."""
SMALLEST_SCALE = np.float32(1e-30)
DOMAIN, QUANTISE = "trt", "TRT_FP4DynamicQuantize"
OPSET = 24  # of the lowering for TensorRT, the only one that has the operator
FP4, FP8, FLOAT, HALF = (
    ir.DataType.FLOAT4E2M1,
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
)

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


def _operands(linear: Linear) -> list[ir.Value]:
    tape, weights = linear.tape, linear.weights
    weights.define(quantise_function(OPSET))
    weight = unpacked_weight(tape, weights, linear.name, lambda: pack(linear.finite()), linear.shape)
    return [rounded_activations(tape, weights, linear.x, linear.largest_input()), weight]


def unpacked_weight(
    tape: Tape, weights: Weights, name: str, make: Callable[[], Packed], shape: tuple[int, int]
) -> ir.Value:
    """The float16 weight [in, out] that TensorRT never makes: it multiplies what it is made of."""
    packed = lru_cache(maxsize=1)(make)
    out, width = shape
    values = weights.add(f"{name}.fp4", FP4, (width, out), lambda: packed()[0])
    scales = weights.add(f"{name}.scale", FP8, (width // BLOCK, out), lambda: packed()[1])
    above = weights.add(f"{name}.scale.above", FLOAT, (), lambda: np.asarray(last(packed)[2]))
    steps = tape.op("DequantizeLinear", [scales, above])
    weight = tape.op("DequantizeLinear", [values, steps], {"axis": 0, "block_size": BLOCK})
    return tape.op("Cast", [weight], {"to": HALF})


def rounded_activations(tape: Tape, weights: Weights, x: ir.Value, largest: float) -> ir.Value:
    """Float32 x [rows, width, in] in float16, through blocks of 4-bit floats."""
    above = weights.constant(global_scale(largest))
    attributes = {"axis": -1, "block_size": BLOCK, "scale_type": FP8.value}
    values, scales = tape.op_multi_out(
        QUANTISE, [tape.op("Cast", [x], {"to": HALF}), above], attributes, domain=DOMAIN, num_outputs=2
    )
    values.type, scales.type = ir.TensorType(FP4), ir.TensorType(FP8)
    steps = tape.op("DequantizeLinear", [scales, above])
    kept = tape.op("DequantizeLinear", [values, steps], {"axis": -1, "block_size": BLOCK})
    return tape.op("Cast", [kept], {"to": HALF})


def quantise_function(opset: int) -> ir.Function:
    """TensorRT's operator in ONNX's own: each block's scale in e4m3, and its values in e2m1."""
    x, above = ir.Value(name="x"), ir.Value(name="above")
    tape = Tape()
    constant = lambda array: tape.op("Constant", [], {"value": ir.tensor(np.asarray(array))})  # noqa: E731
    floats = tape.op("Cast", [x], {"to": FLOAT})
    blocks = tape.op("Reshape", [floats, constant(np.array([0, 0, -1, BLOCK]))])
    largest = tape.op("ReduceMax", [tape.op("Abs", [blocks]), constant(np.array([-1]))], {"keepdims": 1})
    exact = tape.op("Div", [tape.op("Div", [largest, constant(np.float32(LARGEST))]), above])
    scales = tape.op("Cast", [tape.op("Min", [exact, constant(np.float32(LARGEST_SCALE))])], {"to": FP8})
    step = tape.op("Mul", [tape.op("Cast", [scales], {"to": FLOAT}), above])
    none = tape.op("Equal", [step, constant(np.float32(0))])
    divided = tape.op("Div", [blocks, tape.op("Where", [none, constant(np.float32(1)), step])])
    highest = [constant(np.float32(sign * LARGEST)) for sign in (-1, 1)]
    values = tape.op("Reshape", [tape.op("Clip", [divided, *highest]), tape.op("Shape", [x])])
    values = tape.op("Cast", [values], {"to": FP4})
    scales = tape.op("Squeeze", [scales, constant(np.array([-1]))])
    body = ir.Graph([x, above], [values, scales], nodes=tape.nodes, opset_imports={"": opset})
    kinds = [ir.Attr(name, ir.AttributeType.INT, None) for name in ("axis", "block_size", "scale_type")]
    return ir.Function(DOMAIN, QUANTISE, graph=body, attributes=kinds)


NVFP4 = Precision(
    name="nvfp4",
    order=7,
    bits=4,
    least_sm=120,
    linear=dict.fromkeys(("bytes", "halves"), Nvfp4Linear),
    statistics=True,
    rescale=keep_statistics,
    image_head="int8",
    emit={"tensorrt": _operands},
)
