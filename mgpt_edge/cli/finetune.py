"""`mgpt finetune`: training a checkpoint of the family on conversations with pictures."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mgpt_edge.cli.options import AsJson, Records, VQFolder

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(help="Train a checkpoint on your own conversations and pictures.", no_args_is_help=True)

KINDS = {
    "fp-sft": "Progressive fine-tuning: a stage for each --target-size, at most one picture a record.",
    "omni-sft": "Fine-tuning on every task: any number of pictures on both sides of a conversation.",
}
LINE_EVERY_S = 30.0


def sft(
    ctx: typer.Context,
    model: Annotated[str, typer.Option(help="Folder of a checkpoint, or a Hugging Face repository id.")],
    data: Records,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new checkpoint.")],
    vq: VQFolder = None,
    target_size: Annotated[
        list[int] | None, typer.Option(help="Side in pixels; fp-sft takes several and trains them in turn.")
    ] = None,
    lora: Annotated[int | None, typer.Option(help="Train adapters of this rank and no other weights.")] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the records, in each stage.")] = 2.0,
    steps: Annotated[int | None, typer.Option(help="Steps of each stage, in place of --epochs.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences of a step, over all processes.")] = 8,
    rows: Annotated[int, typer.Option(help="Sequences of a process that are computed at a time.")] = 1,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 2e-5,
    dropout: Annotated[float | None, typer.Option(help="0.05 unless given; 0 for a 34B.")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens above which a sequence is cut; room for two pictures unless given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed trains the same.")] = 0,
    bad_records: Annotated[str, typer.Option(help="skip or fail.")] = "skip",
    precision: Annotated[str, typer.Option(help="What is computed in: bf16 or fp32.")] = "bf16",
    save_minutes: Annotated[float, typer.Option(help="Between two states that a killed run resumes from.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    _need_extra()
    from mgpt_edge.finetune.training import Settings, finetune
    from mgpt_edge.runtime.errors import Interrupted

    several = ctx.info_name == "fp-sft"
    _check(target_size or [], bad_records, several=several)
    settings = Settings(
        model=model,
        data=data,
        output=output,
        vq=vq,
        target_sizes=tuple(target_size or ()),
        most_pictures=1 if several else None,
        lora=lora,
        epochs=epochs,
        steps=steps,
        batch=batch,
        rows=rows,
        rate=rate,
        dropout=dropout,
        max_length=max_length,
        seed=seed,
        skip_bad=bad_records == "skip",
        precision=precision,
        save_minutes=save_minutes,
    )
    with _Progress(quiet=as_json) as progress:
        result = finetune(settings, progress)
    if not result.finished:
        msg = f"interrupted at step {result.step} of {result.steps}, which {output} holds; run this again to go on"
        raise Interrupted(msg)
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        print(json.dumps({"checkpoint": str(output), **asdict(result)}))
        return
    trained = "was trained to its end before" if result.loss is None else f"loss {result.loss:.4f}"
    print(f"{output}: {result.steps} steps, {trained}; the log and its plot are in {output / 'training'}")
    if result.bad or result.cut:
        places = output / "training" / "tokens-*" / "*" / "index.json"
        print(f"records left out: {result.bad}, sequences cut at --max-length: {result.cut}; which and why: {places}")


def _check(target_sizes: list[int], bad_records: str, *, several: bool) -> None:
    from mgpt_edge.runtime.errors import InvalidRequest

    if bad_records not in {"skip", "fail"}:
        msg = f"--bad-records must be skip or fail, got {bad_records!r}"
        raise InvalidRequest(msg)
    if len(target_sizes) > 1 and not several:
        msg = f"omni-sft trains one --target-size, got {len(target_sizes)}; fp-sft trains several in turn"
        raise InvalidRequest(msg)


def _need_extra() -> None:
    from importlib.util import find_spec

    from mgpt_edge.runtime.errors import IncompatibleEngine

    missing = [name for name in ("torch", "safetensors", "yaml", "peft", "matplotlib") if find_spec(name) is None]
    if missing:
        msg = f"fine-tuning needs {', '.join(missing)}; install with: pip install 'mgpt-edge[finetune]'"
        raise IncompatibleEngine(msg)


class _Progress:
    """A bar with the time left; where stderr is no terminal, a line now and then."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=quiet or not console.is_terminal)
        self.lines = not quiet and not console.is_terminal
        self.what, self.began, self.first, self.said = "", 0.0, 0, 0.0

    def __enter__(self) -> Callable[[str, int, int, str], None]:
        self.bar.start()
        return self.show

    def show(self, what: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if what != self.what:
            self.what, self.began, self.first, self.said = what, now, done, 0.0
            self.task = self.bar.add_task(what, total=total, note="")
        self.bar.update(self.task, completed=done, note=note)
        if self.lines and (now - self.said > LINE_EVERY_S or done == total):
            self.said = now
            left = (now - self.began) / max(1, done - self.first) * (total - done)
            told = f", {left:.0f} s left" if done > self.first else ""
            print(f"{what}: {done} of {total} {note}{told}", file=sys.stderr)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


for kind, text in KINDS.items():
    app.command(kind, help=text)(sft)
