"""Precisions and engines on a checkpoint of the small world: distance from float32, fidelity, size, speed.

mgpt bench precisions [CHECKPOINT] [--count 100] [--all] [--json]
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console

from mgpt_edge.bench.measuring.eager import EagerEngine
from mgpt_edge.bench.measuring.spread import summary
from mgpt_edge.bench.quality import BundleArtist
from mgpt_edge.export.agreement import Agreement, agreement
from mgpt_edge.export.bundle import export_bundle, rescaled
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.engines import engines
from mgpt_edge.export.gptq import round_checkpoint, rounded_checkpoint
from mgpt_edge.export.quantise.precision import precisions as kinds
from mgpt_edge.export.statistics import collect
from mgpt_edge.finetune.encoder import read_conversations
from mgpt_edge.finetune.mini import scores
from mgpt_edge.finetune.mini.draw import Sampling
from mgpt_edge.finetune.mini.examples import write_examples
from mgpt_edge.finetune.mini.fidelity import Difference, Share
from mgpt_edge.finetune.mini.judge import Judge
from mgpt_edge.runtime.bundle.folder import default_bundle
from mgpt_edge.runtime.engines import engine_kind, engine_kinds
from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.model import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mgpt_edge.export.agreement import Conversation
    from mgpt_edge.runtime.engines.base import Head

RECORDS = 48  # conversations, of each task some
TIMED = 15


@dataclass(frozen=True, slots=True)
class Line:
    """One engine in one precision.

    Attributes:
        precision: with `gptq` behind it where that rounded the weights.
        megabytes: of the transformer's files.
        agreement: with float32, by what comes next: a code or a word.
        shares: of pictures that show what was asked.
        loss: by how much more of all pictures are right than of float32's, drawn with the same random numbers.
        code_ms: a code of a guided picture of the usual size, everything included; None where the engine does not run
            here and PyTorch computed its linears.
        code_ms_spread: of nine tenths of the pictures.
    """

    engine: str
    precision: str
    megabytes: float
    agreement: dict[Head, Agreement]
    shares: dict[str, str]
    loss: Difference
    code_ms: float | None = None
    code_ms_spread: list[float] | None = None


def precisions(
    checkpoint: Annotated[Path | None, typer.Argument(help="Of the small model's world; itself unless given.")] = None,
    judge: Annotated[Path | None, typer.Option(help="Weights of the judge; those beside the checkpoint.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures behind each share.")] = 100,
    everything: Annotated[
        bool, typer.Option("--all", help="Also engines that don't run here: their linears in PyTorch, without times.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print a line for each engine and precision that runs here."""
    checkpoint = checkpoint or default_bundle().parent
    weights = judge or checkpoint / "judge.safetensors"
    if not weights.is_file():
        msg = f"there is no {weights}; say where the judge's weights are: --judge FILE (make mini writes them)"
        raise InvalidRequest(msg)
    console, lines = Console(stderr=True, quiet=as_json), []
    with tempfile.TemporaryDirectory() as folder:
        table = Table(Checkpoint.open(checkpoint), Judge.load(weights), count, Path(folder))
        for engine, names in engines().items():
            for precision in names if _runs(engine) or (everything and _stands_for_others(engine)) else ():
                console.print(f"{engine} {precision}", end="\r")
                lines.append(table.line(engine, precision))
                if precision == "int4":
                    lines.append(table.line(engine, precision, gptq=True))
        console.print("times" + " " * 20, end="\r")
        lines = table.timed(lines)
    if as_json:
        print(json.dumps([asdict(line) for line in lines]))
        return
    for line in lines:
        print(_text(line))


class Table:
    """What all lines have in common: the conversations that are followed, and what activations are like in them."""

    def __init__(self, checkpoint: Checkpoint, judge: Judge, count: int, folder: Path) -> None:
        self.checkpoint, self.judge, self.count, self.folder = checkpoint, judge, count, folder
        side = checkpoint.defaults.target_size or 128
        measured, followed = (
            read_conversations(checkpoint, write_examples(folder / split, RECORDS, side, split), RECORDS)
            for split in ("train", "validation")
        )
        self.models: list[Model | None] = []  # of each line, where it runs here
        self.measured = [sample.tokens for sample in measured]
        self.statistics = collect(checkpoint, self.measured, folder / "statistics")
        self.followed: list[Conversation] = [(sample.tokens, sample.learnt) for sample in followed]
        exact = export_bundle(checkpoint, folder / "float32", precision="fp32", engine="cpu")
        self.exact = self._drawn(Model(exact, engine=EagerEngine(checkpoint, "fp32", "cpu")))

    def line(self, engine: str, precision: str, gptq: bool = False) -> Line:
        statistics = self.statistics if kinds()[precision].statistics else None
        out = self.folder / f"{engine}-{precision}{'-gptq' * gptq}"
        weights = self._rounded(engine) if gptq else self.checkpoint
        bundle = export_bundle(weights, out, precision=precision, engine=engine, statistics=statistics)
        if _runs(engine):
            model = Model(bundle)
            self.models.append(model)
        else:
            if statistics is not None:
                weights, statistics = rescaled(weights, statistics, precision, engine)  # as in the bundle
            model = Model(bundle, engine=EagerEngine(weights, precision, engine, statistics))
            self.models.append(None)
        side, drawn = bundle.manifest.pictures.target_size, self._drawn(model)
        return Line(
            engine=engine,
            precision=precision + " gptq" * gptq,
            megabytes=bundle.manifest.weight_bytes / 1e6,
            agreement=agreement(self.checkpoint, model.engine, self.followed),
            shares={f"{side}x{side}, {name}": str(Share.of_all(right)) for name, right in drawn.items()},
            loss=Difference.of(*(np.concatenate(list(right.values())) for right in (drawn, self.exact))),
        )

    def _drawn(self, model: Model) -> dict[str, NDArray[np.bool_]]:
        """Which pictures of the usual size show what was asked."""
        usual, size = model.manifest.defaults, (model.manifest.pictures.target_size,) * 2
        sampling = Sampling(usual.guidance, usual.top_k, usual.temperature)
        return scores.drawn(BundleArtist(model), self.judge, size, self.count, sampling)

    def timed(self, lines: list[Line]) -> list[Line]:
        """The lines with their times; all take turns, picture by picture."""
        milliseconds: dict[int, list[float]] = {}
        for seed in range(TIMED + 1):  # the first is to warm up
            for index, model in enumerate(self.models):
                if model is not None:
                    milliseconds.setdefault(index, []).append(_code_ms(model, seed))
        return [
            replace(line, **summary("code_ms", milliseconds[index][1:])) if index in milliseconds else line
            for index, line in enumerate(lines)
        ]

    def _rounded(self, engine: str) -> Checkpoint:
        folder = self.folder / f"gptq-{engine}"
        round_checkpoint(self.checkpoint, self.measured, folder, engine)
        return rounded_checkpoint(self.checkpoint, folder, engine)


def _runs(engine: str) -> bool:
    """Whether its bundles run here as they are exported; plans are not compiled for this."""
    kind = engine_kind(engine)
    return kind.compiler is None and kind.missing() is None


def _stands_for_others(engine: str) -> bool:
    """Whether it is the first of the engines whose linears, which are the same, PyTorch computes."""
    kind = engine_kind(engine)
    same = (k for k in engine_kinds().values() if (k.compiler is None) == (kind.compiler is None) and k.on_gpu)
    return not kind.on_gpu or next(same) is kind


def _code_ms(model: Model, seed: int) -> float:
    """Of a code of one guided picture."""
    size = (model.manifest.pictures.target_size,) * 2
    layout, started = model.layout(size), time.perf_counter()
    model.generate("a red sphere on a gray floor", seed=seed, size=size)
    return 1e3 * (time.perf_counter() - started) / (layout.rows * layout.columns)


def _text(line: Line) -> str:
    kept = "  ".join(
        f"{head} {found.divergence:.4f} nats, same {found.same:.1%}" for head, found in line.agreement.items()
    )
    shown = "  ".join(f"{name.split(', ')[1]} {share}" for name, share in line.shares.items())
    speed = "not run here" if line.code_ms is None else f"{line.code_ms:.2f} ms a code"
    first = f"{line.engine:8} {line.precision:9} {line.megabytes:6.1f} MB  {speed:15}"
    return f"{first}  {kept}  {shown}  beside float32 {line.loss}"
