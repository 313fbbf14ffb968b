"""Where the new tokens of a pass stand, computed once for all layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mgpt_edge.export.lower.weights import named

if TYPE_CHECKING:
    from onnx_ir.tape import Tape

    from mgpt_edge.export.lower.weights import Weights


class Positions:
    """Of rows that go on after `lengths` cached positions each; makes the graph's tokens int32, its tables static.

    Attributes:
        capacity: of a row's cache, fixed in the graph.
        lengths: the graph's input, int32 [rows].
        start: the same in int64.
        width: int64 [], new tokens a row.
        steps: int64 [width], from 0.
        tables: cos and sin of the new tokens, float32 [rows, width, head_dim / 2].
    """

    def __init__(self, tape: Tape, graph: ir.Graph, weights: Weights, capacity: int) -> None:
        self.capacity = capacity
        tokens, self.lengths, cos, sin = (named(graph.inputs, name) for name in ("tokens", "lengths", "cos", "sin"))
        tokens.type = ir.TensorType(ir.DataType.INT32)  # of int64 TensorRT's parser warns, and a warning stops a build
        for table in (cos, sin):
            table.shape = ir.Shape([capacity, table.shape[1]])
        self.start = tape.op("Cast", [self.lengths], {"to": ir.DataType.INT64})
        self.width = tape.op("Squeeze", [tape.op("Shape", [tokens], {"start": 1, "end": 2})])
        zero, one = weights.constant(np.int64(0)), weights.constant(np.int64(1))
        self.steps = tape.op("Range", [zero, self.width, one])
        positions = tape.op("Add", [tape.op("Unsqueeze", [self.start, weights.constant([1])]), self.steps])
        self.tables = [tape.op("Gather", [table, positions], {"axis": 0}) for table in (cos, sin)]
