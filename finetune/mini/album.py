"""A split's scenes at one size, with the codes of their pictures of every kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from mgpt_edge.finetune.arithmetic import mixed
from mgpt_edge.finetune.files import replace_atomically
from mgpt_edge.finetune.mini.world.scene import relation
from mgpt_edge.runtime.family.layout import ImageLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from mgpt_edge.export.vqgan import VQGAN
    from mgpt_edge.finetune.mini.pictures import Pictures
    from mgpt_edge.finetune.mini.world import Scene
    from mgpt_edge.runtime.family.vocabulary import Vocabulary


class Scenes(ABC):
    """A split's scenes at one size.

    Args:
        pictures: of the scenes, by kind; of kind k there are those of the first `pictures[k].count` scenes.
    """

    def __init__(self, pictures: Mapping[str, Pictures]) -> None:
        self.pictures = pictures
        main = pictures["picture"]
        self.width, self.height = main.width, main.height
        # Sampling a scene costs more than everything else that a batch takes.
        self.scenes = [main.scene(index) for index in range(main.count)]

    def scene(self, index: int, mirrored: bool = False) -> Scene:
        """The scene of picture `index`, or the scene that its mirror image shows."""
        return self.scenes[index].mirrored() if mirrored else self.scenes[index]

    @cached_property
    def pairs(self) -> list[int]:
        """Scenes of two solids."""
        return [index for index, scene in enumerate(self.scenes) if len(scene.solids) == 2]

    @cached_property
    def beside(self) -> list[int]:
        """Those of them with one to the left of the other."""
        return [index for index in self.pairs if relation(*self.scenes[index].solids) in {"left", "right"}]

    def count(self, *kinds: str) -> int:
        """How many scenes have pictures of all these kinds."""
        return min(self.pictures[kind].count for kind in kinds)

    @abstractmethod
    def tokens(self, kind: str, index: int, mirrored: bool = False) -> list[int]:
        """What stands in a sequence for a scene's picture of one kind."""


class Album(Scenes):
    """Scenes with their pictures as tokens.

    Args:
        pictures: as of `Scenes`.
        codes: by kind, int16 [n, rows, columns]; of "picture" also the mirror images', [2, n, rows, columns].
        vocabulary: the checkpoint's ids.
    """

    def __init__(
        self, pictures: Mapping[str, Pictures], codes: Mapping[str, NDArray[np.int16]], vocabulary: Vocabulary
    ) -> None:
        super().__init__(pictures)
        self.codes, self.vocabulary = codes, vocabulary
        self.layout = ImageLayout(self.width, self.height, vocabulary)

    def tokens(self, kind: str, index: int, mirrored: bool = False) -> list[int]:
        """The tokens of a scene's picture of one kind."""
        codes = self.codes[kind]
        return self.layout.encode(codes[int(mirrored), index] if kind == "picture" else codes[index])


def load_codes(pictures: Pictures, path: Path, vq: Callable[[], VQGAN]) -> NDArray[np.int16]:
    """Codes of rendered pictures from a file, which is made if it is not there.

    Raises:
        ValueError: the file holds the codes of another number of pictures.
    """
    if not path.exists():
        pixels = pictures.load()
        codes = encode_pictures(vq(), pixels)
        if pictures.kind == "picture":
            codes = np.stack([codes, encode_pictures(vq(), pixels[:, :, ::-1])])
        replace_atomically(path, lambda draft: _save(draft, codes))
    codes = np.load(path)
    if codes.shape[-3] != pictures.count:
        msg = f"{path} holds the codes of {codes.shape[-3]} pictures, not {pictures.count}; remove it to make it again"
        raise ValueError(msg)
    return codes


def encode_pictures(model: VQGAN, pixels: NDArray[np.uint8], batch: int = 8) -> NDArray[np.int16]:
    """Pictures [n, height, width, 3] -> codes [n, rows, columns]."""
    codes = []
    model = model.to(memory_format=torch.channels_last)  # outside: weights made in inference mode can't be trained on
    device = model.quantize.embedding.weight.device
    # In bfloat16 half the time of float32; where two codes are equally near, either teaches the same.
    with torch.inference_mode(), mixed(device):
        for start in range(0, len(pixels), batch):
            part = torch.from_numpy(np.ascontiguousarray(pixels[start : start + batch])).to(device)
            codes.append(model.encode_pixels(part).to("cpu", torch.int16))
    return torch.cat(codes).numpy()


def _save(path: Path, array: NDArray[np.int16]) -> None:
    with path.open("wb") as file:
        np.save(file, array)
