"""The command `python -m mgpt_edge.finetune.mini`: trains and scores the small checkpoint, whole or stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from mgpt_edge.finetune.arithmetic import best_device
from mgpt_edge.finetune.mini import scores
from mgpt_edge.finetune.mini.default_plan import default_plan
from mgpt_edge.finetune.mini.draw import Sampling
from mgpt_edge.finetune.mini.examples import write_examples
from mgpt_edge.finetune.mini.pipeline import SAMPLING, Mini
from mgpt_edge.finetune.mini.world import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

Work = Annotated[Path, typer.Option(help="Pictures, logs and resumable checkpoints; safe to delete.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the checkpoint is written.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads, and processes that render.")]
Guidance = Annotated[float, typer.Option(min=0, help="Of the pictures that are drawn.")]
Count = Annotated[int, typer.Option(min=1, help="Requests behind each figure.")]

WORK, OUTPUT = Path("build/mini"), Path("models/mini")


@app.command("all")
def everything(work: Work = WORK, output: Output = OUTPUT, threads: Threads = 2) -> None:
    """Everything, from nothing to models/mini; run again after a kill, it continues."""
    vq(work, threads)
    stages(work, threads)
    write(work, output)


@app.command()
def vq(work: Work = WORK, threads: Threads = 2) -> None:
    """Renders the pictures and trains the VQGAN."""
    _show(_pipeline(work, threads).train_vq())


@app.command()
def stages(work: Work = WORK, threads: Threads = 2) -> None:
    """Trains the transformer: FP-SFT from small pictures to large ones, from the second stage on with every task."""
    _show(_pipeline(work, threads).train_stages())


@app.command()
def write(work: Work = WORK, output: Output = OUTPUT) -> None:
    """Writes the newest weights in the family's layout."""
    _pipeline(work, 2).write(output)
    typer.echo(f"wrote {output}")


@app.command()
def judge(work: Work = WORK, threads: Threads = 2) -> None:
    """Trains the judge if it is not there, and says how well it reads."""
    pipeline = _pipeline(work, threads)
    albums = [pipeline.pictures(size, "validation") for size in pipeline.plan.albums]
    for pictures in albums:
        pictures.render(threads)
    _table(scores.judge(pipeline.judge, albums))


@app.command()
def sweep(work: Work = WORK, threads: Threads = 2, count: Count = 200) -> None:
    """Prints how many pictures show what was asked, for several guidances."""
    pipeline = _pipeline(work, threads)
    side = pipeline.trained_decoder()[0].side
    _table(scores.sweep(pipeline.painter(), pipeline.judge, (side, side), count, SAMPLING))


@app.command()
def score(work: Work = WORK, threads: Threads = 2, count: Count = 200, guidance: Guidance = SAMPLING.guidance) -> None:
    """Prints every figure of the newest weights: drawing at each size, then the other tasks."""
    pipeline, sampling = _pipeline(work, threads), Sampling(guidance, SAMPLING.top_k, SAMPLING.temperature)
    stage, painter = pipeline.trained_decoder()[0], pipeline.painter()
    _table(scores.drawing(painter, pipeline.judge, stage.sizes, count, sampling))
    if any(task == "answer" for task, _ in stage.tasks):
        album = pipeline.album((stage.side, stage.side), "validation", {*KINDS, "edited"})
        _table(scores.seeing(painter, pipeline.judge, album, count, sampling))


@app.command()
def samples(
    work: Work = WORK, path: Path = OUTPUT / "samples.png", threads: Threads = 2, guidance: Guidance = SAMPLING.guidance
) -> None:
    """Draws the sheet of samples."""
    pipeline = _pipeline(work, threads)
    side = pipeline.trained_decoder()[0].side
    sampling = Sampling(guidance, SAMPLING.top_k, SAMPLING.temperature)
    pipeline.painter().sheet(side, side, sampling).save(path)
    typer.echo(f"wrote {path}")


@app.command()
def records(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the records and their pictures.")],
    count: Count = 200,
    side: Annotated[int, typer.Option(help="Of the square pictures, in pixels.")] = 128,
) -> None:
    """Writes conversations about held-back scenes, of every task in turn, as `mgpt finetune` reads them."""
    typer.echo(f"wrote {write_examples(output, count, side)}")


def _show(records: Iterable[dict[str, float]]) -> None:
    for record in records:
        typer.echo("  ".join(f"{name} {value:.4g}" for name, value in record.items()))


def _table(lines: Iterable[scores.Line]) -> None:
    for name, figure in lines:
        typer.echo(f"{name:32}  {figure}")


def _pipeline(work: Path, threads: int) -> Mini:
    torch.set_num_threads(threads)
    return Mini(work, default_plan(), threads, best_device())


if __name__ == "__main__":
    app()
