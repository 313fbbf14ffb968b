"""Rendered pictures on disk, in shards, so that an interrupted run loses one shard at most."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.finetune.world import KINDS, Scene, sample_scene, view
from mgpt_edge.finetune.world.dialogue import edit_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHARD = 500


@dataclass(frozen=True, slots=True)
class Pictures:
    """A split's first `count` scenes at one size, in `folder`.

    Attributes:
        count: A multiple of the shard size.
        kind: What of a scene is shown, one of KINDS, or "edited": the scene after its edit.
    """

    folder: Path
    split: str
    width: int
    height: int
    count: int
    kind: str = "picture"

    def __post_init__(self) -> None:
        if self.count < 1 or self.count % SHARD:
            msg = f"count must be a positive multiple of {SHARD}, got {self.count}"
            raise ValueError(msg)
        if self.kind not in (*KINDS, "edited"):
            msg = f"{self.kind!r} is none of {', '.join(KINDS)}, edited"
            raise ValueError(msg)

    def scene(self, index: int) -> Scene:
        """The scene of picture `index`."""
        return sample_scene(index, self.split)

    def one(self, index: int) -> NDArray[np.uint8]:
        """Picture `index`, rendered now."""
        scene = self.scene(index)
        if self.kind == "edited":
            return view(edit_of(scene, index).after, "picture", self.width, self.height)
        return view(scene, self.kind, self.width, self.height)

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
        return self.folder / f"{self.split}-{self.width}x{self.height}-{self.kind}-{shard:04d}.npy"


def _render_shard(pictures: Pictures, shard: int) -> None:
    stack = np.stack([pictures.one(shard * SHARD + i) for i in range(SHARD)])
    path = pictures.path(shard)
    draft = path.with_suffix(f".{os.getpid()}.tmp.npy")
    np.save(draft, stack)
    draft.replace(path)
