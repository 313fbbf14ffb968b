"""The trained model at work, in plain PyTorch and many requests at once: for sweeps, scores and sheets of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from mgpt_edge.finetune.arithmetic import mixed
from mgpt_edge.finetune.conversation import Turn
from mgpt_edge.finetune.mini.draw import draw, say
from mgpt_edge.runtime.family.layout import ImageLayout
from mgpt_edge.runtime.family.prompt import encode_turn
from mgpt_edge.runtime.family.tasks import template

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from torch import Tensor

    from mgpt_edge.export.model import Decoder
    from mgpt_edge.export.vqgan import VQGAN
    from mgpt_edge.finetune.mini.draw import Sampling
    from mgpt_edge.runtime.family.vocabulary import Vocabulary

SAMPLE_PROMPTS = (
    "a red sphere on a gray floor",
    "a large shiny blue cube on a brown floor",
    "a small green cone on a beige floor",
    "a yellow cylinder on a black floor",
    "an orange cone on a gray floor",
    "a large purple sphere on a beige floor",
    "a shiny cyan sphere on a black floor",
    "a white cube on a brown floor",
    "a red cube to the left of a blue sphere on a gray floor",
    "a green cylinder to the right of a yellow cone on a brown floor",
    "a large white sphere behind a small red cone on a beige floor",
    "an orange cube in front of a cyan cone on a black floor",
)


@dataclass(frozen=True, slots=True, eq=False)
class Painter:
    """A transformer, its VQGAN and its words."""

    model: Decoder
    vq: VQGAN
    tokenizer: Tokenizer
    vocabulary: Vocabulary

    def paint(self, prompts: list[str], width: int, height: int, sampling: Sampling, seed: int) -> NDArray[np.uint8]:
        """Pictures [n, height, width, 3], one a prompt."""
        return self.respond(self.asked(prompts, width, height), width, height, sampling, seed)

    def respond(self, asked: list[Turn], width: int, height: int, sampling: Sampling, seed: int) -> NDArray[np.uint8]:
        """The pictures [n, height, width, 3] that answer questions."""
        return self.decode(self.draw(asked, width, height, sampling, seed))

    def asked(self, prompts: list[str], width: int, height: int) -> list[Turn]:
        """What is said to the model so that it draws."""
        text = template("text-to-image")
        return [Turn(text.format(width=width, height=height, prompt=prompt)) for prompt in prompts]

    def draw(
        self, asked: list[Turn], width: int, height: int, sampling: Sampling, seed: int, batch: int = 50
    ) -> Tensor:
        """The codes [n, rows, columns] that answer questions."""
        layout, parts = ImageLayout(width, height, self.vocabulary), []
        for start in range(0, len(asked), batch):
            prompts = [self._prompt(turn) for turn in asked[start : start + batch]]
            parts.append(draw(self.model, layout, prompts, sampling, seed + start))
        return torch.cat(parts)

    def decode(self, codes: Tensor, batch: int = 8) -> NDArray[np.uint8]:
        """The pictures [n, height, width, 3] of codes [n, rows, columns]."""
        device = self.vq.quantize.embedding.weight.device
        with torch.inference_mode(), mixed(device):
            return np.concatenate([self.vq.decode_pixels(part.to(device)).cpu().numpy() for part in codes.split(batch)])

    def answer(self, asked: list[Turn], batch: int = 50) -> list[str]:
        """The likeliest answers in text."""
        answers: list[list[int]] = []
        for start in range(0, len(asked), batch):
            prompts = [self._prompt(turn) for turn in asked[start : start + batch]]
            answers += say(self.model, prompts, self.vocabulary.separator)
        return self.tokenizer.decode_batch(answers)

    def _prompt(self, turn: Turn) -> list[int]:
        said = encode_turn(self.tokenizer, turn.text, turn.pictures)
        return [self.vocabulary.bos, *said, self.vocabulary.separator]

    def sheet(self, width: int, height: int, sampling: Sampling) -> Image.Image:
        """Two pictures of each sample prompt, side by side, eight in a row."""
        pictures = self.paint([prompt for prompt in SAMPLE_PROMPTS for _ in range(2)], width, height, sampling, 0)
        rows = [np.concatenate(list(pictures[i : i + 8]), axis=1) for i in range(0, len(pictures), 8)]
        return Image.fromarray(np.concatenate(rows))
