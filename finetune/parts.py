"""Tensors in several safetensors files, of which few stand in memory at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor

PART_BYTES = 2 << 30
"""Size of a file, and about half of the host memory that writing takes: safetensors copies what it writes."""


def write_parts(tensors: Iterable[tuple[str, Tensor]], stem: Path, limit: int = PART_BYTES) -> dict[str, Path]:
    """Writes tensors to `STEM-00001.safetensors` and on, none above `limit` bytes unless one tensor alone is.

    Returns:
        Each tensor's file.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    waiting: dict[str, Tensor] = {}

    def flush() -> None:
        path = stem.with_name(f"{stem.name}-{len(set(files.values())) + 1:05d}.safetensors")
        save_file(waiting, path, {"format": "pt"})
        files.update(dict.fromkeys(waiting, path))
        waiting.clear()

    for name, tensor in tensors:
        if waiting and sum(value.nbytes for value in waiting.values()) + tensor.nbytes > limit:
            flush()
        waiting[name] = tensor.detach().to("cpu").contiguous()
    if waiting:
        flush()
    return files
