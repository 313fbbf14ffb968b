"""Training of the VQGAN: reconstruction, commitment, a codebook that follows its latents, and crisp edges."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgpt_edge.export.vqgan import VQGAN, VQConfig
from mgpt_edge.finetune.arithmetic import CPU, mixed
from mgpt_edge.finetune.mini.run import Run
from mgpt_edge.finetune.optimizer import cosine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def small_vq() -> VQConfig:
    """The VQGAN of the small checkpoint: stride 16, narrow."""
    return VQConfig(
        channels=16,
        channel_multipliers=(1, 2, 4, 6, 6),
        residual_blocks=1,
        z_channels=64,
        embed_dim=16,
        codes=2048,
        groups=4,
        resolution=128,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VQRecipe:
    """How a VQGAN is trained.

    Attributes:
        warmup_steps: Steps without quantisation; the codebook then starts as the latents' k-means.
        edge_weight: Weight of the L1 distance of neighbouring pixels' differences, against blur.
        codebook_decay: Of the moving averages that the codebook's rows follow.
        crop: Side of the windows that a step sees, pixels; their corners lie on the code grid.
        perceptual: Weight of the distance between what an eye sees in both pictures (`perceived`).
        focus: Added weight of pixels that stand out from their row: the solids, not the even floor and wall.
        restart_below: A code whose moving count falls under this share of an equal share gets a latent of the batch.
    """

    config: VQConfig = field(default_factory=small_vq)
    steps: int
    batch: int = 8
    rate: float = 1.2e-3
    warmup_steps: int = 400
    commitment: float = 0.25
    l1_weight: float = 0.2
    edge_weight: float = 0.15
    codebook_decay: float = 0.98
    restart_below: float = 0.05
    crop: int = 96
    focus: float = 8.0
    perceptual: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.warmup_steps < self.steps:
            msg = f"warm-up must be shorter than the training, got {self.warmup_steps} of {self.steps} steps"
            raise ValueError(msg)


class Codebook:
    """Moving averages of the latents that chose each code (arXiv 1711.00937, appendix A.1)."""

    def __init__(self, table: Tensor, decay: float, restart_below: float) -> None:
        self.table, self.decay, self.restart_below = table, decay, restart_below
        self.counts = torch.ones(len(table), device=table.device)
        self.sums = table.detach().clone()

    def start(self, latents: Tensor, generator: torch.Generator, rounds: int = 12) -> None:
        """Sets the rows to the k-means of latents [n, dim]."""
        codes = len(self.table)
        # As in k-means++, what is rare and far away gets codes too; most of a picture is floor and wall.
        spread = (latents - latents.mean(0)).square().sum(1)
        centers = latents[torch.multinomial(spread, codes, generator=generator)].clone()
        for _ in range(rounds):
            chosen = torch.cdist(latents, centers).argmin(1)
            counts = torch.bincount(chosen, minlength=codes).unsqueeze(1)
            sums = torch.zeros_like(centers).index_add_(0, chosen, latents)
            fresh = latents[torch.randint(len(latents), (codes,), generator=generator, device=latents.device)]
            centers = torch.where(counts > 0, sums / counts.clamp(min=1), fresh)
        self.table.data.copy_(centers)
        self.counts = torch.full((codes,), len(latents) / codes, device=latents.device)
        self.sums = centers * self.counts.unsqueeze(1)

    def follow(self, latents: Tensor, chosen: Tensor, generator: torch.Generator) -> None:
        """One step of the averages towards latents [n, dim] and the codes they chose [n]."""
        codes = len(self.table)
        counts = torch.bincount(chosen, minlength=codes).float()
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, latents)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        share = len(latents) / codes
        dead = (self.counts < self.restart_below * share).nonzero().flatten()
        if len(dead):
            # The worse a latent is served, the likelier it gets the code.
            error = (latents - self.table[chosen]).square().sum(1)
            picked = torch.multinomial(error + 1e-12, len(dead), replacement=True, generator=generator)
            self.counts[dead] = 0.5 * share
            self.sums[dead] = latents[picked] * 0.5 * share
        self.table.data.copy_(self.sums / self.counts.unsqueeze(1).clamp(min=1e-6))

    def state(self) -> dict[str, Tensor]:
        return {"counts": self.counts, "sums": self.sums}

    def load(self, state: dict[str, Tensor]) -> None:
        self.counts, self.sums = (state[name].to(self.table.device) for name in ("counts", "sums"))


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Pictures [n, h, w, 3] of one size and kind.

    Attributes:
        weight: How often a window is taken from them.
        importance: Of their errors: thin lines, which no code draws exactly, would outweigh all else.
    """

    pictures: NDArray[np.uint8]
    weight: float = 1.0
    importance: float = 1.0


class VQTraining(Run):
    """One training run, resumable from its folder.

    Args:
        recipe: how.
        sources: what from.
        folder: of the state.
        eye: layers, trained to see what matters in such pictures, whose responses should stay as they are.
        device: where it computes.
    """

    def __init__(
        self,
        recipe: VQRecipe,
        sources: Sequence[Source],
        folder: Path,
        eye: nn.Sequential | None = None,
        device: torch.device = CPU,
    ) -> None:
        torch.manual_seed(recipe.seed)
        super().__init__(recipe, folder / "vq.pt")
        self.sources, self.device = sources, device
        self.eye = eye.to(device) if eye is not None else None
        weights = np.array([source.weight for source in sources])
        self.weights = weights / weights.sum()
        self.model = VQGAN(recipe.config).to(memory_format=torch.channels_last)
        initialise(self.model)
        self.model.to(device)
        table = self.model.quantize.embedding.weight.requires_grad_(False)
        self.codebook = Codebook(table, recipe.codebook_decay, recipe.restart_below)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=1e-4)
        self.waiting: list[Tensor] = []  # latents of the last warm-up steps, for the k-means

    def train_step(self) -> dict[str, float]:
        """One optimiser step; which pictures it sees depends on the seed and the step alone."""
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, self.step])
        generator = torch.Generator(self.device).manual_seed(recipe.seed * 1_000_003 + self.step)
        image, weight = self._windows(rng).to(self.device).split([3, 1], dim=1)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate * cosine(self.step, recipe.steps)
        with mixed(self.device):
            latents = self.model.latents(image)
        latents = latents.float()
        rows = latents.detach().permute(0, 2, 3, 1).flatten(0, 2)
        quantised, commitment = self._quantise(latents, rows, generator)
        with mixed(self.device):
            drawn = self.model.picture(quantised)
        loss = reconstruction(drawn.float(), image, weight, recipe) + recipe.commitment * commitment
        if self.eye is not None:
            loss = loss + recipe.perceptual * perceived(self.eye, drawn, image)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        squared = (drawn.detach().float() - image).square().mean().item()
        return {"step": self.step, "loss": loss.item(), "psnr": decibels(squared), "commitment": commitment.item()}

    def _windows(self, rng: np.random.Generator) -> Tensor:
        """A batch of windows and their pixels' weights, [B, 4, side, side]."""
        return torch.cat([self._window(rng) for _ in range(self.recipe.batch)])

    def _window(self, rng: np.random.Generator) -> Tensor:
        source = self.sources[rng.choice(len(self.sources), p=self.weights)]
        whole = pixels_to_image(source.pictures[rng.integers(len(source.pictures), size=1)])
        stride, (height, width) = self.recipe.config.stride, whole.shape[2:]
        side = self.recipe.crop
        row, column = (stride * int(rng.integers((length - side) // stride + 1)) for length in (height, width))
        weighted = torch.cat([whole, source.importance * standing_out(whole, self.recipe.focus)], dim=1)
        return weighted[:, :, row : row + side, column : column + side]

    def _quantise(self, latents: Tensor, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The codebook's rows with the latents' gradient, and how far the latents are from them."""
        warmup = self.recipe.warmup_steps
        if self.step < warmup:
            if self.step >= warmup - 80:
                self.waiting.append(rows)
            return latents, latents.square().mean() * 0.01
        if self.waiting:
            self.codebook.start(torch.cat(self.waiting), generator)
            self.waiting = []
        chosen = self.model.quantize(latents.detach())
        nearest = self.model.quantize.embedding(chosen).permute(0, 3, 1, 2)
        commitment = F.mse_loss(latents, nearest)
        self.codebook.follow(rows, chosen.flatten(), generator)
        return latents + (nearest - latents).detach(), commitment

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "codebook": self.codebook.state(),
            "waiting": self.waiting,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.codebook.load(state["codebook"])
        self.waiting = [latents.to(self.device) for latents in state["waiting"]]


@torch.no_grad()
def initialise(model: VQGAN) -> None:
    """Residual branches begin at nothing and what lies between them keeps the variance: learning starts at once."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 4:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        if name.endswith(("conv2.weight", "proj_out.weight")):
            torch.nn.init.zeros_(parameter)
        if name.endswith("bias") and "norm" not in name:
            torch.nn.init.zeros_(parameter)


def standing_out(image: Tensor, focus: float) -> Tensor:
    """Weights [B, 1, h, w] of mean 1: more where a pixel of [B, 3, h, w] differs from the median of its row."""
    difference = (image - image.median(dim=3, keepdim=True).values).abs().amax(1, keepdim=True)
    weight = 1 + focus * (difference > 0.18)
    return weight / weight.mean()


def reconstruction(drawn: Tensor, image: Tensor, weight: Tensor, recipe: VQRecipe) -> Tensor:
    """Weighted squared error + L1 + L1 of the differences between neighbours."""
    error = drawn - image
    across = (error.diff(dim=3).abs() * weight[..., 1:]).mean()
    down = (error.diff(dim=2).abs() * weight[..., 1:, :]).mean()
    pixels = error.square() + recipe.l1_weight * error.abs()
    return (pixels * weight).mean() + recipe.edge_weight * (across + down)


def perceived(eye: nn.Sequential, drawn: Tensor, image: Tensor) -> Tensor:
    """Squared distance of an eye's responses to pictures [B, 3, h, w], relative to their size, mean over its layers.

    As LPIPS (arXiv 1801.03924), by a network of this world's own: edges and colors that it tells shapes by count more
    than pixels.
    """
    distances = []
    with mixed(drawn.device):
        for layer in eye:
            drawn = layer(drawn)
            with torch.no_grad():
                image = layer(image)
            distances.append((drawn - image).square().mean() / (image.square().mean() + 1e-6))
    return torch.stack(distances).float().mean()


@torch.inference_mode()
def measure(model: VQGAN, pictures: NDArray[np.uint8], batch: int = 32) -> dict[str, float]:
    """PSNR of whole round trips in uint8 (mean of the pictures' own), and the share of codes in use."""
    device = model.quantize.embedding.weight.device
    decibel: list[float] = []
    used: set[int] = set()
    for start in range(0, len(pictures), batch):
        codes = model.encode_pixels(torch.from_numpy(pictures[start : start + batch]).to(device))
        used.update(codes.unique().tolist())
        decibel += each_psnr(model.decode_pixels(codes).cpu().numpy(), pictures[start : start + batch])
    return {"psnr": float(np.mean(decibel)), "codes_used": len(used) / model.config.codes}


def each_psnr(drawn: NDArray[np.uint8], pictures: NDArray[np.uint8]) -> list[float]:
    """PSNR of each of the pictures [n, height, width, 3], in dB."""
    squared = np.square((drawn.astype(np.float32) - pictures) / 127.5).mean((1, 2, 3))
    return [decibels(error) for error in squared.tolist()]


def decibels(squared: float) -> float:
    """PSNR of a mean squared error on the scale [-1, 1]."""
    return 10 * math.log10(4 / max(squared, 1e-12))


def pixels_to_image(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [B, h, w, 3] -> float [B, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
