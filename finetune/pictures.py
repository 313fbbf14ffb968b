"""Rendered pictures on disk, in shards, so that an interrupted run loses one shard at most."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.finetune.world import Scene, render, sample_scene

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHARD = 500


@dataclass(frozen=True, slots=True)
class Pictures:
    """A split's first `count` scenes at one size, in `folder`.

    Attributes:
        count: A multiple of the shard size.
        pairs: How many of ten scenes show two solids; the others show one.
    """

    folder: Path
    split: str
    width: int
    height: int
    count: int
    pairs: int = 4

    def __post_init__(self) -> None:
        if self.count < 1 or self.count % SHARD:
            msg = f"count must be a positive multiple of {SHARD}, got {self.count}"
            raise ValueError(msg)
        if not 0 <= self.pairs <= 10:
            msg = f"pairs must be 0 to 10, got {self.pairs}"
            raise ValueError(msg)

    def scene(self, index: int) -> Scene:
        """The scene of picture `index`."""
        return sample_scene(index, self.split, 2 if index % 10 < self.pairs else 1)

    def render(self, processes: int) -> None:
        """Renders the shards that are not there yet."""
        missing = [shard for shard in range(self.count // SHARD) if not self.path(shard).exists()]
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(processes) as pool:
            for _ in pool.map(partial(_render_shard, self), missing):
                pass

    def load(self) -> NDArray[np.uint8]:
        """All pictures, [count, height, width, 3]."""
        return np.concatenate([np.load(self.path(shard)) for shard in range(self.count // SHARD)])

    def path(self, shard: int) -> Path:
        """The file of a shard's pictures."""
        return self.folder / f"{self.split}-{self.width}x{self.height}-{self.pairs}-{shard:04d}.npy"


def _render_shard(pictures: Pictures, shard: int) -> None:
    scenes = (pictures.scene(shard * SHARD + i) for i in range(SHARD))
    stack = np.stack([render(scene, pictures.width, pictures.height).picture for scene in scenes])
    path = pictures.path(shard)
    draft = path.with_suffix(f".{os.getpid()}.tmp.npy")
    np.save(draft, stack)
    draft.replace(path)
