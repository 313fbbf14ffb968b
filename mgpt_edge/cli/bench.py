"""`mgpt bench`: measurements of this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path  # noqa: TC003  typer reads the annotations
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Measure this machine.")


@app.callback()
def bench() -> None:
    """Measure this machine."""


@app.command()
def calibrate(
    model: Annotated[Path | None, typer.Option(help="Bundle; the small model of the package unless given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure what guessing ahead costs here, and keep it for the adaptive window (--speculate auto)."""
    from mgpt_edge.bench.calibrate import calibrate as measure
    from mgpt_edge.runtime.model import load

    measured = measure(load(model))
    path = measured.save()
    if as_json:
        print(json.dumps({"path": str(path), **asdict(measured)}))
        return
    print(f"{measured.machine}, {measured.threads} threads, context {measured.context}")
    for width, seconds in measured.seconds.items():
        print(f"{width:3} guesses  {1000 * seconds:8.3f} ms  {seconds / measured.seconds[0]:6.2f} x")
    print(f"kept in {path}")
