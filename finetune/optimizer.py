"""Gradients to steps: AdamW as the family uses it, Muon for a model that begins from nothing, the rate over time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mgpt_edge.finetune.arithmetic import fast_type

if TYPE_CHECKING:
    from torch import nn

BETAS = (0.9, 0.95)
MOMENTUM = 0.95
ROUNDS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients whose polynomial, repeated, draws singular values towards one (kellerjordan.github.io/posts/muon)."""


def adamw(parameters: list[nn.Parameter], rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    decayed = {"params": [p for p in parameters if p.dim() == 2], "weight_decay": weight_decay}
    others = {"params": [p for p in parameters if p.dim() != 2], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, others], lr=rate, betas=BETAS)


def cosine(step: int, steps: int, ramp: int = 100, floor: float = 0.02) -> float:
    """Share of the learning rate: a short ramp, then half a cosine down to `floor`."""
    if step < ramp:
        return (step + 1) / ramp
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum, its updates scaled to the size of AdamW's (arXiv 2502.16982).

    As `torch.optim.Muon`, which always multiplies in bfloat16: where a CPU emulates that, its part of a step of the
    small model takes 8.8 s in place of 0.4.
    """

    def __init__(self, matrices: list[nn.Parameter], rate: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                momentum = state["momentum_buffer"].lerp_(weight.grad, 1 - MOMENTUM)
                update = orthogonalised(weight.grad.lerp(momentum, MOMENTUM))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-0.2 * max(weight.shape) ** 0.5 * group["lr"])


def orthogonalised(matrix: Tensor) -> Tensor:
    """About U V^T of the matrix U S V^T by Newton-Schulz iterations, in bfloat16 where that is the faster type."""
    linear, cubic, quintic = QUINTIC
    x = matrix.to(fast_type(matrix.device))
    x = x.T if len(x) > x.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return (x.T if len(matrix) > matrix.shape[1] else x).to(matrix.dtype)


class MuonAdamW:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head and norms; one learning rate for both."""

    def __init__(self, model: nn.Module, rate: float, weight_decay: float) -> None:
        matrices = [module.weight for name, module in model.named_modules() if _inside(name, module)]
        inside = set(map(id, matrices))
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in inside]
        muon = Muon(matrices, rate, weight_decay)
        self.parts: tuple[torch.optim.Optimizer, ...] = (muon, adamw(others, rate, weight_decay))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


def _inside(name: str, module: nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) and name != "lm_head"
