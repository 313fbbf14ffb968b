"""Fine-tuning of a checkpoint, from its records to a checkpoint again: `mgpt finetune`."""

from __future__ import annotations

import math
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.finetune.encoder import Encoder
from mgpt_edge.finetune.epochs import Epochs
from mgpt_edge.finetune.journal import Journal
from mgpt_edge.finetune.lora import lora_config
from mgpt_edge.finetune.parallel import joined
from mgpt_edge.finetune.release import write_release
from mgpt_edge.finetune.sft import Recipe
from mgpt_edge.finetune.sharded import ShardedStage, newest_state
from mgpt_edge.finetune.tokenised import tokenise
from mgpt_edge.finetune.weights import Weights
from mgpt_edge.runtime.errors import CheckpointError, InvalidRequest, NumericalError
from mgpt_edge.runtime.family.layout import ImageLayout, buckets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mgpt_edge.export.defaults import Defaults
    from mgpt_edge.finetune.parallel import Processes
    from mgpt_edge.finetune.tokenised import Tokenised
    from mgpt_edge.finetune.weights import Objective

    Report = Callable[[str, int, int, str], None]
    """(what is done, done, of all, what else there is to say)"""

PROMPT_DROP = 0.1
RAMP_EPOCHS = 0.01
PICTURES_ROOM, TEXT_ROOM = 2, 1024
"""Pictures and tokens of text that fit into a sequence unless its length is given."""
PLOT_STEPS = 100
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to train on what, and how; the defaults are the family's recipe.

    Attributes:
        model: checkpoint folder or repository id.
        data: records.
        output: folder of the new checkpoint; what is needed to resume lies in its `training/`.
        vq: folder of the VQ files, where they are not beside config.json.
        target_sizes: side in pixels of each stage's pictures, in turn; empty: what the checkpoint was trained for.
        most_pictures: of a record; None: any number.
        lora: rank of the adapters; None trains every weight.
        epochs: over the records, in each stage.
        steps: of each stage, in place of epochs.
        batch: sequences of a step, over all processes.
        rows: sequences of a process that go through the model at a time.
        rate: learning rate.
        dropout: of the residual branches; None: the family's, 0.05, or 0 for a 34B.
        max_length: tokens; None: room for two pictures of the size and 1,024 tokens of text.
        seed: of everything random.
        skip_bad: whether bad records are left out.
        precision: what is computed in, bf16 or fp32.
        save_minutes: between two states.
    """

    model: str
    data: Path
    output: Path
    vq: Path | None = None
    target_sizes: tuple[int, ...] = ()
    most_pictures: int | None = None
    lora: int | None = None
    epochs: float = 2.0
    steps: int | None = None
    batch: int = 8
    rows: int = 1
    rate: float = 2e-5
    dropout: float | None = None
    max_length: int | None = None
    seed: int = 0
    skip_bad: bool = True
    precision: str = "bf16"
    save_minutes: float = 30.0

    def __post_init__(self) -> None:
        for name in ("lora", "steps", "batch", "rows"):
            value = getattr(self, name)
            self._check(name, "at least 1", value is None or value >= 1)
        self._check("epochs", "above 0", 0 < self.epochs < math.inf)
        self._check("rate", "above 0", 0 < self.rate < math.inf)
        self._check("dropout", "from 0 to below 1", self.dropout is None or 0 <= self.dropout < 1)
        self._check("max_length", "at least 2", self.max_length is None or self.max_length >= 2)
        self._check("seed", "from 0 to 2^31 - 1", 0 <= self.seed < 1 << 31)
        self._check("precision", " or ".join(DTYPES), self.precision in DTYPES)
        sides = all(32 <= size <= 4096 and size % 32 == 0 for size in self.target_sizes)
        self._check("target_sizes", "multiples of 32 pixels, each once", sides and _distinct(self.target_sizes))

    def _check(self, name: str, expected: str, holds: bool) -> None:
        if not holds:
            msg = f"{name.replace('_', '-')} must be {expected}, got {getattr(self, name)!r}"
            raise InvalidRequest(msg)


@dataclass(frozen=True, slots=True)
class Result:
    """What a training came to.

    Attributes:
        step: of the last stage that was trained.
        steps: that it has.
        loss: of its last step; None where nothing was left to train.
        bad: records that were left out.
        cut: sequences that were longer than `max_length`, and lost their ends.
        finished: whether it came to its end; otherwise it was interrupted and can be resumed.
    """

    step: int
    steps: int
    loss: float | None
    bad: int
    cut: int
    finished: bool


def finetune(settings: Settings, report: Report = lambda *_: None) -> Result:
    """Trains a checkpoint on records and writes a checkpoint; under `torchrun`, every process calls it.

    Called again after a kill with the same settings, it goes on from the newest state with the same losses. SIGINT and
    SIGTERM end it after the step in work: state and checkpoint are written.

    Raises:
        InvalidRequest: settings or records cannot be used, or the output holds something else.
        CheckpointError: the model is missing, damaged or of another family.
        NumericalError: the loss is no number any more.
    """
    with joined("cuda" if torch.cuda.is_available() else "cpu") as processes:
        return Training(settings, processes, report).run()


class Training:
    """One process' part of `finetune`."""

    def __init__(self, settings: Settings, processes: Processes, report: Report) -> None:
        self.settings, self.processes, self.report = settings, processes, report
        if settings.batch % (processes.ranks * settings.rows):
            msg = f"batch must be divisible by {processes.ranks} processes x {settings.rows} rows, got {settings.batch}"
            raise InvalidRequest(msg)
        self.folder = settings.output / "training"
        if (settings.output / "config.json").exists() and not self.folder.is_dir():
            msg = f"{settings.output} holds another checkpoint; give a new folder with -o"
            raise InvalidRequest(msg)
        self.checkpoint = Checkpoint.open(settings.model, settings.vq)
        if self.checkpoint.vocabulary.separator is None:
            msg = (
                f"{settings.model}: its turns end in words, not in a token of their own; expected a checkpoint of the "
                "first Lumina-mGPT, whose recipe this is"
            )
            raise CheckpointError(msg)
        config = self.checkpoint.config
        dropout = settings.dropout if settings.dropout is not None else (0.0 if config.swin_norm else 0.05)
        self.weights = Weights(
            checkpoint=self.checkpoint,
            dropout=dropout,
            dtype=DTYPES[settings.precision],
            adapters=lora_config(settings.lora, settings.model) if settings.lora else None,
            seed=settings.seed,
        )
        self.journal = Journal(self.folder / "log.jsonl")

    def run(self) -> Result:
        """Tokenises every size, then trains the stages that are left, each from the weights of the one before."""
        sizes = self._target_sizes()
        tokenised = [self._tokenise(size) for size in sizes]
        objective = self.weights.load(self.processes)
        # A later stage's state has what the earlier ones learnt in it.
        number = max((n for n, size in enumerate(sizes) if newest_state(self._place(size))), default=0)
        while True:
            stage = self._stage(objective, sizes[: number + 1], tokenised[number])
            with _signals() as stop:
                loss, stopped = self._train(stage, stop)
            if stopped or number == len(sizes) - 1:
                break
            number += 1
        longest = max(int(part.lengths.max()) for part in tokenised)
        self._report("writing", 0, 1, "checkpoint")
        defaults = self._defaults(sizes[number])
        write_release(self.weights, objective.decoder, self.settings.output, defaults, longest, self.processes)
        bad, cut = (max(counts) for counts in zip(*((len(part.bad), part.cut) for part in tokenised), strict=True))
        return Result(stage.step, stage.recipe.steps, loss, bad, cut, finished=not stopped)

    def _place(self, size: int) -> Path:
        return self.folder / f"stage-{size}"

    def _target_sizes(self) -> tuple[int, ...]:
        if self.settings.target_sizes:
            return self.settings.target_sizes
        known = self.checkpoint.defaults.target_size
        if known is None:
            msg = f"nobody says which size of pictures {self.settings.model} is for; give it with --target-size"
            raise InvalidRequest(msg)
        return (known,)

    def _defaults(self, size: int) -> Defaults:
        """What the new checkpoint is used with: the old one's settings, at the new size."""
        old = self.checkpoint.defaults
        sizes = old.sizes if size == old.target_size else ()
        return replace(old, name=self.settings.output.resolve().name, target_size=size, sizes=sizes)

    def _tokenise(self, size: int) -> Tokenised:
        settings = self.settings
        sizes = self._defaults(size).sizes or buckets(size)
        vq = self.checkpoint.vq_config
        layouts = [ImageLayout(*pair, self.checkpoint.vocabulary, vq.stride if vq else 16) for pair in sizes]
        longest = settings.max_length or PICTURES_ROOM * max(map(len, layouts)) + TEXT_ROOM
        return tokenise(
            settings.data,
            Encoder(self.checkpoint, sizes, longest, self.processes.device),
            self.folder / f"tokens-{size}",
            self.processes,
            most_pictures=settings.most_pictures,
            skip_bad=settings.skip_bad,
            report=lambda done, total: self._report(f"encoding at {size}", done, total, "records"),
        )

    def _stage(self, objective: Objective, sizes: tuple[int, ...], tokenised: Tokenised) -> ShardedStage:
        """The stage of the last of `sizes`, those before being what its weights have been through."""
        settings = self.settings
        epochs = Epochs(tokenised, settings.batch, PROMPT_DROP, settings.seed)
        recipe = Recipe(
            steps=settings.steps or math.ceil(settings.epochs * epochs.steps),
            rate=settings.rate,
            floor=1.0,
            clip=4.0,
            average=0.0,
            seed=settings.seed,
            ramp=max(1, round(RAMP_EPOCHS * epochs.steps)),
        )
        setting = {"data": tokenised.fingerprint, "batch": settings.batch, "dropout": self.weights.dropout}
        setting |= {"lora": settings.lora, "precision": settings.precision, "target_sizes": list(sizes)}
        place = self._place(sizes[-1])
        return ShardedStage(objective, epochs, recipe, place, self.processes, settings.rows, setting)

    def _train(self, stage: ShardedStage, stop: threading.Event) -> tuple[float | None, bool]:
        """Trains a stage to its end, or until a process is told to stop; gives the last loss, and whether it was."""
        stage.resume()
        loss, stopped, began, first = None, False, time.monotonic(), stage.step
        if self.processes.first:
            self.journal.rewind(stage.name, first)
        for record in stage.run(self.settings.save_minutes * 60):
            loss = record["loss"]
            if not math.isfinite(loss + record["norm"]):
                msg = (
                    f"step {stage.step}: the loss is {loss}, the gradients' norm {record['norm']}. "
                    "A lower --rate helps. "
                    f"What was saved before stands: {newest_state(stage.folder) or 'nothing yet'}"
                )
                raise NumericalError(msg)
            spent = time.monotonic() - began
            left = spent / (stage.step - first) * (stage.recipe.steps - stage.step)
            self._log(stage, {**record, "seconds": round(spent, 3), "left_s": round(left, 3)})
            stopped = self.processes.any(stop.is_set())
            if stopped:
                stage.save()
                break
        if self.processes.first:
            self.journal.plot()
        return loss, stopped

    def _log(self, stage: ShardedStage, record: dict[str, float]) -> None:
        if self.processes.first:
            self.journal.write({"stage": stage.name, **record})
            if stage.step % PLOT_STEPS == 0:
                self.journal.plot()
            self._report(f"training {stage.name}", stage.step, stage.recipe.steps, f"steps, loss {record['loss']:.4f}")

    def _report(self, what: str, done: int, total: int, note: str) -> None:
        if self.processes.first:
            self.report(what, done, total, note)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set. A second one does no more: `torchrun` passes on what workers have got."""
    asked = threading.Event()
    kinds = (signal.SIGINT, signal.SIGTERM)
    old = [signal.signal(kind, lambda *_: asked.set()) for kind in kinds]
    try:
        yield asked
    finally:
        for kind, handler in zip(kinds, old, strict=True):
            signal.signal(kind, handler)


def _distinct(numbers: tuple[int, ...]) -> bool:
    return len(set(numbers)) == len(numbers)
