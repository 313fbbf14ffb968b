"""Rendered pictures on disk, in shards, so that an interrupted run loses one shard at most."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.finetune.files import replace_atomically
from mgpt_edge.finetune.mini.world import KINDS, Frame, Scene, render, sample_scene, view
from mgpt_edge.finetune.mini.world.dialogue import edit_of

if TYPE_CHECKING:
    from collections.abc import Sequence
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
        return _scene(index, self.split)

    def render(self, processes: int) -> None:
        """Renders the shards that are not there yet."""
        render_together([self], processes)

    def of(self, scene: Scene, index: int, frame: Frame) -> NDArray[np.uint8]:
        """Picture `index`, given its scene's frame."""
        if self.kind == "edited":
            return render(edit_of(scene, index).after, self.width, self.height).picture
        return view(scene, frame, self.kind)

    def load(self) -> NDArray[np.uint8]:
        """All pictures, [count, height, width, 3]."""
        return np.concatenate([np.load(self.path(shard)) for shard in range(self.count // SHARD)])

    @property
    def name(self) -> str:
        """Names of files begin with it."""
        return f"{self.split}-{self.width}x{self.height}-{self.kind}"

    def path(self, shard: int) -> Path:
        """The file of a shard's pictures."""
        return self.folder / f"{self.name}-{shard:04d}.npy"


@cache
def _scene(index: int, split: str) -> Scene:
    """Pictures of every size and kind show the same scenes, and sampling one takes a while."""
    return sample_scene(index, split)


def render_together(group: Sequence[Pictures], processes: int) -> None:
    """Renders the missing shards of pictures of one split and size, each scene once for all kinds."""
    if not group:
        return
    shards = range(max(pictures.count for pictures in group) // SHARD)
    missing = [
        (tuple(p for p in group if shard < p.count // SHARD and not p.path(shard).exists()), shard) for shard in shards
    ]
    jobs = [job for job in missing if job[0]]
    if not jobs:
        return
    group[0].folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes) as pool:
        for _ in pool.map(_render_shard, *zip(*jobs, strict=True)):
            pass


def _render_shard(group: Sequence[Pictures], shard: int) -> None:
    stacks: list[list[NDArray[np.uint8]]] = [[] for _ in group]
    for index in range(shard * SHARD, (shard + 1) * SHARD):
        scene = group[0].scene(index)
        frame = render(scene, group[0].width, group[0].height)
        for stack, pictures in zip(stacks, group, strict=True):
            stack.append(pictures.of(scene, index, frame))
    for stack, pictures in zip(stacks, group, strict=True):
        path = pictures.path(shard)
        replace_atomically(path, partial(_save, np.stack(stack)))


def _save(array: NDArray[np.uint8], draft: Path) -> None:
    with draft.open("wb") as file:  # by its name NumPy would add another suffix
        np.save(file, array)
