"""Tensors of one or many safetensors files, read one at a time."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mgpt_edge.runtime.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEADER_CAP_BYTES = 100_000_000

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor's bytes stand: `nbytes` from `offset` of the file at `path`."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Shards:
    """The tensors of a checkpoint by name.

    Nothing is mapped into memory: `tensor` reads one tensor's bytes into its own buffer, so what is
    resident is what the caller still holds.
    """

    entries: dict[str, Entry]

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.

        Raises:
            CheckpointError: no such file, a shard is missing, truncated or damaged, or lacks a tensor.
        """
        if (folder / SINGLE).is_file():
            return cls.open_file(folder / SINGLE)
        if not (folder / INDEX).is_file():
            raise CheckpointError(_no_weights(folder))
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            msg = f"{folder / INDEX}: expected a weight_map from tensor names to file names"
            raise CheckpointError(msg)
        return cls._open_sharded(folder, weight_map)

    @classmethod
    def open_file(cls, path: Path) -> Shards:
        """Opens a single safetensors file."""
        return cls(read_header(path))

    @classmethod
    def _open_sharded(cls, folder: Path, weight_map: dict[str, str]) -> Shards:
        files = sorted(set(weight_map.values()))
        for name in files:
            # A path in an index that was written by others must not lead out of the folder.
            if Path(name).name != name:
                msg = f"{folder / INDEX}: a shard must be a plain file name, got {name!r}"
                raise CheckpointError(msg)
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            msg = (
                f"{folder}: {len(missing)} of {len(files)} shards are missing: {', '.join(missing)}; "
                "download them again into this folder"
            )
            raise CheckpointError(msg)
        headers = {name: read_header(folder / name) for name in files}
        entries = {}
        for tensor, name in weight_map.items():
            if tensor not in headers[name]:
                msg = f"{folder / name}: the index says that {tensor} is in this file, and it is not"
                raise CheckpointError(msg)
            entries[tensor] = headers[name][tensor]
        return cls(entries)

    def tensor(self, name: str) -> torch.Tensor:
        """Reads one tensor, in the file's dtype and shape, into memory of its own.

        Raises:
            CheckpointError: there is no such tensor, or the file ends early or cannot be read.
        """
        entry = self.entry(name)
        buffer = torch.empty(entry.nbytes, dtype=torch.uint8)
        view = memoryview(buffer.numpy())
        try:
            with entry.path.open("rb", buffering=0) as file:
                file.seek(entry.offset)
                done = 0
                while done < entry.nbytes:  # one read gives at most 2 GiB
                    count = file.readinto(view[done:])
                    if not count:
                        break
                    done += count
        except OSError as error:
            msg = f"{entry.path}: cannot read {name}: {error.strerror}"
            raise CheckpointError(msg) from error
        if done != entry.nbytes:
            msg = f"{entry.path}: {name} should have {entry.nbytes} bytes, got {done}; the file was cut short"
            raise CheckpointError(msg)
        return buffer.view(entry.dtype).reshape(entry.shape)

    def entry(self, name: str) -> Entry:
        """The place, dtype and shape of a tensor."""
        if name not in self.entries:
            msg = f"the checkpoint has no tensor {name!r}"
            raise CheckpointError(msg)
        return self.entries[name]

    def files(self) -> list[Path]:
        """The files that hold tensors, sorted."""
        return sorted({entry.path for entry in self.entries.values()})


def read_header(path: Path) -> dict[str, Entry]:
    """Reads and checks a safetensors header: no hole, no overlap, and a file exactly as long as it says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= length <= min(HEADER_CAP_BYTES, size - 8):
                msg = f"{path}: not a safetensors file, or cut short within its header ({size} bytes)"
                raise CheckpointError(msg)
            header = parse_json(file.read(length), path)
    except OSError as error:
        msg = f"{path}: cannot be read: {error.strerror}"
        raise CheckpointError(msg) from error
    header.pop("__metadata__", None)
    base = 8 + length
    entries = {name: _entry(path, name, info, base) for name, info in header.items()}
    end = base
    for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset != end:
            msg = f"{path}: the tensors do not lie side by side: expected one at byte {end}, got {entry.offset}"
            raise CheckpointError(msg)
        end += entry.nbytes
    if end != size:
        state = "was cut short" if size < end else "has bytes that belong to no tensor"
        msg = f"{path}: expected {end} bytes, got {size}: the file {state}; download it again"
        raise CheckpointError(msg)
    return entries


def _entry(path: Path, name: str, info: Any, base: int) -> Entry:
    try:
        dtype, shape, (start, end) = info["dtype"], tuple(info["shape"]), info["data_offsets"]
        whole = type(dtype) is str and all(type(number) is int and number >= 0 for number in (*shape, start, end))
    except (TypeError, KeyError, ValueError):
        whole, dtype = False, None
    if not whole:
        msg = f"{path}: damaged header entry of {name}: {info!r}"
        raise CheckpointError(msg)
    if dtype not in DTYPES:
        msg = f"{path}: {name} has the dtype {dtype!r}, expected one of {', '.join(DTYPES)}"
        raise CheckpointError(msg)
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - start != nbytes:
        msg = f"{path}: {name} {list(shape)} {dtype} should take {nbytes} bytes, got {end - start}"
        raise CheckpointError(msg)
    return Entry(path, DTYPES[dtype], shape, base + start, nbytes)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file, or says what is wrong with it."""
    try:
        return parse_json(path.read_bytes(), path)
    except OSError as error:
        msg = f"{path}: cannot be read: {error.strerror}"
        raise CheckpointError(msg) from error


def parse_json(text: str | bytes, source: Path | str) -> dict[str, Any]:
    """Parses a JSON object that stands in `source`, or says what is wrong with it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"{source}: not valid JSON: {error}"
        raise CheckpointError(msg) from error
    if not isinstance(value, dict):
        msg = f"{source}: expected a JSON object, got {type(value).__name__}"
        raise CheckpointError(msg)
    return value


def _no_weights(folder: Path) -> str:
    msg = f"{folder}: neither {SINGLE} nor {INDEX} is here"
    if any(folder.glob("consolidated*.pth")):
        return (
            f"{msg}; consolidated.*.pth is Meta's own layout: convert it with transformers' "
            "convert_chameleon_weights_to_hf.py, then give its output folder"
        )
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if pickles:
        return (
            f"{msg}; {pickles[0]} is a pickle, which can run code and is not opened. If you trust it: "
            'python -c "from transformers import ChameleonForConditionalGeneration as M; '
            f"M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}-safetensors')\", "
            "then copy tokenizer.json there"
        )
    return msg
