"""The judge: a small network, trained on rendered pictures only, that reads which solids a picture shows and where."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgpt_edge.finetune.arithmetic import mixed
from mgpt_edge.finetune.files import replace_atomically
from mgpt_edge.finetune.mini.world.camera import project, standing_at
from mgpt_edge.finetune.mini.world.scene import COLORS, FLOORS, SHAPES, SIZES, Scene, Solid, relation
from mgpt_edge.finetune.mini.world.solids import bounding_sphere
from mgpt_edge.finetune.optimizer import cosine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mgpt_edge.finetune.mini.pictures import Pictures

CELL = 8  # pixels of a cell's side
SHORTER_SIDE = 128  # pixels; the world shows the same width along it at every size
# Of roughened pictures: pixels a wave, then the largest standard deviations, in pixels, pixels and levels.
BEND, BENT, BLURRED, GRAINY = 16, 1.5, 2.0, 6.0
HEADS = {"solid": 1, "color": len(COLORS), "shape": len(SHAPES), "size": len(SIZES)}
FEW = 8.0
"""How much a cell with a solid's middle weighs in the loss: one in 170 has one."""
SEEN = -1.0
"""Logit from which on a solid is there; between it and 0 lie soft ones that are drawn, and next to nothing else."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the judge sees in one picture; the solids' finish is not read.

    Attributes:
        sure: the least probability that it gives a solid, its color and its shape.
    """

    solids: tuple[Solid, ...]
    floor: str
    sure: float = 1.0

    def shows(self, scene: Scene, where: bool = True) -> bool:
        """Exactly the scene's solids by color and shape, and, if `where` matters, two of them in their relation."""
        wanted = {(s.color, s.shape): s for s in scene.solids}
        seen = {(s.color, s.shape): s for s in self.solids}
        if len(self.solids) != len(scene.solids) or wanted.keys() != seen.keys():
            return False
        if len(scene.solids) != 2 or not where:
            return True
        first, second = ((s.color, s.shape) for s in scene.solids)
        # What is seen is never quite in place: of it the larger direction counts, by however little.
        return relation(seen[first], seen[second], margin=0) == relation(wanted[first], wanted[second])


class Judge(nn.Module):
    """Pixels -> one guess for each cell of 8x8 pixels: is a solid's middle here, and which."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _conv(3, 24, stride=2),
            _conv(24, 48, stride=2),
            _conv(48, width, stride=2),
            *(_conv(width, width, dilation=d) for d in (1, 2, 4, 1)),
        )
        self.heads = nn.Conv2d(width, sum(HEADS.values()), 1)
        self.floor = nn.Linear(width, len(FLOORS))

    def forward(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Pixels [b, h, w, 3] of scale 0..255 -> maps by head's name, [b, n, h/8, w/8]; the floor's logits [b, 4]."""
        features = self.trunk(pixels.permute(0, 3, 1, 2) / 127.5 - 1)
        maps = self.heads(features).split(list(HEADS.values()), dim=1)
        return dict(zip(HEADS, maps, strict=True)), self.floor(features.mean((2, 3)))

    def save(self, path: Path) -> None:
        """Writes the weights, whole or not at all."""
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        replace_atomically(path, lambda draft: save_file(weights, draft))

    @classmethod
    def load(cls, path: Path) -> Judge:
        """Reads what `save` wrote."""
        judge = cls()
        judge.load_state_dict(load_file(path))
        return judge.eval()

    @torch.inference_mode()
    def read(self, pixels: NDArray[np.uint8], batch: int = 100) -> list[Reading]:
        """What pictures [n, h, w, 3] show."""
        self.eval()
        readings: list[Reading] = []
        for start in range(0, len(pixels), batch):
            maps, floors = self(same_scale(torch.from_numpy(pixels[start : start + batch])))
            solid = maps["solid"]
            peaks = (solid > SEEN) & (solid == F.max_pool2d(solid, 3, stride=1, padding=1))
            likely = maps["color"].softmax(1).amax(1) * maps["shape"].softmax(1).amax(1) * solid[:, 0].sigmoid()
            for i, floor in enumerate(floors.argmax(1).tolist()):
                cells = peaks[i, 0].nonzero().tolist()
                sure = min((float(likely[i, row, column]) for row, column in cells), default=1.0)
                shown = {name: values[i] for name, values in maps.items()}
                solids = tuple(_solid(shown, row, column) for row, column in cells)
                readings.append(Reading(solids, FLOORS[floor], sure))
        return readings


def same_scale(pixels: Tensor) -> Tensor:
    """uint8 [b, h, w, 3] -> float [b, h', w', 3] whose shorter side is SHORTER_SIDE, averaged over areas."""
    height, width = pixels.shape[1:3]
    shorter = min(height, width)
    if shorter == SHORTER_SIDE:
        return pixels.float()
    size = (height * SHORTER_SIDE // shorter, width * SHORTER_SIDE // shorter)
    return F.interpolate(pixels.permute(0, 3, 1, 2).float(), size, mode="area").permute(0, 2, 3, 1)


def _conv(before: int, after: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


def _solid(maps: dict[str, Tensor], row: int, column: int) -> Solid:
    """What one picture's maps say of a cell, [n, h/8, w/8]."""
    best = {name: int(maps[name][:, row, column].argmax()) for name in ("color", "shape", "size")}
    solid = Solid(SHAPES[best["shape"]], COLORS[best["color"]], SIZES[best["size"]], "matte", 0, 0)
    height, width = maps["solid"].shape[1:]
    # The middle within its cell, by the probabilities of those around; `FEW` made all of them larger.
    near = F.pad((maps["solid"][0] - math.log(FEW)).sigmoid(), (1, 1, 1, 1))[row : row + 3, column : column + 3]
    ahead = torch.tensor([-0.5, 0.5, 1.5])
    down, right = (float((near.sum(dim) * ahead).sum() / near.sum()) for dim in (1, 0))
    middle, _ = bounding_sphere(solid)
    pixel = CELL * (column + right), CELL * (row + down)
    x, y = standing_at(*pixel, middle, CELL * width, CELL * height)
    return replace(solid, x=x, y=y)


@dataclass(frozen=True, slots=True, eq=False)
class _Targets:
    """Each solid of a batch as one row: which picture and cell, and what is true there."""

    where: Tensor  # int64 [n, 3]: picture, row, column
    looks: Tensor  # int64 [n, 3]: color, shape, size
    floors: Tensor  # int64 [b]


def _targets(scenes: list[Scene], width: int, height: int) -> _Targets:
    where, looks = [], []
    for picture, scene in enumerate(scenes):
        for solid in scene.solids:
            column, row, _ = project(solid.x, solid.y, bounding_sphere(solid)[0], width, height)
            where.append((picture, _cell(row, height), _cell(column, width)))
            looks.append((COLORS.index(solid.color), SHAPES.index(solid.shape), SIZES.index(solid.size)))
    floors = torch.tensor([FLOORS.index(scene.floor) for scene in scenes])
    return _Targets(torch.tensor(where), torch.tensor(looks), floors)


def _cell(pixel: float, side: int) -> int:
    return int(np.clip(pixel // CELL, 0, side // CELL - 1))


def judge_loss(maps: dict[str, Tensor], floors: Tensor, targets: _Targets) -> Tensor:
    """Sum of the heads' losses; what a solid is counts at its own cell only."""
    picture, row, column = targets.where.unbind(1)
    truth = torch.zeros_like(maps["solid"])
    truth[picture, 0, row, column] = 1
    loss = 4 * F.binary_cross_entropy_with_logits(maps["solid"], truth, pos_weight=torch.tensor(FEW))
    for head, wanted in zip(("color", "shape", "size"), targets.looks.unbind(1), strict=True):
        loss = loss + F.cross_entropy(maps[head][picture, :, row, column], wanted)
    return loss + 0.3 * F.cross_entropy(floors, targets.floors)


def trained_judge(path: Path, albums: Sequence[Sequence[Pictures]], steps: int, seed: int, processes: int) -> Judge:
    """The judge of a file, trained if it is not there; as of `train_judge`, whose pictures are rendered for it."""
    if not path.exists():
        torch.manual_seed(seed)
        judge = Judge()
        for pictures in (pictures for album in albums for pictures in album):
            pictures.render(processes)
        for _ in train_judge(judge, albums, steps, seed=seed):
            pass
        judge.save(path)
    return Judge.load(path)


def roughened(pixels: Tensor, chance: torch.Generator) -> Tensor:
    """float [b, h, w, 3]: bent, blurred and grainy, each picture by an amount of its own from nothing on.

    What is drawn through a codebook is never as clean as a render, and is to be read as a person would.
    """
    count, height, width, _ = pixels.shape
    image = pixels.permute(0, 3, 1, 2)
    rows, columns = (torch.linspace(-1, 1, side) for side in (height, width))
    straight = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1)
    waves = torch.randn(count, 2, height // BEND, width // BEND, generator=chance)
    bend = F.interpolate(waves, (height, width), mode="bicubic").permute(0, 2, 3, 1)
    amount = BENT * torch.rand(count, 1, 1, 1, generator=chance) * 2 / torch.tensor([width, height])
    image = F.grid_sample(image, straight + amount * bend, padding_mode="border", align_corners=True)
    offsets = torch.arange(-4, 5.0)
    sigma = 0.1 + BLURRED * torch.rand(count, 1, generator=chance)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    taps = (weights / weights.sum(1, keepdim=True)).repeat_interleave(3, 0)
    flat = F.pad(image.reshape(1, 3 * count, height, width), (4, 4, 4, 4), mode="replicate")
    flat = F.conv2d(flat, taps[:, None, None, :], groups=3 * count)
    image = F.conv2d(flat, taps[:, None, :, None], groups=3 * count).view_as(image)
    grain = GRAINY * torch.rand(count, 1, 1, 1, generator=chance) * torch.randn(image.shape, generator=chance)
    return (image + grain).clamp(0, 255).permute(0, 2, 3, 1)


def train_judge(
    judge: Judge,
    albums: Sequence[Sequence[Pictures]],
    steps: int,
    parts: Sequence[int] = (56, 8),
    rate: float = 3e-3,
    seed: int = 0,
) -> Iterator[float]:
    """Trains on rendered pictures and their mirror images, yielding each step's loss.

    Args:
        judge: is changed.
        albums: of each size one of every split; sizes are taken as often, however few pictures one has.
        steps: batches.
        parts: of a batch, how many pictures are of each split.
        rate: highest of the cosine.
        seed: of everything random.
    """
    loaded = [[(pictures, pictures.load()) for pictures in album] for album in albums]
    rng, chance = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=rate, weight_decay=1e-2)
    judge.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * cosine(step, steps)
        images, shown = [], []
        for (pictures, pixels), count in zip(loaded[rng.integers(len(loaded))], parts, strict=False):
            picked = rng.choice(pictures.count, count, replace=False)
            images.append(pixels[picked])
            shown += [pictures.scene(index) for index in picked.tolist()]
        image, mirror = np.concatenate(images), rng.random(len(shown)) < 0.5
        image[mirror] = image[mirror, :, ::-1]
        shown = [scene.mirrored() if turned else scene for scene, turned in zip(shown, mirror, strict=True)]
        scaled = roughened(same_scale(torch.from_numpy(image)), chance)
        with mixed():
            maps, floors = judge(scaled)
        maps = {name: values.float() for name, values in maps.items()}
        loss = judge_loss(maps, floors.float(), _targets(shown, scaled.shape[2], scaled.shape[1]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield loss.item()
