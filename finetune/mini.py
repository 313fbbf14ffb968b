"""The small checkpoint, from nothing: each stage leaves a file in the work folder and is skipped when it is there."""

from __future__ import annotations

import json
import time
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from typing_extensions import Self

from mgpt_edge.export.model import Decoder
from mgpt_edge.export.tokenizer import read_vocabulary
from mgpt_edge.export.vqgan import VQGAN
from mgpt_edge.finetune import checkpoint
from mgpt_edge.finetune.album import Album, encode_pictures, load_codes
from mgpt_edge.finetune.corpus import Corpus, Group, Part, world_text
from mgpt_edge.finetune.draw import Sampling
from mgpt_edge.finetune.judge import Judge, train_judge
from mgpt_edge.finetune.painter import Painter
from mgpt_edge.finetune.pictures import Pictures, render_together
from mgpt_edge.finetune.sft import Stage, finished_weights, initialise, small_decoder, validation_loss
from mgpt_edge.finetune.sharpen import Coded, Sharpening
from mgpt_edge.finetune.tasks import KINDS_OF, settings
from mgpt_edge.finetune.tokenizer import for_text, train_tokenizer
from mgpt_edge.finetune.vq import Source, VQTraining, measure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

    from mgpt_edge.finetune.plan import Plan, Size, StagePlan, VQPictures
    from mgpt_edge.runtime.vocabulary import Vocabulary


EYE_LAYERS = 4
SAMPLING = Sampling(guidance=3.0, top_k=100, temperature=0.7)


class Mini:
    """The pipeline: pictures, VQ, tokenizer, codes, transformer, checkpoint."""

    def __init__(self, work: Path, plan: Plan, processes: int = 2) -> None:
        self.work, self.plan, self.processes = work, plan, processes

    def pictures(self, size: Size, split: str, kind: str = "picture") -> Pictures:
        """A split's pictures of one size and kind; not rendered yet."""
        counts = {"train": self.plan.albums[size][kind], "held_out": self.plan.unseen_pairs}
        count = counts.get(split, self.plan.held_back)
        return Pictures(self.work / "pictures", split, *size, count, kind)

    def train_vq(self) -> Iterator[dict[str, float]]:
        """Trains the VQGAN on pictures of every kind; yields records of the log."""
        sources = [self._source(part) for part in self.plan.vq_pictures]
        training = VQTraining(self.plan.vq, sources, self.work, self.eye)
        training.resume()
        with _Log(self.work / "vq.jsonl") as log:
            for record in training.run():
                if record["step"] % 25 == 0:
                    yield log(record)
                if record["step"] % 1000 == 0 or record["step"] == self.plan.vq.steps:
                    yield log({"step": record["step"], **self._vq_figures(training.model)})

    def _source(self, part: VQPictures) -> Source:
        pictures = Pictures(self.work / "pictures", "train", part.side, part.side, part.count, part.kind)
        pictures.render(self.processes)
        return Source(pictures.load(), part.weight, part.importance)

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

    @cached_property
    def vq(self) -> VQGAN:
        """The trained VQGAN, its decoder sharpened as far as that has come."""
        state = torch.load(self._trained("vq"), weights_only=True)
        if state["step"] < self.plan.vq.steps:
            msg = f"the VQGAN in {self.work} is at step {state['step']} of {self.plan.vq.steps}; run the stage vq first"
            raise FileNotFoundError(msg)
        sharp = self.work / "sharp.pt"
        weights = torch.load(sharp, weights_only=True)["model"] if sharp.exists() else state["model"]
        vq = VQGAN(self.plan.vq.config)
        vq.load_state_dict(weights)
        return vq.eval()

    def sharpen(self) -> Iterator[dict[str, float]]:
        """Trains the VQGAN's decoder on, every code staying as it is; yields records of the log."""
        sources = [self._coded(part) for part in self.plan.vq_pictures]
        training = Sharpening(self.plan.sharpening, self.vq, sources, self.work)
        training.resume()
        with _Log(self.work / "sharp.jsonl") as log:
            for record in training.run():
                if record["step"] % 25 == 0:
                    yield log(record)
                if record["step"] % 1000 == 0 or record["step"] == self.plan.sharpening.steps:
                    yield log({"step": record["step"], **self._vq_figures(training.model)})

    def _coded(self, part: VQPictures) -> Coded:
        source = self._source(part)
        return Coded(source.pictures, encode_pictures(self.vq, source.pictures), part.weight, part.importance)

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
        """Pictures of one size as codes."""
        pictures = {kind: self.pictures(size, split, kind) for kind in sorted(kinds | {"picture"})}
        codes = {kind: self.work / f"codes-{p.name}.npy" for kind, p in pictures.items()}
        missing = [pictures[kind] for kind, path in codes.items() if not path.exists()]
        render_together(missing, self.processes)
        loaded = {kind: load_codes(pictures[kind], codes[kind], lambda: self.vq) for kind in pictures}
        return Album(pictures, loaded, self.vocabulary)

    def corpus(self, stage: StagePlan, split: str) -> Corpus:
        """What a stage is trained on, or the same tasks over held-back scenes."""
        kinds: dict[Size, set[str]] = {}
        for task, size in stage.tasks:
            kinds.setdefault(size, set()).update(KINDS_OF.get(task, set()))
        albums = {size: self.album(size, split, wanted) for size, wanted in kinds.items()}
        groups = [
            Group(
                [Part(task, albums[size], weight) for (task, size), weight in plan.tasks.items()],
                plan.batch,
                plan.weight,
            )
            for plan in stage.groups
        ]
        drop = stage.prompt_drop if split == "train" else 0.0
        return Corpus(groups, for_text(self.tokenizer), self.vocabulary, drop, stage.recipe.seed)

    def decoder(self) -> Decoder:
        """An untrained transformer."""
        model = Decoder(small_decoder(self.vocabulary.size, self.plan.dropout))
        initialise(model, torch.Generator().manual_seed(0))
        return model

    def train_stages(self) -> Iterator[dict[str, float]]:
        """Trains the stages in turn, each from the averaged weights of the one before; yields records of the log."""
        model = self.decoder()
        for plan in self.plan.stages:
            finished = finished_weights(self.work / f"stage-{plan.name}.pt", plan.recipe)
            if finished is not None:  # its pictures are not needed any more
                model.load_state_dict(finished)
                continue
            corpus, held_back = self.corpus(plan, "train"), self.corpus(plan, "validation")
            stage = Stage(model, corpus, plan.recipe, self.work, f"stage-{plan.name}")
            stage.resume()
            began, first = time.monotonic(), stage.step
            with _Log(self.work / f"stage-{plan.name}.jsonl") as log:
                for record in stage.run():
                    if record["step"] % 20 == 0:
                        spent = time.monotonic() - began
                        record["left_s"] = spent / (stage.step - first) * (plan.recipe.steps - stage.step)
                        yield log(record)
                    if record["step"] % 500 == 0 or record["step"] == plan.recipe.steps:
                        yield log({"step": stage.step, "validation": validation_loss(model, held_back)})
            model.load_state_dict(stage.average)

    def trained_decoder(self) -> tuple[StagePlan, Decoder]:
        """The newest stage that has a checkpoint, and its averaged weights."""
        saved = [plan for plan in self.plan.stages if (self.work / f"stage-{plan.name}.pt").exists()]
        if not saved:
            msg = f"no trained stage in {self.work}; run the stage fp-sft first"
            raise FileNotFoundError(msg)
        model = self.decoder()
        model.load_state_dict(torch.load(self._trained(f"stage-{saved[-1].name}"), weights_only=True)["average"])
        return saved[-1], model.eval()

    def painter(self) -> Painter:
        """The newest stage at work."""
        return Painter(self.trained_decoder()[1], self.vq, for_text(self.tokenizer), self.vocabulary)

    def write(self, folder: Path, sampling: Sampling = SAMPLING) -> None:
        """Writes the checkpoint of the newest stage, and beside it the judge that its figures come from."""
        stage, model = self.trained_decoder()
        checkpoint.write_decoder(folder, model.config, model.state_dict(), positions=1024)
        checkpoint.write_vq(folder, self.plan.vq.config, self.vq.state_dict())
        checkpoint.write_tokenizer(folder, self.tokenizer)
        tasks = settings({task for task, _ in stage.tasks}, sampling)
        defaults = checkpoint.Defaults("mini", stage.side, sampling, stage.sizes, tasks)
        checkpoint.write_json(folder / "mgpt.json", defaults.to_json())
        self.judge.save(folder / "judge.safetensors")

    @cached_property
    def judge(self) -> Judge:
        """Reads pictures for the scores; trained if it is not there.

        On pairs of color and shape that the model never sees, too: what it makes of them is to be read.
        """
        return self._reader(
            "judge", list(self.plan.albums), self.plan.judge_steps, seed=0, splits=("train", "held_out")
        )

    @cached_property
    def eye(self) -> nn.Sequential:
        """What the VQGAN learns to please: the first layers of a reader of its own, never the judge."""
        part = self.plan.vq_pictures[0]
        reader = self._reader("eye", [(part.side, part.side)], self.plan.eye_steps, seed=1)
        return reader.trunk[:EYE_LAYERS].requires_grad_(requires_grad=False)

    def _reader(
        self, name: str, sizes: list[Size], steps: int, seed: int, splits: tuple[str, ...] = ("train",)
    ) -> Judge:
        path = self.work / f"{name}.safetensors"
        if not path.exists():
            torch.manual_seed(seed)
            judge = Judge()
            albums = [[self.pictures(size, split) for split in splits] for size in sizes]
            for pictures in (pictures for album in albums for pictures in album):
                pictures.render(self.processes)
            for _ in train_judge(judge, albums, steps, seed=seed):
                pass
            judge.save(path)
        return Judge.load(path)

    def _trained(self, name: str) -> Path:
        path = self.work / f"{name}.pt"
        if not path.exists():
            msg = f"there is no {path}; run `make mini`, or the training stage that makes it"
            raise FileNotFoundError(msg)
        return path


class _Log:
    """Appends records to a JSONL file, each flushed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a")

    def __enter__(self) -> Self:
        return self

    def __call__(self, record: dict[str, float]) -> dict[str, float]:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        return record

    def __exit__(self, *_: object) -> None:
        self.file.close()
