"""Lowering for TensorRT: one file that ONNX Runtime's CPU provider runs too.

Products and the cache are float16, weights too or of 8 or 4 bits; sums along the layers, norms and the rotation stay
float32. The attention is TensorRT's own operator, which the file also defines in ONNX's terms, for every other runtime.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from mgpt_edge.export.lower.embedding import lower_embedding
from mgpt_edge.export.lower.graphs import GraphLowering
from mgpt_edge.export.lower.half import HALF
from mgpt_edge.export.lower.linears import lower_linears
from mgpt_edge.export.lower.positions import Positions
from mgpt_edge.export.lower.products import OPERANDS, emit
from mgpt_edge.export.lower.vq import lower_vq
from mgpt_edge.export.lower.weights import Weights, finish, name_nodes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mgpt_edge.export.lower.lowering import Largest, Source

DOMAIN = "trt"
ATTENTION = "TRT_Attention"
OPSET = 24
IR_VERSION = 13  # ONNX Runtime 1.31 refuses what onnx writes by itself


def lower_decoder(
    model: ir.Model,
    read: Callable[[str], NDArray[np.generic]],
    precision: str,
    capacity: int,
    largest: Largest | None = None,
) -> ir.Model:
    """The traced decoder, in place, for rows whose caches lie in one array a layer.

    Inputs: tokens int32 [rows, width]; lengths int32 [rows], the cached positions before this pass; cos and sin
    float32 [capacity, head_dim / 2]; past.{layer}.{key|value} float16 [rows, kv_heads, capacity, head_dim].
    Outputs: hidden float32 [rows, width, hidden]; present.…, to be bound to the memory of past.….

    A row with fewer new tokens than the pass is wide has any others after them: what they leave in the cache lies
    behind the row's length, and is written over. So no length may be greater than capacity - width.
    """
    graph, weights = model.graph, Weights(model.graph, read)
    tape = Tape()
    positions = Positions(tape, graph, weights, capacity)
    width = tape.op("Cast", [positions.width], {"to": ir.DataType.INT32})
    ends = tape.op("Add", [positions.lengths, width])
    graph.insert_before(graph[0], tape.nodes)
    for node in list(graph):
        if node.op_type == "CachedAttention":
            _lower_attention(graph, node, positions, ends, weights)
    lower_linears(graph, weights, emit(LOWERING.emitter(precision), largest))
    lower_embedding(graph, weights)
    weights.define(_attention())
    return finish(model, weights, {"": OPSET, DOMAIN: 1}, IR_VERSION)


def lower_head(
    model: ir.Model, read: Callable[[str], NDArray[np.generic]], precision: str, largest: Largest | None = None
) -> ir.Model:
    """A traced head; `read("weight")` gives its rows of the vocabulary."""
    weights = Weights(model.graph, read)
    lower_linears(model.graph, weights, emit(LOWERING.emitter(precision), largest))
    return finish(model, weights, {"": OPSET, DOMAIN: 1}, IR_VERSION)


def _lower_attention(graph: ir.Graph, node: ir.Node, positions: Positions, ends: ir.Value, weights: Weights) -> None:
    """One CachedAttention -> rotation, K and V written into the cache, TensorRT's attention over it."""
    tape = Tape()
    head_dim = node.attributes["head_dim"].as_int()
    q, k, v = (tape.op("Transpose", [value], {"perm": [0, 2, 1, 3]}) for value in node.inputs[:3])
    q, k = (tape.op("RotaryEmbedding", [value, *positions.tables]) for value in (q, k))
    q = tape.op("Mul", [q, weights.constant(np.float32(1 / math.sqrt(head_dim)))])  # the operator scales nothing
    q, k, v = (tape.op("Cast", [value], {"to": HALF}) for value in (q, k, v))
    cache = []
    for new, past, present in zip((k, v), node.inputs[3:5], node.outputs[1:], strict=True):
        past.type, past.shape = (
            ir.TensorType(HALF),
            ir.Shape([past.shape[0], past.shape[1], positions.capacity, head_dim]),
        )
        updated = tape.op("TensorScatter", [past, new, positions.start], {"axis": -2, "mode": "linear"})
        updated.type, updated.shape = past.type, past.shape
        updated.name, present.name = present.name, None
        graph.outputs[graph.outputs.index(present)] = updated
        cache.append(updated)
    y = tape.op(ATTENTION, [q, *cache, None, None, ends], {"causal_kind": "lower_right"}, domain=DOMAIN)
    y = tape.op("Transpose", [tape.op("Cast", [y], {"to": ir.DataType.FLOAT})], {"perm": [0, 2, 1, 3]})
    name_nodes(tape, f"layer.{node.inputs[3].name.split('.')[1]}.attention")
    graph.insert_before(node, tape.nodes)
    ir.convenience.replace_all_uses_with(node.outputs[0], y)
    graph.remove(node, safe=True)


def _attention() -> ir.Function:
    """What TensorRT's operator means, in ONNX's own: a row's last query sees as many positions as `lengths` says."""
    q, k, v, mask, query_lengths, lengths = (
        ir.Value(name=name) for name in ("q", "k", "v", "mask", "query_lengths", "lengths")
    )
    tape = Tape()
    valid = tape.op("Cast", [lengths], {"to": ir.DataType.INT64})
    y = tape.op("Attention", [q, k, v, None, None, None, valid], {"is_causal": 1, "scale": 1.0})
    y.name = "y"
    body = ir.Graph([q, k, v, mask, query_lengths, lengths], [y], nodes=tape.nodes, opset_imports={"": OPSET})
    kind = ir.Attr("causal_kind", ir.AttributeType.STRING, None)
    return ir.Function(DOMAIN, ATTENTION, graph=body, attributes=[kind])


class TensorRtLowering(GraphLowering):
    """For TensorRT for RTX, and for TensorRT from 11.0 on."""

    name = "tensorrt"
    activations = "halves"
    emit = OPERANDS

    def decoder(self, graph: ir.Model, source: Source) -> ir.Model:
        return lower_decoder(graph, source.checkpoint.array, source.precision, source.capacity, source.largest)

    def head(
        self, graph: ir.Model, read: Callable[[str], NDArray[np.generic]], precision: str, largest: Largest | None
    ) -> ir.Model:
        return lower_head(graph, read, precision, largest)

    def vq(self, model: ir.Model, read: Callable[[str], NDArray[np.generic]]) -> ir.Model:
        return lower_vq(model, read, narrow_codes=True)


LOWERING = TensorRtLowering()
