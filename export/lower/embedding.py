"""The table of embeddings, for every engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.tape import Tape

if TYPE_CHECKING:
    from mgpt_edge.export.lower.weights import Weights


def lower_embedding(graph: ir.Graph, weights: Weights) -> None:
    """Keeps the table in the checkpoint's own dtype, half the bytes of float32 and exact."""
    (gather,) = (node for node in graph if node.op_type == "Gather" and node.outputs[0].name == "embedding")
    name = gather.inputs[0].name
    sample = ir.tensor(weights.read(name)[:1])
    if sample.dtype == ir.DataType.FLOAT:
        return
    tape = Tape()
    table = weights.add(f"{name}.stored", sample.dtype, gather.inputs[0].shape.numpy(), lambda: weights.read(name))
    rows = tape.op("Gather", [table, gather.inputs[1]])
    x = tape.op("Cast", [rows], {"to": ir.DataType.FLOAT})
    graph.insert_before(gather, tape.nodes)
    ir.convenience.replace_all_uses_with(gather.outputs[0], x)
    graph.remove(gather, safe=True)
