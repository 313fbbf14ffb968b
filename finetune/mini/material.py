"""What a small checkpoint is trained with: pictures, VQ, words, codes and readers, each made when first asked for."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer

from mgpt_edge.export.tokenizer import read_vocabulary
from mgpt_edge.export.vqgan import VQGAN
from mgpt_edge.finetune.arithmetic import CPU
from mgpt_edge.finetune.mini import checkpoint
from mgpt_edge.finetune.mini.album import Album, load_codes
from mgpt_edge.finetune.mini.corpus import world_text
from mgpt_edge.finetune.mini.judge import Judge, trained_judge
from mgpt_edge.finetune.mini.pictures import Pictures, render_together
from mgpt_edge.finetune.mini.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from mgpt_edge.finetune.mini.plan import Plan, Size
    from mgpt_edge.runtime.family.vocabulary import Vocabulary

BOTH = ("train", "held_out")
EYE_LAYERS = 4


class Material:
    """Everything in a work folder but the transformer.

    Args:
        work: the folder.
        plan: what is made.
        processes: that render.
        device: of the VQGAN and the transformer; readers are small and stay on the CPU.
    """

    def __init__(self, work: Path, plan: Plan, processes: int = 2, device: torch.device = CPU) -> None:
        self.work, self.plan, self.processes, self.device = work, plan, processes, device

    def pictures(self, size: Size, split: str, kind: str = "picture") -> Pictures:
        """A split's pictures of one size and kind; not rendered yet."""
        counts = {"train": self.plan.albums[size][kind], "held_out": self.plan.unseen_pairs}
        count = counts.get(split, self.plan.held_back)
        return Pictures(self.work / "pictures", split, *size, count, kind)

    @cached_property
    def vq(self) -> VQGAN:
        """The trained VQGAN."""
        state = torch.load(self.trained("vq"), map_location="cpu", weights_only=True)
        if state["step"] < self.plan.vq.steps:
            msg = f"the VQGAN in {self.work} is at step {state['step']} of {self.plan.vq.steps}; run the stage vq first"
            raise FileNotFoundError(msg)
        vq = VQGAN(self.plan.vq.config)
        vq.load_state_dict(state["model"])
        return vq.eval().to(self.device)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, trained on the words of every task and size."""
        path = self.work / "tokenizer.json"
        if not path.exists():
            sizes = sorted(self.plan.albums)
            checkpoint.write_tokenizer(self.work, train_tokenizer(world_text(8000, sizes), self.plan.vq.config.codes))
        return Tokenizer.from_file(str(path))

    @property
    def vocabulary(self) -> Vocabulary:
        return read_vocabulary(self.tokenizer.to_str())

    def album(self, size: Size, split: str, kinds: set[str]) -> Album:
        """Pictures of one size as tokens."""
        kinds = kinds | {"picture"}
        pictures = {kind: self.pictures(size, split, kind) for kind in sorted(kinds)}
        return Album(pictures, self.codes(size, split, kinds), self.vocabulary)

    def codes(self, size: Size, split: str, kinds: set[str]) -> dict[str, NDArray[np.int16]]:
        """Pictures of one size as codes by kind, as `Album` takes them; rendered and encoded once."""
        pictures = {kind: self.pictures(size, split, kind) for kind in sorted(kinds)}
        files = {kind: self.work / f"codes-{p.name}.npy" for kind, p in pictures.items()}
        render_together([pictures[kind] for kind, path in files.items() if not path.exists()], self.processes)
        return {kind: load_codes(pictures[kind], files[kind], lambda: self.vq) for kind in pictures}

    @cached_property
    def judge(self) -> Judge:
        """Reads pictures for the scores; trained if it is not there.

        On pairs of color and shape that the model never sees, too: what it makes of them is to be read.
        """
        return self._reader("judge", list(self.plan.albums), self.plan.judge_steps, seed=2, splits=BOTH)

    @cached_property
    def critic(self) -> Judge:
        """Chooses among the model's own pictures: never the judge, whose figures would flatter what it had chosen."""
        return self._reader("critic", list(self.plan.albums), self.plan.judge_steps, seed=0, splits=BOTH)

    @cached_property
    def eye(self) -> nn.Sequential:
        """What the VQGAN learns to please: the first layers of a reader of its own, never the judge."""
        part = self.plan.vq_pictures[0]
        reader = self._reader("eye", [(part.side, part.side)], self.plan.eye_steps, seed=1)
        return reader.trunk[:EYE_LAYERS].requires_grad_(requires_grad=False)

    def _reader(
        self, name: str, sizes: list[Size], steps: int, seed: int, splits: tuple[str, ...] = ("train",)
    ) -> Judge:
        albums = [[self.pictures(size, split) for split in splits] for size in sizes]
        return trained_judge(self.work / f"{name}.safetensors", albums, steps, seed, self.processes)

    def trained(self, name: str) -> Path:
        """The file of what was trained.

        Raises:
            FileNotFoundError: it is not there.
        """
        path = self.work / f"{name}.pt"
        if not path.exists():
            msg = f"there is no {path}; run `make mini`, or the training stage that makes it"
            raise FileNotFoundError(msg)
        return path
