"""Lowering for ONNX Runtime: two rows in one pass, each with a cache of its own.

GroupQueryAttention takes several tokens with a past only at batch 1, so the tokens of both rows are
laid end to end for every other operator, and split for one attention a row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.tape import Tape

from mgpt_edge.export.lower.embedding import lower_embedding
from mgpt_edge.export.lower.graphs import GraphLowering
from mgpt_edge.export.lower.linears import CONTRIB, EMIT, lower_linears
from mgpt_edge.export.lower.vq import IR_VERSION, OPSET
from mgpt_edge.export.lower.weights import Weights, finish, named, replace
from mgpt_edge.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.lower.linears import Emit
    from mgpt_edge.export.lower.lowering import Largest, Source

ROWS = 2


def lower_rows(
    model: ir.Model,
    read: Callable[[str], NDArray[np.generic]],
    emit: Emit,
    attention: ir.DataType,
    ids: ir.DataType = ir.DataType.INT64,
) -> ir.Model:
    """The traced decoder, in place, for two rows of different length and width.

    Inputs: tokens.{row} [1, n_row], of type `ids`; seqlen.{row} int32 [1], the positions after this pass less one;
    total.{row} int32 [], the same number not less one; cos and sin; past.{layer}.{key|value}.{row}. The last three are
    of the type that attention computes in.
    Outputs: hidden [1, n_0 + n_1, hidden]; present.….{row}, which may be bound to the memory of past.….{row}.
    """
    graph, weights = model.graph, Weights(model.graph, read)
    _check_heads(graph)
    sizes = _join_rows(graph, ids)
    for node in list(graph):
        if node.op_type == "CachedAttention":
            _split_attention(graph, node, sizes, weights, attention)
    _fill_shapes(graph, weights)
    lower_linears(graph, weights, emit)
    lower_embedding(graph, weights)
    _fuse_norms(graph)
    return _finish(model, weights)


def lower_product(model: ir.Model, read: Callable[[str], NDArray[np.generic]], emit: Emit) -> ir.Model:
    weights = Weights(model.graph, read)
    lower_linears(model.graph, weights, emit)
    return _finish(model, weights)


def _check_heads(graph: ir.Graph) -> None:
    head_dim = next(node for node in graph if node.op_type == "CachedAttention").attributes["head_dim"].as_int()
    if head_dim % 16:
        msg = f"ONNX Runtime's attention takes head_dim in multiples of 16, this checkpoint has {head_dim}"
        raise CheckpointError(msg)


def _join_rows(graph: ir.Graph, ids: ir.DataType) -> ir.Value:
    """Replaces `tokens` by an input a row; returns their counts [ROWS]."""
    tape = Tape()
    rows = [_input(f"tokens.{row}", ids, [1, f"n{row}"]) for row in range(ROWS)]
    tokens = tape.op("Concat", rows, {"axis": 1})
    sizes = tape.op("Concat", [tape.op("Shape", [row], {"start": 1}) for row in rows], {"axis": 0})
    ir.convenience.replace_all_uses_with(named(graph.inputs, "tokens"), tokens)
    graph.insert_before(graph[0], tape.nodes)
    lengths = [
        _input(f"{name}.{row}", ir.DataType.INT32, shape)
        for row in range(ROWS)
        for name, shape in (("seqlen", [1]), ("total", []))
    ]
    tables = [named(graph.inputs, name) for name in ("cos", "sin")]
    graph.inputs[:] = [*rows, *lengths, *tables]
    graph.outputs[:] = graph.outputs[:1]
    return sizes


def _split_attention(graph: ir.Graph, node: ir.Node, sizes: ir.Value, weights: Weights, kind: ir.DataType) -> None:
    """One CachedAttention over joined rows -> one GroupQueryAttention a row, cache in place."""
    tape = Tape()
    heads, kv_heads, head_dim = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads", "head_dim"))
    parts = []
    for value in node.inputs[:3]:
        joined = _cast(tape, tape.op("Reshape", [value, weights.constant([0, 0, -1])]), kind)
        parts.append(tape.op_multi_out("Split", [joined, sizes], {"axis": 1}, num_outputs=ROWS))
    tables = [named(graph.inputs, name) for name in ("cos", "sin")]
    for table in tables:
        table.type = ir.TensorType(kind)
    pasts = [value.name for value in node.inputs[3:5]]
    outputs = []
    for row in range(ROWS):
        cache = [_input(f"{name}.{row}", kind, [1, kv_heads, f"capacity{row}", head_dim]) for name in pasts]
        lengths = [named(graph.inputs, f"{name}.{row}") for name in ("seqlen", "total")]
        y, *present = tape.op_multi_out(
            "GroupQueryAttention",
            [*(part[row] for part in parts), *cache, *lengths, *tables],
            {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 1},
            domain=CONTRIB,
            num_outputs=3,
        )
        for value, past in zip(present, cache, strict=True):
            value.name = past.name.replace("past", "present")
            value.type, value.shape = past.type, past.shape
        graph.inputs.extend(cache)
        graph.outputs.extend(present)
        outputs.append(y)
    joined = _cast(tape, tape.op("Concat", outputs, {"axis": 1}), ir.DataType.FLOAT, kind)
    (flatten,) = (use.node for use in node.outputs[0].uses())  # the traced [.., heads, D] -> [.., heads * D]
    graph.insert_before(node, tape.nodes)
    ir.convenience.replace_all_uses_with(flatten.outputs[0], joined)
    graph.remove([flatten, node], safe=True)


def _cast(tape: Tape, x: ir.Value, to: ir.DataType, of: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return x if to == of else tape.op("Cast", [x], {"to": to})


def _fill_shapes(graph: ir.Graph, weights: Weights) -> None:
    """Reshapes that compute their leading dimensions keep them instead (0 in ONNX): six operators fewer each."""
    for node in graph:
        if node.op_type != "Reshape" or node.inputs[1].const_value is not None:
            continue
        shape = node.outputs[0].shape
        if shape is None or len(shape) < 3 or any(not isinstance(size, int) for size in shape[2:]):
            continue
        node.replace_input_with(1, weights.constant([0, 0, *shape[2:]]))
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _fuse_norms(graph: ir.Graph) -> None:
    """RMSNorm -> ONNX Runtime's own operator; with the sum before it, where there is one, as one that gives both."""
    for node in [node for node in graph if node.op_type == "RMSNormalization"]:
        x, weight = node.inputs
        add = x.producer()
        tape = Tape()
        epsilon = {"epsilon": node.attributes["epsilon"].as_float()}
        if add is not None and add.op_type == "Add":
            inputs = [*add.inputs, weight]
            y, _, _, total = tape.op_multi_out(
                "SkipSimplifiedLayerNormalization", inputs, epsilon, domain=CONTRIB, num_outputs=4
            )
            graph.insert_before(add, tape.nodes)
            replace(node.outputs[0], y)
            ir.convenience.replace_all_uses_with(x, total)
            graph.remove([node, add], safe=True)
        else:
            y = tape.op("SimplifiedLayerNormalization", [x, weight], {**epsilon, "axis": -1, "stash_type": 1})
            graph.insert_before(node, tape.nodes)
            replace(node.outputs[0], y)
            graph.remove(node, safe=True)


def _finish(model: ir.Model, weights: Weights) -> ir.Model:
    return finish(model, weights, {"": OPSET, CONTRIB: 1}, IR_VERSION)


def _input(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


class CpuLowering(GraphLowering):
    """For ONNX Runtime on the CPU."""

    name = "cpu"
    activations = "bytes"
    emit = EMIT

    def decoder(self, graph: ir.Model, source: Source) -> ir.Model:
        return lower_rows(graph, source.checkpoint.array, self.emitter(source.precision), ir.DataType.FLOAT)

    def head(
        self, graph: ir.Model, read: Callable[[str], NDArray[np.generic]], precision: str, _: Largest | None
    ) -> ir.Model:
        return lower_product(graph, read, self.emitter(precision))

    def sizes(self, checkpoint: Checkpoint, precision: str) -> dict[str, int] | None:
        if precision != "fp32":
            return None
        config, hidden = checkpoint.config, checkpoint.config.hidden_size
        shapes = (shape for name, shape in config.shapes().items() if name.startswith("model.layers."))
        layers = 4 * sum(map(math.prod, shapes))
        return {
            "decoder.data": checkpoint.tensor_bytes("model.embed_tokens.weight") + layers,
            "head_image.data": 4 * checkpoint.vocabulary.codes * hidden,
        }


LOWERING = CpuLowering()
