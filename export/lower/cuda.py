"""Lowering for ONNX Runtime's CUDA provider: the CPU's graph with float16 products, attention and cache.

Weights of 8 or 4 bits are unpacked inside MatMulNBits; sums along the layers and norms stay float32.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mgpt_edge.export.lower import cpu
from mgpt_edge.export.lower.graphs import GraphLowering
from mgpt_edge.export.lower.half import HALF, finite, half
from mgpt_edge.export.lower.linears import CONTRIB, last
from mgpt_edge.export.quantise import weight_only

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from onnx_ir.tape import Tape

    from mgpt_edge.export.lower.linears import Emit, Weight
    from mgpt_edge.export.lower.lowering import Largest, Source
    from mgpt_edge.export.lower.weights import Weights

OPSET = 20  # the CUDA provider of older versions computes Shape and Reshape of 21 on the CPU


class CudaLowering(GraphLowering):
    """The CPU's with cos, sin and the caches in float16; tokens are int32, as the kernels that draw write them."""

    name = "cuda"
    activations = "halves"

    @property
    def emit(self) -> dict[str, Emit]:
        packed = {precision: partial(_emit_packed, precision=precision) for precision in ("int8", "int4")}
        return {"fp16": _emit_fp16, **packed}

    def decoder(self, graph: ir.Model, source: Source) -> ir.Model:
        emit = self.emitter(source.precision)
        return _for_cuda(cpu.lower_rows(graph, source.checkpoint.array, emit, HALF, ir.DataType.INT32))

    def head(
        self, graph: ir.Model, read: Callable[[str], NDArray[np.generic]], precision: str, _: Largest | None
    ) -> ir.Model:
        return _for_cuda(cpu.lower_product(graph, read, self.emitter(precision)))


def _for_cuda(model: ir.Model) -> ir.Model:
    model.opset_imports[""] = OPSET
    return model


def _emit_fp16(
    tape: Tape, weights: Weights, name: str, weight: Weight, shape: tuple[int, int], x: ir.Value
) -> ir.Value:
    transposed = weights.add(f"{name}.T", HALF, shape[::-1], lambda: half(name, weight().T))
    y = tape.op("MatMul", [tape.op("Cast", [x], {"to": HALF}), transposed])
    return tape.op("Cast", [y], {"to": ir.DataType.FLOAT})


def _emit_packed(
    tape: Tape,
    weights: Weights,
    name: str,
    weight: Weight,
    shape: tuple[int, int],
    x: ir.Value,
    *,
    precision: str,
) -> ir.Value:
    """The scale of an 8-bit channel is written once a block: the operator knows no other form."""
    out, width = shape
    bits = weight_only.bits_of(precision, width)
    blocks = -(-width // weight_only.BLOCK)
    packed = lru_cache(maxsize=1)(lambda: weight_only.pack(finite(name, weight()), bits))
    block_bytes = weight_only.BLOCK * bits // 8
    values = weights.add(
        f"{name}.int{bits}",
        ir.DataType.UINT8,
        (out, blocks, block_bytes),
        lambda: _bytes(packed()[0], bits).reshape(out, blocks, block_bytes),
    )
    scales = weights.add(
        f"{name}.scale",
        HALF,
        (out * blocks,),
        lambda: np.broadcast_to(last(packed)[1].T, (out, blocks)).reshape(-1),
    )
    attributes = {"K": width, "N": out, "bits": bits, "block_size": weight_only.BLOCK}
    y = tape.op("MatMulNBits", [tape.op("Cast", [x], {"to": HALF}), values, scales], attributes, domain=CONTRIB)
    return tape.op("Cast", [y], {"to": ir.DataType.FLOAT})


def _bytes(values: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Values [in, out] about 0 -> [out, bytes] about the middle, the first of two in the low half; whole blocks."""
    raised = (values.T.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    raised = np.pad(raised, ((0, 0), (0, -raised.shape[1] % weight_only.BLOCK)))
    return raised if bits == 8 else raised[:, ::2] | raised[:, 1::2] << 4


LOWERING = CudaLowering()
