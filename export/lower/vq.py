"""Lowering of the VQ graphs: float32 everywhere, as in the family's own code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from mgpt_edge.export.lower.weights import Weights, finish

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

# What ONNX Runtime 1.23 reads, the last for Python 3.10. No operator used here or by `cpu` changed between this opset
# and the traced one, and the newer norm is lowered.
OPSET = 21
IR_VERSION = 10


def lower_vq(model: ir.Model, read: Callable[[str], NDArray[np.generic]], *, narrow_codes: bool = False) -> ir.Model:
    """A traced VQ graph, in place; half-precision weights are stored as such and widened at load.

    Args:
        model: of `trace.trace_vq_decoder` or `trace_vq_encoder`.
        read: name of a weight -> array.
        narrow_codes: they are int32, since the parser of TensorRT warns of int64.
    """
    graph, weights = model.graph, Weights(model.graph, read)
    for value in list(graph.initializers.values()):
        stored = ir.tensor(read(value.name))
        if stored.dtype != value.dtype:
            narrow = weights.add(f"{value.name}.stored", stored.dtype, stored.shape, lambda name=value.name: read(name))
            cast = ir.node("Cast", [narrow], {"to": value.dtype.value})
            graph.insert_before(graph[0], cast)
            ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    if narrow_codes:
        _narrow_codes(graph)
    return finish(model, weights, {"": OPSET}, IR_VERSION)


def _narrow_codes(graph: ir.Graph) -> None:
    (given,), (result,) = graph.inputs, graph.outputs
    if given.name == "codes":
        given.type = ir.TensorType(ir.DataType.INT32)
        return
    cast = ir.node("Cast", [result], {"to": ir.DataType.INT32.value})
    graph.append(cast)
    (narrow,) = graph.outputs[:] = cast.outputs
    narrow.type, narrow.shape = ir.TensorType(ir.DataType.INT32), result.shape
    narrow.name, result.name = result.name, None
