"""Sharper pictures from the same codes: the VQGAN's decoder, trained on alone against a patch discriminator.

Encoder and codebook stay as they are, and with them every code that a transformer has learnt. Adversarial loss and its
weight as in taming-transformers (arXiv 2012.09841, equations 5-7), hinge form. Some codes are replaced by similar ones,
as a transformer draws them; what was meant is to be read from the codes around.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgpt_edge.finetune.arithmetic import mixed
from mgpt_edge.finetune.run import Run
from mgpt_edge.finetune.vq import VQRecipe, cosine, decibels, pixels_to_image, reconstruction, standing_out

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mgpt_edge.export.vqgan import VQGAN


@dataclass(frozen=True, slots=True, kw_only=True)
class SharpenRecipe:
    """How the decoder is trained on.

    Attributes:
        pixels: Of all pictures of a step together; pictures are drawn whole, as they will be.
        adversarial: Size of the discriminator's gradient, as a share of the reconstruction's.
        begin: Step from which the discriminator has a say; it learns from the first.
        slips: Largest share of a picture's codes that are replaced; every picture has a share of its own.
        similar: How many of a code's neighbors may stand for it. The rank of the one that does is log-uniform, as that
            of a code that a transformer draws in place of the true one is.
    """

    steps: int
    pixels: int = 6 * 128 * 128
    rate: float = 3e-4
    adversarial: float = 0.25
    begin: int = 150
    slips: float = 0.3
    similar: int = 64
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Pictures [n, h, w, 3] with their codes [n, rows, columns], and how often a step takes them."""

    pictures: NDArray[np.uint8]
    codes: NDArray[np.int16]
    weight: float
    importance: float = 1.0


class Discriminator(nn.Module):
    """Says of each patch of some 34 pixels whether it is real: positive is yes.

    It sees how a pixel differs from its neighbors, many times enlarged, beside the picture: of the picture alone it
    learnt nothing in hundreds of steps. Noise is to hide from it that only real pictures have whole numbers for pixels.
    """

    def __init__(self, width: int = 32, enlarged: float = 8.0, noise: float = 0.01) -> None:
        super().__init__()
        self.enlarged, self.noise = enlarged, noise
        self.layers = nn.Sequential(
            nn.Conv2d(6, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 3 * width, 4, padding=1, bias=False),
            nn.GroupNorm(8, 3 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(3 * width, 1, 4, padding=1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """[b, 3, h, w] in [-1, 1] -> [b, 1, about h / 4, about w / 4]."""
        image = image + self.noise * torch.randn_like(image)
        around = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return self.layers(torch.cat([image, self.enlarged * (image - around)], dim=1))


def slipped(
    codes: NDArray[np.int16], neighbors: NDArray[np.int64], share: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Codes [n, rows, columns], this share of them [n, 1, 1] replaced by one of their neighbors [codes, similar].

    Of n neighbors, the nearest first, the r-th stands in with probability log((r + 1) / r) / log(n + 1).
    """
    rank = ((neighbors.shape[1] + 1) ** rng.random(codes.shape)).astype(np.int64)
    return np.where(rng.random(codes.shape) < share, neighbors[codes, rank - 1], codes)


class Sharpening(Run):
    """One run, resumable from its folder; `model` changes in place."""

    def __init__(self, recipe: SharpenRecipe, model: VQGAN, sources: Sequence[Coded], folder: Path) -> None:
        torch.manual_seed(recipe.seed)
        super().__init__(recipe, folder / "sharp.pt")
        self.model, self.sources = model, sources
        self.losses = VQRecipe(steps=2, warmup_steps=1, config=model.config)
        table = model.quantize.embedding.weight.detach()
        self.neighbors = torch.cdist(table, table).argsort(1)[:, 1 : recipe.similar + 1].numpy()
        weights = np.array([source.weight for source in sources])
        self.weights = weights / weights.sum()
        self.drawing = [*model.decoder.parameters(), *model.post_quant_conv.parameters()]
        self.judge = Discriminator().to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.drawing, lr=recipe.rate, betas=(0.5, 0.99), weight_decay=1e-4)
        self.judge_optimizer = torch.optim.AdamW(self.judge.parameters(), lr=recipe.rate, betas=(0.5, 0.99))

    def train_step(self) -> dict[str, float]:
        """One step of the decoder and one of the discriminator; which pictures it sees depends on seed and step."""
        recipe = self.recipe
        image, codes, importance = self._batch(np.random.default_rng([recipe.seed, 3, self.step]))
        torch.manual_seed(1_000_003 * recipe.seed + self.step)  # of the discriminator's noise
        for optimizer in (self.optimizer, self.judge_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * cosine(self.step, recipe.steps)
        weight = importance * torch.cat([standing_out(one, self.losses.focus) for one in image.split(1)])
        with mixed():
            drawn = self.model.decode(codes)
        pixels = reconstruction(drawn.float(), image, weight, self.losses)
        loss = pixels
        if self.step >= recipe.begin:
            with mixed():
                praise = self.judge(drawn).float().mean()
            loss = pixels - recipe.adversarial * self._balance(pixels, praise) * praise
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.drawing, 1.0)
        self.optimizer.step()
        told_apart = self._teach_judge(image, drawn.detach())
        self.step += 1
        squared = (drawn.detach().float() - image).square().mean().item()
        return {"step": self.step, "loss": pixels.item(), "psnr": decibels(squared), "judge": told_apart}

    def _batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, float]:
        source = self.sources[rng.choice(len(self.sources), p=self.weights)]
        count = max(1, self.recipe.pixels // (source.pictures.shape[1] * source.pictures.shape[2]))
        picked = np.sort(rng.choice(len(source.pictures), count, replace=False))
        share = self.recipe.slips * rng.random((count, 1, 1))
        codes = slipped(source.codes[picked], self.neighbors, share, rng)
        return pixels_to_image(source.pictures[picked]), torch.from_numpy(codes), source.importance

    def _balance(self, pixels: Tensor, praise: Tensor) -> Tensor:
        """The reconstruction's gradient at the last layer over the discriminator's."""
        last = self.model.decoder.conv_out.weight
        sizes = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (pixels, praise)]
        return (sizes[0] / (sizes[1] + 1e-4)).clamp(0, 1e3).detach()

    def _teach_judge(self, image: Tensor, drawn: Tensor) -> float:
        """One step of the discriminator; returns its hinge loss, 2 where it is at a loss."""
        with mixed():
            real, made = self.judge(image).float(), self.judge(drawn).float()
        loss = F.relu(1 - real).mean() + F.relu(1 + made).mean()
        self.judge_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.judge_optimizer.step()
        return loss.item()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "judge": self.judge.state_dict(),
            "optimizers": [self.optimizer.state_dict(), self.judge_optimizer.state_dict()],
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.judge.load_state_dict(state["judge"])
        for optimizer, saved in zip((self.optimizer, self.judge_optimizer), state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
