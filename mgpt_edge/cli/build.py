"""`mgpt build`: a bundle's graphs compiled to engines; those of TensorRT for RTX for machines other than this one."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def build(
    path: Annotated[Path, typer.Argument(help="Bundle that was exported for engine rtx, tensorrt or tensorrt10.")],
    sm: Annotated[
        str | None, typer.Option(help="Engine rtx: compute capabilities of the GPUs, such as 86,89,120.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compile a bundle's graphs to TensorRT engines: for RTX on any machine, others on the machine they are for.

    Where memory does not hold the compiler of the whole decoder, it becomes several engines of some layers each.
    """
    from mgpt_edge.export.plans import build_plans, forecast_bytes
    from mgpt_edge.runtime import machine
    from mgpt_edge.runtime.bundle.folder import Bundle

    sms = [] if sm is None else _parse_sms(sm)
    bundle = Bundle.peek(path)
    if not as_json:
        free = machine.mebibytes(machine.available_bytes())
        print(f"compiling takes about {machine.mebibytes(forecast_bytes(bundle))} uncut, {free} are free")
    with _progress(quiet=as_json) as progress:
        built = build_plans(bundle, sms, progress)
    plans = {
        name: {
            "bytes": built.manifest.files[name].bytes,
            "sms": plan.sms,
            "kept": bundle.manifest.plans.get(name) == plan,
        }
        for name, plan in built.manifest.plans.items()
    }
    if as_json:
        print(json.dumps({"bundle": str(path), "plans": plans}))
        return
    for name, facts in plans.items():
        print(f"{name}: {facts['bytes'] / 1e6:,.1f} MB" + (", there already" if facts["kept"] else ""))


def _parse_sms(text: str) -> list[int]:
    from mgpt_edge.runtime.errors import InvalidRequest

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        msg = f"--sm {text!r}: expected compute capabilities without the point, such as 86,89,120"
        raise InvalidRequest(msg) from None


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """The phase that the compiler is in, and the time so far."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda phase, done, total: bar.update(task, description=phase, completed=done, total=total)
