"""Writing a graph: weights are computed one at a time and appended to a data file beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INLINE_BYTES = 1024
ALIGNMENT_BYTES = 4096  # a page: ONNX Runtime maps the data file


def graph_bytes(model: ir.Model) -> int:
    """Bytes of all weights of a graph, known before any is computed."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values())


def write_graph(model: ir.Model, folder: Path, name: str) -> Iterator[int]:
    """Writes `name`.onnx and `name`.data into `folder`, a weight at a time; yields the bytes of each."""
    data = folder / f"{name}.data"
    with data.open("wb") as file:
        for value in model.graph.initializers.values():
            array = np.ascontiguousarray(value.const_value.numpy())
            if array.nbytes <= INLINE_BYTES:
                value.const_value = ir.tensor(array, dtype=value.const_value.dtype, name=value.name)
            else:
                value.const_value = _append(file, data, value.const_value, array)
            yield array.nbytes
    if not data.stat().st_size:
        data.unlink()
    ir.save(model, folder / f"{name}.onnx")


def _append(file: object, data: Path, tensor: ir.TensorProtocol, array: np.ndarray) -> ir.ExternalTensor:
    file.write(b"\0" * (-file.tell() % ALIGNMENT_BYTES))
    offset = file.tell()
    file.write(array.reshape(-1).view(np.uint8).data)
    return ir.ExternalTensor(
        data.name, offset, array.nbytes, tensor.dtype, shape=tensor.shape, name=tensor.name, base_dir=data.parent
    )
