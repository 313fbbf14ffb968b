"""A hash that tells checkpoints apart without reading gigabytes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mgpt_edge.export.shards import Shards

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SAMPLE_BYTES = 4096


def fingerprint(texts: Iterable[Path], shards: Shards, vq_files: Iterable[Path]) -> str:
    """SHA-256 over what a checkpoint is made of; where it lies does not matter.

    It covers the texts and the VQ yaml whole; of every safetensors file its name and size; and of every tensor its
    name, dtype, shape and first 4 KiB (of a VQ .ckpt: its first and last 4 KiB). Two trainings differ in it. A change
    deep inside one tensor does not show.

    Args:
        texts: config.json, the tokenizer and the like; those that are not there are left out.
        shards: the checkpoint's tensors.
        vq_files: the VQ model's weights and yaml.
    """
    digest = hashlib.sha256()
    for path in texts:
        if path.is_file():
            _absorb(digest, path.name, path.read_bytes())
    _absorb_tensors(digest, shards)
    for path in vq_files:
        if path.suffix == ".safetensors":
            _absorb_tensors(digest, Shards.open_file(path))
        elif path.suffix == ".ckpt":
            _absorb(digest, f"{path.name} {path.stat().st_size}", _both_ends(path))
        else:
            _absorb(digest, path.name, path.read_bytes())
    return digest.hexdigest()


def _absorb_tensors(digest: hashlib._Hash, shards: Shards) -> None:
    for path in shards.files():
        entries = sorted((name, entry) for name, entry in shards.entries.items() if entry.path == path)
        with path.open("rb") as file:
            for name, entry in entries:
                file.seek(entry.offset)
                label = f"{path.name} {path.stat().st_size} {name} {entry.dtype} {entry.shape}"
                _absorb(digest, label, file.read(min(SAMPLE_BYTES, entry.nbytes)))


def _absorb(digest: hashlib._Hash, label: str, content: bytes) -> None:
    # Lengths first, so that no two different sequences of parts can run together into the same bytes.
    digest.update(f"{len(label)} {len(content)} {label}".encode())
    digest.update(content)


def _both_ends(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(SAMPLE_BYTES)
        file.seek(-min(SAMPLE_BYTES, path.stat().st_size), 2)
        return start + file.read()
