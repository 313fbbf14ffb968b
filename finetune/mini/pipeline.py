"""The small checkpoint, from nothing: each stage leaves a file in the work folder and is skipped when it is there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from mgpt_edge.export.model import Decoder
from mgpt_edge.finetune.journal import Journal
from mgpt_edge.finetune.mini import checkpoint
from mgpt_edge.finetune.mini.corpus import Corpus, Group, Part
from mgpt_edge.finetune.mini.decoder import initialise, small_decoder, validation_loss
from mgpt_edge.finetune.mini.draw import Sampling
from mgpt_edge.finetune.mini.kept import Kept, keep
from mgpt_edge.finetune.mini.material import Material
from mgpt_edge.finetune.mini.painter import Painter
from mgpt_edge.finetune.mini.pictures import Pictures
from mgpt_edge.finetune.mini.rewarded import Rewarded
from mgpt_edge.finetune.mini.tasks import KINDS_OF, settings
from mgpt_edge.finetune.mini.tokenizer import for_text
from mgpt_edge.finetune.mini.vq import Source, VQTraining, measure
from mgpt_edge.finetune.parallel import Processes
from mgpt_edge.finetune.sft import Stage, finished_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from mgpt_edge.export.vqgan import VQGAN
    from mgpt_edge.finetune.mini.album import Album
    from mgpt_edge.finetune.mini.plan import KeptPlan, RewardPlan, Size, StagePlan, VQPictures


SAMPLING = Sampling(guidance=2.5, top_k=100, temperature=0.4)
COMPILED = 500
"""Steps of a stage from which on compiling the transformer pays: a minute for a quarter of each step."""


class Mini(Material):
    """The pipeline: VQ, transformer, checkpoint."""

    def train_vq(self) -> Iterator[dict[str, float]]:
        """Trains the VQGAN on pictures of every kind; yields records of the log."""
        sources = [self._source(part) for part in self.plan.vq_pictures]
        training = VQTraining(self.plan.vq, sources, self.work, self.eye, self.device)
        training.resume()
        log = Journal(self.work / "vq.jsonl")
        for record in training.run():
            if record["step"] % 25 == 0:
                yield log.write(record)
            if record["step"] % 1000 == 0 or record["step"] == self.plan.vq.steps:
                yield log.write({"step": record["step"], **self._vq_figures(training.model)})

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

    def corpus(self, stage: StagePlan, split: str) -> Corpus:
        """What a stage is trained on, or the same tasks over held-back scenes, of which the model keeps no pictures."""
        kinds: dict[Size, set[str]] = {}
        shown = {key for key in stage.shown if key[0] != "kept"}
        for task, size in shown:
            kinds.setdefault(size, set()).update(KINDS_OF.get(task, set()))
        albums = {size: self.album(size, split, wanted) for size, wanted in kinds.items()}
        sources: dict[tuple[str, Size], Album | Kept] = {(task, size): albums[size] for task, size in shown}
        if split == "train":
            sources |= {("kept", s): self._kept(stage, s) for task, s in stage.shown if task == "kept"}
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
        return model.to(self.device)

    def train_stages(self) -> Iterator[dict[str, float]]:
        """Trains the stages in turn, each on averaged weights of those before; yields records of the log."""
        model = self.decoder()
        for plan in self.plan.stages:
            finished = finished_weights(self.work / f"stage-{plan.name}.pt", plan.recipe)
            if finished is not None:  # its pictures are not needed any more
                model.load_state_dict(finished)
                continue
            yield from self.keep(plan)
            if plan.begin:
                model.load_state_dict(self._mean(plan.begin).state_dict())
            stage, held_back = self._stage(model, plan), self.corpus(plan, "validation")
            stage.resume()
            if plan.recipe.steps >= COMPILED:
                model.model.compile(dynamic=True)
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

    def _stage(self, model: Decoder, plan: StagePlan) -> Stage:
        corpus, processes = self.corpus(plan, "train"), Processes(device=self.device)
        place = self.work, f"stage-{plan.name}", processes
        if plan.rewards is None:
            return Stage(model, corpus, plan.recipe, *place)
        albums = self._begun(plan.rewards)
        return Rewarded(self._painter(model), self.critic, albums, plan.rewards, corpus, plan.recipe, *place)

    def _begun(self, plan: RewardPlan) -> dict[Size, Album]:
        """The pictures that rewarded tasks begin with, by size."""
        kinds: dict[Size, set[str]] = {}
        for task, size in plan.tasks:
            if task in KINDS_OF:
                kinds.setdefault(size, set()).update(KINDS_OF[task])
        return {size: self.album(size, "train", wanted) for size, wanted in kinds.items()}

    def trained_decoder(self) -> tuple[StagePlan, Decoder]:
        """The newest stage that has a checkpoint, and its averaged weights: what is written."""
        saved = [plan for plan in self.plan.stages if (self.work / f"stage-{plan.name}.pt").exists()]
        if not saved:
            msg = f"no trained stage in {self.work}; run the stage fp-sft first"
            raise FileNotFoundError(msg)
        return saved[-1], self._mean({saved[-1].name: 1.0})

    def _mean(self, shares: Mapping[str, float]) -> Decoder:
        """The mean of stages' averaged weights."""
        model, mean = self.decoder(), {}
        for stage, share in shares.items():
            weights = torch.load(self.trained(f"stage-{stage}"), map_location="cpu", weights_only=True)["average"]
            mean = {name: mean.get(name, 0) + share * value for name, value in weights.items()}
        model.load_state_dict(mean)
        return model.eval()

    def painter(self, shares: Mapping[str, float] | None = None) -> Painter:
        """The mean of these stages at work, or what is written."""
        return self._painter(self._mean(shares) if shares else self.trained_decoder()[1])

    def _painter(self, model: Decoder) -> Painter:
        return Painter(model, self.vq, for_text(self.tokenizer), self.vocabulary)

    def write(self, folder: Path, sampling: Sampling = SAMPLING) -> None:
        """Writes the checkpoint of the newest stage, and beside it the judge that its figures come from."""
        stage, model = self.trained_decoder()
        checkpoint.write_decoder(folder, model.config, model.cpu().state_dict(), positions=1024)
        checkpoint.write_vq(folder, self.plan.vq.config, self.vq.cpu().state_dict())
        checkpoint.write_tokenizer(folder, self.tokenizer)
        tasks = settings({task for task, _ in stage.tasks}, sampling)
        defaults = checkpoint.Defaults("mini", stage.side, sampling, stage.sizes, tasks)
        checkpoint.write_json(folder / "mgpt.json", defaults.to_json())
        self.judge.save(folder / "judge.safetensors")
