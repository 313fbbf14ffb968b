"""Pictures as codes, captions as tokens, and the batches the transformer is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mgpt_edge.finetune.world import captions, sample_scene
from mgpt_edge.runtime.layout import ImageLayout
from mgpt_edge.runtime.prompt import TEMPLATES, encode_prompt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from mgpt_edge.export.vqgan import VQGAN
    from mgpt_edge.finetune.pictures import Pictures
    from mgpt_edge.runtime.vocabulary import Vocabulary

TASK = "text-to-image"
UNLABELLED = -100


def world_text(count: int, sizes: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Human turns over `count` training scenes: what the tokenizer is trained on."""
    for seed in range(count):
        rng = np.random.default_rng([seed, 7])
        width, height = sizes[rng.integers(len(sizes))]
        for caption in captions(sample_scene(seed), rng, 2):
            yield TEMPLATES[TASK].format(width=width, height=height, prompt=caption)


@torch.inference_mode()
def encode_pictures(model: VQGAN, pixels: NDArray[np.uint8], batch: int = 50) -> NDArray[np.int16]:
    """Codes of pictures and of their mirror images, [2, n, h, w]."""
    codes = []
    for start in range(0, len(pixels), batch):
        part = torch.from_numpy(pixels[start : start + batch])
        # Half the time of float32; where two codes are equally near, either teaches the same.
        with torch.autocast("cpu", torch.bfloat16):
            codes.append(torch.stack([model.encode_pixels(part), model.encode_pixels(part.flip(2))]).to(torch.int16))
    return torch.cat(codes, 1).numpy()


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Right-padded sequences, with the label of each position's successor.

    Attributes:
        tokens: int64 [b, t].
        labels: int64 [b, t], UNLABELLED where nothing is learnt.
    """

    tokens: Tensor
    labels: Tensor


class Corpus:
    """Captioned pictures of one size; each batch is a function of the seed and its number.

    A picture is shown as it is or mirrored, with a wording drawn anew each time.
    """

    def __init__(
        self,
        pictures: Pictures,
        codes: NDArray[np.int16],
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        prompt_drop: float = 0.0,
    ) -> None:
        self.pictures, self.codes, self.tokenizer, self.vocabulary = pictures, codes, tokenizer, vocabulary
        self.prompt_drop = prompt_drop
        self.layout = ImageLayout(pictures.width, pictures.height, vocabulary)
        # Sampling a scene costs more than everything else here.
        self.scenes = [pictures.scene(index) for index in range(pictures.count)]

    def __len__(self) -> int:
        """Sequences an epoch: every picture and its mirror image."""
        return 2 * len(self.scenes)

    def batch(self, number: int, size: int, seed: int) -> Batch:
        """Batch `number` of the endless sequence of epochs, each in an order of its own."""
        per_epoch = len(self) // size
        epoch, position = divmod(number, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        rng = np.random.default_rng([seed, 1, number])
        return self._collate([self._sequence(i, rng) for i in order[position * size : (position + 1) * size]])

    def _sequence(self, index: int, rng: np.random.Generator) -> tuple[list[int], int]:
        """Tokens, and how many of them are the human's."""
        mirrored, picture = divmod(int(index), len(self.scenes))
        image = self.layout.encode(self.codes[mirrored, picture])
        if rng.random() < self.prompt_drop:
            return image, 0
        scene = self.scenes[picture]
        caption = captions(scene.mirrored() if mirrored else scene, rng)[0]
        question = self.question(caption)
        return [*question, *image, self.vocabulary.separator], len(question)

    def question(self, caption: str) -> list[int]:
        """The human turn that asks for a picture of this corpus' size."""
        size = {"width": self.pictures.width, "height": self.pictures.height}
        return encode_prompt(self.tokenizer, self.vocabulary, TASK, prompt=caption, **size)

    def _collate(self, sequences: list[tuple[list[int], int]]) -> Batch:
        longest = max(len(tokens) for tokens, _ in sequences)
        tokens = torch.zeros(len(sequences), longest, dtype=torch.int64)
        labels = torch.full((len(sequences), longest), UNLABELLED)
        for row, (ids, human) in enumerate(sequences):
            tokens[row, : len(ids)] = torch.tensor(ids)
            first = max(human, 1)  # the very first token has nothing before it
            labels[row, first - 1 : len(ids) - 1] = tokens[row, first : len(ids)]
        return Batch(tokens, labels)
