"""The command `python -m mgpt_edge.finetune`: trains the small checkpoint, whole or stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from mgpt_edge.finetune.draw import Sampling
from mgpt_edge.finetune.fidelity import Share, asked, fidelity, sheet
from mgpt_edge.finetune.mini import SAMPLING, Mini, default_plan

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

Work = Annotated[Path, typer.Option(help="Pictures, logs and resumable checkpoints; safe to delete.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the checkpoint is written.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads, and processes that render.")]

WORK, OUTPUT = Path("build/mini"), Path("models/mini")
GUIDANCES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@app.command()
def mini(work: Work = WORK, output: Output = OUTPUT, threads: Threads = 2) -> None:
    """Everything, from nothing to models/mini; run again after a kill, it continues."""
    vq(work, threads)
    fp_sft(work, threads)
    write(work, output)


@app.command()
def vq(work: Work = WORK, threads: Threads = 2) -> None:
    """Renders the pictures and trains the VQGAN."""
    _pipeline(work, threads).vq()


@app.command("fp-sft")
def fp_sft(work: Work = WORK, threads: Threads = 2) -> None:
    """Trains the transformer, stage by stage."""
    for record in _pipeline(work, threads).fp_sft():
        typer.echo("  ".join(f"{name} {value:.4g}" for name, value in record.items()))


@app.command()
def write(work: Work = WORK, output: Output = OUTPUT) -> None:
    """Writes the newest weights in the family's layout."""
    _pipeline(work, 2).write(output)
    typer.echo(f"wrote {output}")


@app.command()
def sweep(work: Work = WORK, threads: Threads = 2, count: int = 200, top_k: int = SAMPLING.top_k) -> None:
    """Prints how many pictures show what was asked, for several guidances."""
    pipeline = _pipeline(work, threads)
    painter, judge = pipeline.painter(), pipeline.judge()
    asked_for = {
        "one solid": asked("test", 1, count),
        "two solids": asked("test", 2, count),
        "held-out pair": asked("held_out", 1, count),
    }
    pixels = pipeline.pictures(pipeline.plan.stages[0], "validation")
    readings = judge.read(pixels.load())
    right = sum(reading.shows(pixels.scene(i)) for i, reading in enumerate(readings))
    typer.echo(f"judge on held-back renders  {_figure(Share(right, len(readings)))}")
    for guidance in GUIDANCES:
        sampling = Sampling(guidance, top_k)
        figures = (
            f"{name} {_figure(fidelity(painter, judge, scenes, sampling))}" for name, scenes in asked_for.items()
        )
        typer.echo(f"guidance {guidance:g}  {'  '.join(figures)}")


@app.command()
def samples(
    work: Work = WORK, path: Path = OUTPUT / "samples.png", threads: Threads = 2, guidance: float = SAMPLING.guidance
) -> None:
    """Draws the sheet of samples."""
    painter = _pipeline(work, threads).painter()
    sheet(painter, Sampling(guidance, SAMPLING.top_k, SAMPLING.temperature)).save(path)
    typer.echo(f"wrote {path}")


def _figure(share: Share) -> str:
    low, high = share.interval
    return f"{100 * share.value:.1f} % ({100 * low:.1f}-{100 * high:.1f}, n={share.of})"


def _pipeline(work: Path, threads: int) -> Mini:
    torch.set_num_threads(threads)
    return Mini(work, default_plan(), threads)


if __name__ == "__main__":
    app()
