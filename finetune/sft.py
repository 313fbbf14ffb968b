"""Flexible Progressive Supervised Finetuning: stages of growing picture size, one loss."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mgpt_edge.export.config import DecoderConfig
from mgpt_edge.finetune.conversation import UNLABELLED
from mgpt_edge.finetune.files import replace_atomically
from mgpt_edge.finetune.vq import cosine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mgpt_edge.export.model import Decoder
    from mgpt_edge.finetune.corpus import Corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a stage is trained (facts of the family: cross-entropy + 1e-5 z-loss, AdamW 0.9/0.95, clipping).

    Attributes:
        floor: Share of the learning rate that is left at the last step.
        average: Of the weights' moving average, which is what a checkpoint gets; 0 is none.
    """

    steps: int
    rate: float = 2e-3
    floor: float = 0.02
    weight_decay: float = 0.1
    z_loss: float = 1e-5
    clip: float = 1.0
    average: float = 0.998
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.average < 1:
            msg = f"steps must be at least 1 and average below 1, got {self}"
            raise ValueError(msg)


def small_decoder(vocab_size: int, dropout: float = 0.0) -> DecoderConfig:
    """The transformer of the small checkpoint."""
    return DecoderConfig(
        hidden_size=256,
        intermediate_size=688,
        num_layers=6,
        num_heads=4,
        num_kv_heads=4,
        head_dim=64,
        vocab_size=vocab_size,
        norm_eps=1e-5,
        rope_theta=10000.0,
        dropout=dropout,
    )


def initialise(model: Decoder, generator: torch.Generator) -> None:
    """Normal weights of deviation 0.02, smaller at the end of each branch."""
    deep = (2 * model.config.num_layers) ** -0.5
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "_norm" not in name:
            last = name.endswith(("o_proj.weight", "down_proj.weight"))
            torch.nn.init.normal_(parameter, std=0.02 * (deep if last else 1), generator=generator)


class Stage:
    """One stage: a model, a corpus and a recipe, resumable from its folder."""

    def __init__(self, model: Decoder, corpus: Corpus, recipe: Recipe, folder: Path, name: str) -> None:
        self.model, self.corpus, self.recipe, self.folder, self.name = model, corpus, recipe, folder, name
        decayed = [p for p in model.parameters() if p.dim() == 2]
        others = [p for p in model.parameters() if p.dim() != 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=recipe.rate,
            betas=(0.9, 0.95),
        )
        self.average = {name: value.clone() for name, value in model.state_dict().items()}
        self.step = 0

    def run(self, save_every_s: float = 180.0) -> Iterator[dict[str, float]]:
        """Trains to the recipe's last step, yielding each step's losses."""
        saved = time.monotonic()
        while self.step < self.recipe.steps:
            yield self.train_step()
            if time.monotonic() - saved > save_every_s or self.step == self.recipe.steps:
                self.save()
                saved = time.monotonic()

    def train_step(self) -> dict[str, float]:
        """One optimiser step; its batch and its dropout depend on the seed and the step alone."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)
        batch = self.corpus.batch(self.step)
        rate = recipe.rate * cosine(self.step, recipe.steps, floor=recipe.floor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        entropy, penalty = losses(self.model, batch.tokens, batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        (entropy + recipe.z_loss * penalty).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimizer.step()
        self.step += 1
        self._follow()
        return {"step": self.step, "loss": entropy.item(), "z": penalty.item(), "norm": norm.item(), "rate": rate}

    @torch.no_grad()
    def _follow(self) -> None:
        """The average follows faster while it is young."""
        keep = min(self.recipe.average, self.step / (self.step + 10))
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value, 1 - keep)

    def save(self) -> None:
        """Writes everything that `resume` needs."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "recipe": json.dumps(asdict(self.recipe)),
        }
        replace_atomically(self.folder / f"{self.name}.pt", lambda draft: torch.save(state, draft))

    def resume(self) -> bool:
        """Continues from the folder's checkpoint, if it has one of this recipe."""
        path = self.folder / f"{self.name}.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True)
        if state["recipe"] != json.dumps(asdict(self.recipe)):
            msg = f"{path} was trained by another recipe; remove it to start again"
            raise ValueError(msg)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]
        return True


def losses(model: Decoder, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and mean squared log-partition over the labelled positions of [b, t]."""
    labelled = labels != UNLABELLED
    # The fused attention's backward pass takes twice as long as the plain one on a CPU at these lengths.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        logits = model.lm_head(model.hidden(tokens)[labelled])
    logits = logits.float()
    return F.cross_entropy(logits, labels[labelled]), logits.logsumexp(-1).square().mean()


@torch.inference_mode()
def validation_loss(model: Decoder, corpus: Corpus, batches: int = 8) -> float:
    """Mean cross-entropy over a corpus' first batches."""
    model.eval()
    parts = (corpus.batch(number) for number in range(batches))
    return sum(losses(model, part.tokens, part.labels)[0].item() for part in parts) / batches
