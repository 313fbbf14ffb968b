"""Writing a graph: weights are computed one at a time and appended to a data file beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

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
            tensor = value.const_value
            if tensor.nbytes <= INLINE_BYTES:
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
            else:
                value.const_value = _append(file, data, tensor)
            yield tensor.nbytes
    if not data.stat().st_size:
        data.unlink()
    ir.save(model, folder / f"{name}.onnx")


def _append(file: BinaryIO, data: Path, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    file.write(b"\0" * (-file.tell() % ALIGNMENT_BYTES))
    offset = file.tell()
    tensor.tofile(file)  # two values of 4 bits to a byte
    return ir.ExternalTensor(
        data.name, offset, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=tensor.name, base_dir=data.parent
    )
