"""The type that matrix products are made in while a small model is trained on a CPU."""

from __future__ import annotations

import torch


def has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16; one that does not takes a hundred times as long for it as for float32."""
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def mixed() -> torch.autocast:
    """Products in bfloat16 where that is the faster type, everything else and elsewhere in float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16())
