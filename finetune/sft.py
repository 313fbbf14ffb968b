"""Supervised fine-tuning: the loss, and one stage of training, alone or as one of several processes."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mgpt_edge.finetune.arithmetic import mixed
from mgpt_edge.finetune.conversation import UNLABELLED, Batch
from mgpt_edge.finetune.files import replace_atomically
from mgpt_edge.finetune.optimizer import MuonAdamW, adamw, cosine
from mgpt_edge.finetune.parallel import ALONE, Processes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mgpt_edge.export.model import Decoder


class Corpus(Protocol):
    """Batches without end."""

    def batch(self, number: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The share of batch `number` that process `rank` takes; all shares together are the same for any `ranks`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a stage is trained (facts of the family: cross-entropy + 1e-5 z-loss, AdamW 0.9/0.95, clipping).

    Attributes:
        muon: Whether the blocks' matrices follow Muon in place of AdamW.
        ramp: Steps in which the learning rate rises to `rate`.
        floor: Share of the learning rate that is left at the last step; at 1 it is constant.
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
    ramp: int = 100
    muon: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.average < 1:
            msg = f"steps must be at least 1 and average below 1, got {self}"
            raise ValueError(msg)


class Stage:
    """One stage: a model, a corpus and a recipe, resumable from its folder.

    Args:
        model: what is trained, those of its parameters that require gradients.
        corpus: where batches come from.
        recipe: how it is trained.
        folder: where `save` writes.
        name: what the stage's state is called there.
        processes: those that train together; each calls the same methods at the same time.
        rows: sequences that go through the model at a time, fewer than a batch take less memory; None: all.
    """

    def __init__(
        self,
        model: Decoder,
        corpus: Corpus,
        recipe: Recipe,
        folder: Path,
        name: str,
        processes: Processes = ALONE,
        rows: int | None = None,
    ) -> None:
        self.model, self.corpus, self.recipe, self.folder, self.name = model, corpus, recipe, folder, name
        self.processes, self.rows = processes, rows
        trained = [p for p in model.parameters() if p.requires_grad]
        steps = recipe.rate, recipe.weight_decay
        self.optimizer = MuonAdamW(model, *steps) if recipe.muon else adamw(trained, *steps)
        weights = model.state_dict()
        self.average = {name: value.clone() for name, value in weights.items()} if recipe.average else weights
        self.step = 0

    def run(self, save_every_s: float = 180.0) -> Iterator[dict[str, float]]:
        """Trains to the recipe's last step, yielding each step's losses."""
        saved = time.monotonic()
        while self.step < self.recipe.steps:
            yield self.train_step()
            due = time.monotonic() - saved > save_every_s or self.step == self.recipe.steps
            if self.processes.any(due):
                self.save()
                saved = time.monotonic()

    def train_step(self) -> dict[str, float]:
        """One optimiser step; its batch and its dropout depend on the seed and the step alone."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed * 1_000_003 + self.step + (self.processes.rank << 48))
        rate = recipe.rate * cosine(self.step, recipe.steps, recipe.ramp, recipe.floor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        record = self.gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimizer.step()
        self.step += 1
        self._follow()
        return {"step": self.step, **record, "norm": whole(norm).item(), "rate": rate}

    def gradients(self) -> dict[str, float]:
        """Adds those of the mean losses over all processes' labels; gives the means, and the number of labels."""
        batch = self.corpus.batch(self.step, self.processes.rank, self.processes.ranks)
        labels = int(self.processes.sum(int((batch.labels != UNLABELLED).sum())))
        sums = torch.zeros(2, dtype=torch.float64)
        for tokens, targets in pieces(batch, self.rows or len(batch.tokens)):
            entropy, penalty = self.objective(tokens.to(self.processes.device), targets.to(self.processes.device))
            # Processes' gradients are averaged, so each counts its own as often as there are processes.
            ((entropy + self.recipe.z_loss * penalty) * (self.processes.ranks / labels)).backward()
            sums += torch.stack((entropy, penalty)).detach().cpu()
        entropy, penalty = (self.processes.sum(total) / labels for total in sums.tolist())
        return {"loss": entropy, "z": penalty, "tokens": labels}

    def objective(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy and squared log-partition over the labelled positions of [b, t]."""
        with computing(self.processes.device):
            return summed_losses(self.model, tokens, labels)

    @torch.no_grad()
    def _follow(self) -> None:
        """The average follows faster while it is young; without one, `average` is the weights themselves."""
        if not self.recipe.average:
            return
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
        state = _state(path, self.recipe)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        if self.recipe.average:
            self.average = {name: value.to(self.processes.device) for name, value in state["average"].items()}
        return True


def finished_weights(path: Path, recipe: Recipe) -> dict[str, Tensor] | None:
    """The averaged weights of a stage's checkpoint that is at its recipe's last step; None if there is none.

    Raises:
        ValueError: another recipe made it.
    """
    state = _state(path, recipe) if path.exists() else {"step": 0}
    return state["average"] if state["step"] == recipe.steps else None


def _state(path: Path, recipe: Recipe) -> dict[str, Any]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    if Recipe(**json.loads(state["recipe"])) != recipe:
        msg = f"{path} was trained by another recipe; remove it to start again"
        raise ValueError(msg)
    return state


@contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """How a model computes while it is trained on a device."""
    # The fused attention's backward pass takes twice as long as the plain one on a CPU at these lengths.
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with mixed(device), plain:
        yield


def summed_losses(model: Decoder, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy and summed squared log-partition over the labelled positions.

    Only these positions reach the head: its logits are the largest tensor of a step.

    Args:
        model: the decoder.
        tokens: int64 [b, t].
        labels: int64 [b, t], UNLABELLED where nothing is learnt.
    """
    labelled = labels != UNLABELLED
    logits = model.lm_head(model.hidden(tokens)[labelled]).float()
    return F.cross_entropy(logits, labels[labelled], reduction="sum"), logits.logsumexp(-1).square().sum()


def pieces(batch: Batch, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch's tokens and labels, `rows` sequences at a time, without the padding they have in common."""
    for start in range(0, len(batch.tokens), rows):
        labels = batch.labels[start : start + rows]
        width = int((labels != UNLABELLED).any(0).nonzero().max()) + 1
        yield batch.tokens[start : start + rows, :width], labels[:, :width]


def whole(tensor: Tensor) -> Tensor:
    """A tensor that processes hold in parts, put together; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
