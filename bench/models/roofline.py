"""What memory allows: the bytes that a guided code has to read, and machines by how fast they read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mgpt_edge.bench.models.names import named

if TYPE_CHECKING:
    from mgpt_edge.export.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class Precision:
    """Bits of a weight, its scales counted in; bytes of an element of the K/V cache and of a head's scale there."""

    weight_bits: float
    cache_bytes: float
    scale_bytes: float = 0


# A block of 32 int4 weights shares 16 bits of scale, of 16 fp4 weights 8; a head of the 8-bit cache has one float.
PRECISIONS = {
    "bf16": Precision(16, 2),
    "int8": Precision(8, 1, 4),
    "fp8": Precision(8, 1),
    "int4": Precision(4.5, 1, 4),
    "nvfp4": Precision(4.5, 1),
}


@dataclass(frozen=True, slots=True)
class Device:
    """A machine whose decode is bound by memory.

    Attributes:
        gb_s: peak bandwidth by its maker's data sheet, 1e9 bytes a second.
        gib: memory of the whole machine or card.
        share: of the peak that decoding reaches.
        source: of `share`.
    """

    gb_s: float
    gib: float
    share: float
    source: str


_GPT_FAST = "assumed: gpt-fast's int8 Llama-2-7B reaches 0.52 on an A100"
DEVICES = {
    "orin-nano": Device(102, 8, 0.74, "as on AGX Orin"),
    "orin-agx-64": Device(204.8, 64, 0.74, "TinyChat, Llama-2-7B in 4 bits: 39.1 tokens/s"),
    "thor": Device(273, 128, 0.84, "TensorRT-Edge-LLM, Llama-8B in int4: 50.8 tokens/s"),
    "rtx-4060": Device(272, 8, 0.52, _GPT_FAST),
    "rtx-4090": Device(1008, 24, 0.52, _GPT_FAST),
    "rtx-5090": Device(1792, 32, 0.52, _GPT_FAST),
    "h200": Device(4800, 141, 0.52, _GPT_FAST),
}


def device(name: str) -> Device:
    """The device of this name; raises `InvalidRequest` where there is none."""
    return named("device", name, DEVICES, ", and here")


@dataclass(frozen=True, slots=True)
class Decode:
    """The bytes of guided drawing: one pass a code, both rows in it."""

    config: DecoderConfig
    codes: int
    precision: Precision

    @property
    def weight_bytes(self) -> float:
        """Every linear of the layers, and the head's rows of image codes."""
        shapes = self.config.shapes().items()
        linears = sum(shape[0] * shape[1] for name, shape in shapes if name.endswith("_proj.weight"))
        return (linears + self.codes * self.config.hidden_size) * self.precision.weight_bits / 8

    @property
    def cache_bytes(self) -> float:
        """K and V of one token in one row."""
        config = self.config
        head = config.head_dim * self.precision.cache_bytes + self.precision.scale_bytes
        return 2 * config.num_layers * config.num_kv_heads * head

    def step_bytes(self, context: float) -> float:
        """Bytes of a pass when both rows hold `context` tokens."""
        return self.weight_bytes + 2 * context * self.cache_bytes

    def step_operations(self, context: float) -> float:
        """Multiplications and additions of a pass of both rows when they hold `context` tokens."""
        weights = self.weight_bytes * 8 / self.precision.weight_bits
        attention = 2 * context * self.config.num_layers * self.config.num_heads * self.config.head_dim
        return 2 * 2 * (weights + attention)

    def held_bytes(self, context: int) -> float:
        """Bytes in memory when both rows hold `context` tokens; the embedding is bfloat16 in every precision."""
        embedding = 2 * self.config.vocab_size * self.config.hidden_size
        text_head = (self.config.vocab_size - self.codes) * self.config.hidden_size * self.precision.weight_bits / 8
        return self.step_bytes(context) + embedding + text_head

    def picture_bytes(self, size: tuple[int, int], prompt: int, stride: int) -> tuple[int, float]:
        """Passes of a picture (width, height in pixels), the prompt's own left out, and the bytes that they read."""
        columns, rows = (side // stride for side in size)
        tokens = rows * (columns + 1) + 4
        return rows * columns, rows * columns * self.step_bytes((prompt + tokens) / 2)
