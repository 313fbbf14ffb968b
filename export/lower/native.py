"""The lowering for our own CPU decoder (`csrc/cpu`): no graph, but its weights in the order in which its kernels read.

One file, `decoder.safetensors`, whose tensors begin at multiples of 64 bytes: it is mapped, not read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mgpt_edge.export.lower.lowering import Lowering, Part
from mgpt_edge.export.quantise import int4, int8
from mgpt_edge.export.quantise.int8 import INT8, Int8Linear
from mgpt_edge.export.quantise.precision import precisions
from mgpt_edge.runtime.engines.native import FILE
from mgpt_edge.runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.config import DecoderConfig
    from mgpt_edge.export.lower.lowering import Source
    from mgpt_edge.export.quantise.precision import Precision

ALIGNMENT = 64
CHANNELS, DEPTH = 16, 4
"""Output channels of a block of packed weights, and inputs that stand side by side in it (`csrc/cpu/kernels.h`)."""
TYPES = {"U8": np.uint8, "I8": np.int8, "BF16": np.uint16, "F32": np.float32}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to be written: `make` reads the checkpoint when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(TYPES[self.dtype]).itemsize


def write_decoder(checkpoint: Checkpoint, config: DecoderConfig, precision: str, folder: Path) -> Iterator[int]:
    """Writes the file, one weight in memory at a time, and yields the bytes of each part.

    Args:
        checkpoint: where the weights come from.
        config: the checkpoint's own, or with fewer layers.
        precision: of the engine's.
        folder: where the file goes.

    Raises:
        InvalidRequest: sizes that the kernels can't take.
    """
    _check_sizes(config)
    groups = list(_entries(checkpoint, config, precision))
    said = {"intermediate_size": config.intermediate_size, "norm_eps": config.norm_eps}
    said = {name: repr(value) for name, value in said.items()} | {"norm_after": str(config.swin_norm).lower()}
    header: dict[str, Any] = {"__metadata__": said}
    offset = 0
    for entry in (entry for group in groups for entry in group):
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += _aligned(entry.nbytes)
    text = json.dumps(header).encode()
    text += b" " * (_aligned(8 + len(text)) - 8 - len(text))
    with (folder / FILE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for group in groups:
            written = 0
            for entry in group:
                data = np.ascontiguousarray(entry.make(), TYPES[entry.dtype]).tobytes()
                file.write(data + bytes(_aligned(len(data)) - len(data)))
                written += len(data)
            yield written


def decoder_bytes(checkpoint: Checkpoint, precision: str) -> int:
    """Bytes of the tensors that `write_decoder` would write."""
    return sum(entry.nbytes for group in _entries(checkpoint, checkpoint.config, precision) for entry in group)


def pack8(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Weight [out, in] -> bytes [out / 16, in / 4, 16, 4], each quantised value + 128, and scales [out].

    `out` is filled up to whole blocks with channels that give 0.
    """
    missing = -len(weight) % CHANNELS
    quantised, scale = int8.pack(weight)
    quantised = np.pad(quantised, ((0, 0), (0, missing)))
    inputs, outputs = quantised.shape
    blocks = quantised.reshape(inputs // DEPTH, DEPTH, outputs // CHANNELS, CHANNELS).transpose(2, 0, 3, 1)
    # Flipping the highest bit adds 128.
    return np.ascontiguousarray(blocks).view(np.uint8) ^ np.uint8(0x80), np.pad(scale, (0, missing))


def pack4(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Weight [out, in] -> halves of bytes [out / 16, in / 8, 16, 4], and bfloat16 scales [out / 16, in / 32, 16].

    The low halves are inputs 0 to 3 of eight, the high halves 4 to 7.
    """
    missing = -len(weight) % CHANNELS
    pairs, scales = int4.pack(np.pad(weight, ((0, missing), (0, 0))))
    blocks, inputs = len(scales) // CHANNELS, weight.shape[1]
    values = np.stack((pairs & 15, pairs >> 4), -1).reshape(blocks, CHANNELS, inputs // (2 * DEPTH), 2, DEPTH)
    packed = (values[..., 0, :] | values[..., 1, :] << 4).transpose(0, 2, 1, 3)
    bfloat16 = (scales.view(np.uint32) >> 16).astype(np.uint16)
    return packed, bfloat16.reshape(blocks, CHANNELS, inputs // int4.BLOCK).transpose(0, 2, 1)


PACKED: dict[str, Callable[[NDArray[np.float32]], tuple[NDArray[Any], NDArray[Any]]]] = {"int8": pack8, "int4": pack4}


def _entries(checkpoint: Checkpoint, config: DecoderConfig, precision: str) -> Iterator[tuple[Entry, ...]]:
    kind = precisions()[precision]

    def linear(name: str, out: int, size: int, read: Callable[[], NDArray[np.float32]], of: str) -> tuple[Entry, ...]:
        return _packed(precision if kind.of is None else kind.of(checkpoint, of), name, out, size, read)

    def plain(name: str, out: int, size: int, of: str) -> tuple[Entry, ...]:
        return linear(name, out, size, _plain(checkpoint, of), of)

    mixed, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    yield _embedding(checkpoint, config, precision)
    for index in range(config.num_layers):
        at, source = f"layers.{index}.", f"model.layers.{index}."
        heads, halves = _interleaved_heads(checkpoint, source), _alternating(checkpoint, source)
        yield linear(at + "qkv", mixed + 2 * keys, config.hidden_size, heads, f"{source}self_attn.q_proj.weight")
        yield plain(at + "out", config.hidden_size, mixed, f"{source}self_attn.o_proj.weight")
        of_gate = f"{source}mlp.gate_proj.weight"
        yield linear(at + "gate_up", 2 * config.intermediate_size, config.hidden_size, halves, of_gate)
        yield plain(at + "down", config.hidden_size, config.intermediate_size, f"{source}mlp.down_proj.weight")
        yield (
            _vector(checkpoint, at + "attention_norm", f"{source}input_layernorm.weight", config.hidden_size),
            _vector(checkpoint, at + "mlp_norm", f"{source}post_attention_layernorm.weight", config.hidden_size),
            *_head_norm(checkpoint, at + "query_norm", f"{source}self_attn.q_norm", config.num_heads),
            *_head_norm(checkpoint, at + "key_norm", f"{source}self_attn.k_norm", config.num_kv_heads),
        )
    yield (_vector(checkpoint, "norm", "model.norm.weight", config.hidden_size),)
    yield plain("head", config.vocab_size, config.hidden_size, "lm_head.weight")


def _embedding(checkpoint: Checkpoint, config: DecoderConfig, precision: str) -> tuple[Entry, ...]:
    """Beside weights of 4 bits, bfloat16 would be a ninth of a 7B bundle: there it is of 8, with a scale a token."""
    name, shape = "model.embed_tokens.weight", (config.vocab_size, config.hidden_size)
    if precisions()[precision].bits >= INT8.bits:
        return (Entry("embedding", "BF16", shape, lambda: _bfloat16(checkpoint, name)),)
    packed: list[NDArray[Any]] = []

    def rows() -> NDArray[Any]:
        packed[:] = int8.pack(_plain(checkpoint, name)())
        return packed.pop(0).T

    return Entry("embedding", "I8", shape, rows), Entry("embedding.scale", "F32", shape[:1], packed.pop)


def _packed(
    precision: str, name: str, out: int, size: int, read: Callable[[], NDArray[np.float32]]
) -> tuple[Entry, ...]:
    blocks = -(-out // CHANNELS)
    precision = precision if int4.fits(size) else "int8"
    packed: list[NDArray[Any]] = []

    def weight() -> NDArray[Any]:
        packed[:] = PACKED[precision](read())
        return packed[0]

    if precision == "int8":
        shape, scale = (blocks, size // DEPTH, CHANNELS, DEPTH), ("F32", (blocks * CHANNELS,))
    else:
        shape, scale = (blocks, size // (2 * DEPTH), CHANNELS, DEPTH), ("BF16", (blocks, size // int4.BLOCK, CHANNELS))
    return Entry(name, "U8", shape, weight), Entry(f"{name}.scale", *scale, packed.pop)


def _plain(checkpoint: Checkpoint, name: str) -> Callable[[], NDArray[np.float32]]:
    return lambda: checkpoint.array(name).astype(np.float32, copy=False)


def _interleaved_heads(checkpoint: Checkpoint, source: str) -> Callable[[], NDArray[np.float32]]:
    """For each K/V head: its queries, its key, its value; a thread then needs nobody else's results to attend."""
    heads = checkpoint.config.num_kv_heads

    def read() -> NDArray[np.float32]:
        parts = [_plain(checkpoint, f"{source}self_attn.{name}_proj.weight")() for name in "qkv"]
        size = parts[0].shape[1]
        return np.concatenate([part.reshape(heads, -1, size) for part in parts], axis=1).reshape(-1, size)

    return read


def _alternating(checkpoint: Checkpoint, source: str) -> Callable[[], NDArray[np.float32]]:
    """Blocks of 16 gates and 16 ups in turn."""

    def read() -> NDArray[np.float32]:
        gate, up = (_plain(checkpoint, f"{source}mlp.{name}_proj.weight")() for name in ("gate", "up"))
        size = gate.shape[1]
        return np.stack([gate.reshape(-1, CHANNELS, size), up.reshape(-1, CHANNELS, size)], axis=1).reshape(-1, size)

    return read


def _vector(checkpoint: Checkpoint, name: str, source: str, size: int) -> Entry:
    return Entry(name, "F32", (size,), _plain(checkpoint, source))


def _head_norm(checkpoint: Checkpoint, name: str, source: str, heads: int) -> tuple[Entry, Entry]:
    """One row a head, also where the checkpoint has one row for several."""
    shape = (heads, checkpoint.config.head_dim)

    def expanded(part: str) -> NDArray[np.float32]:
        rows = _plain(checkpoint, f"{source}.{part}")().reshape(-1, shape[1])
        return np.repeat(rows, heads // len(rows), axis=0)

    return (
        Entry(name, "F32", shape, lambda: expanded("weight")),
        Entry(f"{name}.bias", "F32", shape, lambda: expanded("bias")),
    )


def _bfloat16(checkpoint: Checkpoint, name: str) -> NDArray[np.uint16]:
    return checkpoint.tensor(name).to(torch.bfloat16).contiguous().view(torch.uint16).numpy()


def _check_sizes(config: DecoderConfig) -> None:
    sizes = {"hidden_size": config.hidden_size, "head_dim": config.head_dim, "ffn": config.intermediate_size}
    bad = [f"{name} {size}" for name, size in sizes.items() if size % CHANNELS]
    if bad:
        msg = f"engine native takes sizes that are multiples of {CHANNELS}, got {', '.join(bad)}; use --engine cpu"
        raise InvalidRequest(msg)


def _aligned(size: int) -> int:
    return size + -size % ALIGNMENT


class NativeLowering(Lowering):
    """For our own decoder."""

    name = "native"
    activations = "bytes"
    emit = PACKED
    one_head = True

    def embedded(self, rows: Tensor, precision: Precision) -> Tensor:
        return Int8Linear(rows).rounded if precision.bits < INT8.bits else rows.bfloat16().float()

    def parts(self, source: Source) -> dict[str, Part]:
        size = decoder_bytes(source.checkpoint, source.precision)
        return {
            "decoder": Part(
                size, lambda folder: write_decoder(source.checkpoint, source.config, source.precision, folder)
            )
        }

    def sizes(self, checkpoint: Checkpoint, precision: str) -> dict[str, int] | None:
        return None if precisions()[precision].of else {FILE: decoder_bytes(checkpoint, precision)}


LOWERING = NativeLowering()
