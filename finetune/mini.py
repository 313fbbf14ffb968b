"""The small checkpoint, from nothing: each stage leaves a file in the work folder and is skipped when it is there."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer

from mgpt_edge.export.model import Decoder
from mgpt_edge.export.tokenizer import read_vocabulary
from mgpt_edge.export.vqgan import VQGAN
from mgpt_edge.finetune import checkpoint
from mgpt_edge.finetune.album import Album, load_codes
from mgpt_edge.finetune.corpus import Corpus, Group, Part, world_text
from mgpt_edge.finetune.draw import Sampling
from mgpt_edge.finetune.journal import Journal
from mgpt_edge.finetune.judge import Judge, trained_judge
from mgpt_edge.finetune.kept import Kept, keep
from mgpt_edge.finetune.painter import Painter
from mgpt_edge.finetune.pictures import Pictures, render_together
from mgpt_edge.finetune.sft import Stage, finished_weights, initialise, small_decoder, validation_loss
from mgpt_edge.finetune.sharpen import Coded, Sharpening
from mgpt_edge.finetune.tasks import KINDS_OF, settings
from mgpt_edge.finetune.tokenizer import for_text, train_tokenizer
from mgpt_edge.finetune.vq import Source, VQTraining, measure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from mgpt_edge.finetune.plan import KeptPlan, Plan, Size, StagePlan, VQPictures
    from mgpt_edge.runtime.vocabulary import Vocabulary


BOTH = ("train", "held_out")
EYE_LAYERS = 4
SAMPLING = Sampling(guidance=2.0, top_k=100, temperature=0.5)


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
        yield from self._logged(training, Journal(self.work / "vq.jsonl"), self.plan.vq.steps)

    def _source(self, part: VQPictures) -> Source:
        pictures = Pictures(self.work / "pictures", "train", part.side, part.side, part.count, part.kind)
        pictures.render(self.processes)
        return Source(pictures.load(), part.weight, part.importance)

    def _logged(self, training: VQTraining | Sharpening, log: Journal, steps: int) -> Iterator[dict[str, float]]:
        for record in training.run():
            if record["step"] % 25 == 0:
                yield log.write(record)
            if record["step"] % 1000 == 0 or record["step"] == steps:
                yield log.write({"step": record["step"], **self._vq_figures(training.model)})

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
        yield from self._logged(training, Journal(self.work / "sharp.jsonl"), self.plan.sharpening.steps)

    def _coded(self, part: VQPictures) -> Coded:
        codes = self.codes((part.side, part.side), "train", {part.kind})[part.kind]
        codes = codes[0] if part.kind == "picture" else codes
        source = self._source(part)
        return Coded(source.pictures, codes[: part.count], part.weight, part.importance)

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

    def corpus(self, stage: StagePlan, split: str) -> Corpus:
        """What a stage is trained on, or the same tasks over held-back scenes, of which the model keeps no pictures."""
        kinds: dict[Size, set[str]] = {}
        shown = {key for key in stage.tasks if key[0] != "kept"}
        for task, size in shown:
            kinds.setdefault(size, set()).update(KINDS_OF.get(task, set()))
        albums = {size: self.album(size, split, wanted) for size, wanted in kinds.items()}
        sources: dict[tuple[str, Size], Album | Kept] = {(task, size): albums[size] for task, size in shown}
        if split == "train":
            sources |= {("kept", s): self._kept(stage, s) for task, s in stage.tasks if task == "kept"}
        parts = [
            [Part(key[0], sources[key], weight) for key, weight in plan.tasks.items() if key in sources]
            for plan in stage.groups
        ]
        groups = [Group(has, plan.batch, plan.weight) for has, plan in zip(parts, stage.groups, strict=True) if has]
        drop = stage.prompt_drop if split == "train" else 0.0
        return Corpus(groups, for_text(self.tokenizer), self.vocabulary, drop, stage.recipe.seed)

    def keep(self, stage: StagePlan) -> Iterator[dict[str, float]]:
        """Has the pictures drawn that a stage is trained on, until as many are right; yields records of the log."""
        for plan in stage.kept:
            painter = self.painter(plan.artist)
            for size, count in plan.counts.items():
                yield from keep(painter, self.critic, size, count, plan.sampling, self._kept_file(plan, size))

    def _kept(self, stage: StagePlan, size: Size) -> Kept:
        files = [self._kept_file(plan, size) for plan in stage.kept if size in plan.counts]
        return Kept(files, *size, self.vocabulary)

    def _kept_file(self, plan: KeptPlan, size: Size) -> Path:
        artist = "+".join(f"{share:g}-{stage}" for stage, share in sorted(plan.artist.items()))
        return self.work / f"kept-{artist}-{size[0]}x{size[1]}.npz"

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
            yield from self.keep(plan)
            corpus, held_back = self.corpus(plan, "train"), self.corpus(plan, "validation")
            stage = Stage(model, corpus, plan.recipe, self.work, f"stage-{plan.name}")
            stage.resume()
            began, first = time.monotonic(), stage.step
            log = Journal(self.work / f"stage-{plan.name}.jsonl")
            for record in stage.run():
                if record["step"] % 20 == 0:
                    spent = time.monotonic() - began
                    record["left_s"] = spent / (stage.step - first) * (plan.recipe.steps - stage.step)
                    yield log.write(record)
                if record["step"] % 500 == 0 or record["step"] == plan.recipe.steps:
                    yield log.write({"step": stage.step, "validation": validation_loss(model, held_back)})
            model.load_state_dict(stage.average)

    def trained_decoder(self) -> tuple[StagePlan, Decoder]:
        """The newest stage that has a checkpoint, and what is written: its averaged weights, or the plan's mean."""
        saved = [plan for plan in self.plan.stages if (self.work / f"stage-{plan.name}.pt").exists()]
        if not saved:
            msg = f"no trained stage in {self.work}; run the stage fp-sft first"
            raise FileNotFoundError(msg)
        shares = self.plan.shares if set(self.plan.shares) <= {plan.name for plan in saved} else {}
        return saved[-1], self._mean(shares or {saved[-1].name: 1.0})

    def _mean(self, shares: Mapping[str, float]) -> Decoder:
        """The mean of stages' averaged weights."""
        model, mean = self.decoder(), {}
        for stage, share in shares.items():
            weights = torch.load(self._trained(f"stage-{stage}"), weights_only=True)["average"]
            mean = {name: mean.get(name, 0) + share * value for name, value in weights.items()}
        model.load_state_dict(mean)
        return model.eval()

    def painter(self, shares: Mapping[str, float] | None = None) -> Painter:
        """The mean of these stages at work, or what is written."""
        model = self._mean(shares) if shares else self.trained_decoder()[1]
        return Painter(model, self.vq, for_text(self.tokenizer), self.vocabulary)

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

    def _trained(self, name: str) -> Path:
        path = self.work / f"{name}.pt"
        if not path.exists():
            msg = f"there is no {path}; run `make mini`, or the training stage that makes it"
            raise FileNotFoundError(msg)
        return path
