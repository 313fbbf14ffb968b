"""Low-rank adapters (LoRA, arXiv 2106.09685) by `peft`, beside every linear layer of the decoder's blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

if TYPE_CHECKING:
    from mgpt_edge.export.model import Decoder

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NAME = "default"
"""What peft calls an adapter that nobody named."""


def lora_config(rank: int, base: str | None = None) -> LoraConfig:
    """Adapters of `rank`, scaled by two: the common choice alpha = 2 rank."""
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=list(LINEARS), bias="none", base_model_name_or_path=base
    )


def add_adapters(model: Decoder, config: LoraConfig) -> None:
    """Puts adapters beside the linear layers; nothing else of the model requires a gradient from then on."""
    inject_adapter_in_model(config, model, adapter_name=NAME)


def base_name(name: str) -> str:
    """The checkpoint's name of a parameter: peft moves a linear layer with an adapter one level down."""
    return name.replace(".base_layer.", ".")


def is_adapter(name: str) -> bool:
    return ".lora_" in name


def initial(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """An adapter's first value, float32: A as peft draws it, by seed and name alone; B zero, so nothing changes yet."""
    if ".lora_B." in name:
        return torch.zeros(shape)
    # Every process draws the same without asking the others.
    generator = torch.Generator().manual_seed((seed << 32) + crc32(name.encode()))
    bound = shape[1] ** -0.5  # Kaiming's uniform bound with a = sqrt(5)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def merged(weight: Tensor, a: Tensor, b: Tensor, config: LoraConfig) -> Tensor:
    """A linear layer's weight with its adapter in it, float32: W + alpha / r B A."""
    return weight.float() + config.lora_alpha / config.r * (b.float() @ a.float())


def peft_name(name: str) -> str:
    """A parameter's name in a file of peft's."""
    return "base_model.model." + name.replace(f".{NAME}.", ".")
