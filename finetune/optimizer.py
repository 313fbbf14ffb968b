"""What turns gradients into steps: AdamW as the family uses, or Muon for a model that begins from nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

BETAS = (0.9, 0.95)


def adamw(parameters: list[nn.Parameter], rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    decayed = {"params": [p for p in parameters if p.dim() == 2], "weight_decay": weight_decay}
    others = {"params": [p for p in parameters if p.dim() != 2], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, others], lr=rate, betas=BETAS)


class MuonAdamW:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head and norms; one learning rate for both.

    Muon's updates are scaled to the size of AdamW's (arXiv 2502.16982).
    """

    def __init__(self, model: nn.Module, rate: float, weight_decay: float) -> None:
        matrices = [module.weight for name, module in model.named_modules() if _inside(name, module)]
        inside = set(map(id, matrices))
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in inside]
        muon = torch.optim.Muon(matrices, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
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
