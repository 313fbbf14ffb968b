"""The small checkpoint, from nothing: each stage leaves a file in the work folder and is skipped when it is there."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from typing_extensions import Self

from mgpt_edge.export.model import Decoder
from mgpt_edge.export.tokenizer import read_vocabulary
from mgpt_edge.export.vqgan import VQGAN
from mgpt_edge.finetune import checkpoint
from mgpt_edge.finetune.data import Corpus, encode_pictures, world_text
from mgpt_edge.finetune.draw import Sampling
from mgpt_edge.finetune.fidelity import Painter
from mgpt_edge.finetune.files import replace_atomically
from mgpt_edge.finetune.judge import Judge, train_judge
from mgpt_edge.finetune.pictures import Pictures
from mgpt_edge.finetune.sft import Recipe, Stage, initialise, small_decoder, validation_loss
from mgpt_edge.finetune.tokenizer import for_text, train_tokenizer
from mgpt_edge.finetune.vq import Source, VQRecipe, VQTraining, measure
from mgpt_edge.finetune.world import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray


SAMPLING = Sampling(guidance=2.0, top_k=100, temperature=0.6)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One progressive stage: square pictures of `side` pixels, and how long they are trained on."""

    side: int
    pictures: int
    recipe: Recipe
    prompt_drop: float = 0.12


@dataclass(frozen=True, slots=True)
class VQPictures:
    """Square pictures that the VQGAN is trained on, and how often a window is taken from them."""

    side: int
    kind: str
    count: int
    weight: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides what the checkpoint becomes."""

    vq: VQRecipe
    vq_pictures: tuple[VQPictures, ...]
    stages: tuple[StagePlan, ...]
    dropout: float = 0.0
    held_back: int = 500

    def __post_init__(self) -> None:
        if not self.stages:
            msg = "a plan has at least one stage"
            raise ValueError(msg)


def default_plan() -> Plan:
    """What models/mini is made with."""
    colors = (VQPictures(128, "picture", 6000, 0.38), VQPictures(256, "picture", 3000, 0.30))
    dense = (VQPictures(side, kind, 1000, 0.04) for side in (128, 256) for kind in KINDS[1:])
    return Plan(
        vq=VQRecipe(steps=10000), vq_pictures=(*colors, *dense), stages=(StagePlan(128, 12000, Recipe(steps=3300)),)
    )


class Mini:
    """The pipeline: pictures, VQ, tokenizer, codes, transformer, checkpoint."""

    def __init__(self, work: Path, plan: Plan, processes: int = 2) -> None:
        self.work, self.plan, self.processes = work, plan, processes

    def pictures(self, stage: StagePlan, split: str) -> Pictures:
        """A stage's pictures, rendered if they are not there."""
        count = stage.pictures if split == "train" else self.plan.held_back
        pictures = Pictures(self.work / "pictures", split, stage.side, stage.side, count)
        pictures.render(self.processes)
        return pictures

    def vq(self) -> VQGAN:
        """The VQGAN, trained on pictures of every kind."""
        training = VQTraining(self.plan.vq, [self._source(part) for part in self.plan.vq_pictures], self.work)
        training.resume()
        with _Log(self.work / "vq.jsonl") as log:
            for record in training.run():
                if record["step"] % 25 == 0:
                    log(record)
                if record["step"] % 1000 == 0:
                    log({"step": record["step"], **self._vq_figures(training.model)})
        return training.model.eval()

    def _source(self, part: VQPictures) -> Source:
        pictures = Pictures(self.work / "pictures", "train", part.side, part.side, part.count, part.kind)
        pictures.render(self.processes)
        return Source(pictures.load(), part.weight)

    def _vq_figures(self, model: VQGAN) -> dict[str, float]:
        """PSNR of held-out pictures of each size, and the share of codes that they use."""
        figures: dict[str, float] = {}
        for side in sorted({part.side for part in self.plan.vq_pictures}):
            pictures = Pictures(self.work / "pictures", "validation", side, side, self.plan.held_back)
            pictures.render(self.processes)
            for name, value in measure(model.eval(), pictures.load()[:128]).items():
                figures[f"{name}_{side}"] = value
        model.train()
        return figures

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, trained on the captions of every stage's size."""
        path = self.work / "tokenizer.json"
        if not path.exists():
            sizes = tuple((stage.side, stage.side) for stage in self.plan.stages)
            checkpoint.write_tokenizer(self.work, train_tokenizer(world_text(8000, sizes), self.plan.vq.config.codes))
        return Tokenizer.from_file(str(path))

    def corpus(self, stage: StagePlan, split: str) -> Corpus:
        """A stage's pictures as codes, with their captions."""
        pictures, tokenizer = self.pictures(stage, split), self.tokenizer()
        path = self.work / f"codes-{split}-{stage.side}-{pictures.count}.npy"
        if not path.exists():
            codes = encode_pictures(self.vq(), pictures.load())
            replace_atomically(path, lambda draft: _save(draft, codes))
        drop = stage.prompt_drop if split == "train" else 0.0
        return Corpus(pictures, np.load(path), for_text(tokenizer), read_vocabulary(tokenizer.to_str()), drop)

    def decoder(self, tokenizer: Tokenizer) -> Decoder:
        """An untrained transformer."""
        model = Decoder(small_decoder(read_vocabulary(tokenizer.to_str()).size, self.plan.dropout))
        initialise(model, torch.Generator().manual_seed(0))
        return model

    def fp_sft(self) -> Iterator[dict[str, float]]:
        """Trains the stages in turn, each from the weights of the one before; yields records of the log."""
        model = self.decoder(self.tokenizer())
        for plan in self.plan.stages:
            corpus, held_back = self.corpus(plan, "train"), self.corpus(plan, "validation")
            stage = Stage(model, corpus, plan.recipe, self.work, f"stage-{plan.side}")
            stage.resume()
            began, first = time.monotonic(), stage.step
            with _Log(self.work / f"stage-{plan.side}.jsonl") as log:
                for record in stage.run():
                    if record["step"] % 20 == 0:
                        spent = time.monotonic() - began
                        record["left_s"] = spent / (stage.step - first) * (plan.recipe.steps - stage.step)
                        log(record)
                        yield record
                    if record["step"] % 400 == 0 or record["step"] == plan.recipe.steps:
                        checked = {"step": stage.step, "validation": validation_loss(model, held_back)}
                        log(checked)
                        yield checked
            model.load_state_dict(stage.average)

    def write(self, folder: Path, sampling: Sampling = SAMPLING) -> None:
        """Writes the checkpoint of the newest stage that has one, its weights averaged."""
        tokenizer, newest = self.tokenizer(), self._newest()
        state = torch.load(self._stage_path(newest), weights_only=True)
        config = small_decoder(read_vocabulary(tokenizer.to_str()).size, self.plan.dropout)
        checkpoint.write_decoder(folder, config, state["average"], positions=1024)
        vq = torch.load(self.work / "vq.pt", weights_only=True)
        checkpoint.write_vq(folder, self.plan.vq.config, vq["model"])
        checkpoint.write_tokenizer(folder, tokenizer)
        sizes = tuple((plan.side, plan.side) for plan in self.plan.stages if plan.side <= newest.side)
        defaults = checkpoint.Defaults("mini", newest.side, sampling, sizes)
        checkpoint.write_json(folder / "mgpt.json", defaults.to_json())

    def painter(self, split: str = "validation") -> Painter:
        """The newest stage's averaged weights, and the VQGAN, ready to draw."""
        plan = self._newest()
        model = self.decoder(self.tokenizer())
        model.load_state_dict(torch.load(self._stage_path(plan), weights_only=True)["average"])
        vq = VQGAN(self.plan.vq.config)
        vq.load_state_dict(torch.load(self.work / "vq.pt", weights_only=True)["model"])
        return Painter(model.eval(), vq.eval(), self.corpus(plan, split))

    def judge(self, epochs: int = 3) -> Judge:
        """The judge of the first stage's size, trained if it is not there."""
        path, judge, stage = self.work / "judge.pt", Judge(), self.plan.stages[0]
        if path.exists():
            judge.load_state_dict(torch.load(path, weights_only=True))
            return judge.eval()
        torch.manual_seed(0)
        for _ in train_judge(judge, self.pictures(stage, "train"), epochs):
            pass
        replace_atomically(path, lambda draft: torch.save(judge.state_dict(), draft))
        return judge.eval()

    def _newest(self) -> StagePlan:
        saved = [plan for plan in self.plan.stages if self._stage_path(plan).exists()]
        if not saved:
            msg = f"no trained stage in {self.work}; run the stage fp-sft first"
            raise FileNotFoundError(msg)
        return saved[-1]

    def _stage_path(self, plan: StagePlan) -> Path:
        return self.work / f"stage-{plan.side}.pt"


class _Log:
    """Appends records to a JSONL file, each flushed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a")

    def __enter__(self) -> Self:
        return self

    def __call__(self, record: dict[str, float]) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _save(path: Path, array: NDArray[np.int16]) -> None:
    with path.open("wb") as file:
        np.save(file, array)
