"""The command `python -m mgpt_edge.finetune`: trains the small checkpoint, whole or stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from mgpt_edge.finetune.mini import Mini, default_plan

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

Work = Annotated[Path, typer.Option(help="Pictures, logs and resumable checkpoints; safe to delete.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the checkpoint is written.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads, and processes that render.")]

WORK, OUTPUT = Path("build/mini"), Path("models/mini")


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


def _pipeline(work: Path, threads: int) -> Mini:
    torch.set_num_threads(threads)
    return Mini(work, default_plan(), threads)


if __name__ == "__main__":
    app()
