"""What a model is trained with: the device, and the type that matrix products are made in."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")


def best_device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda") if torch.cuda.is_available() else CPU


def has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16; one that does not takes a hundred times as long for it as for float32."""
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def fast_type(device: torch.device = CPU) -> torch.dtype:
    """bfloat16 where a device multiplies in it, else float32."""
    return torch.bfloat16 if device.type == "cuda" or has_bfloat16() else torch.float32


def mixed(device: torch.device = CPU) -> torch.autocast:
    """Products in `fast_type`, everything else in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_type(device) == torch.bfloat16)
