"""What all verbs that draw share: sizes and files, progress on a terminal, and what Ctrl-C leaves."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from mgpt_edge.runtime.errors import Interrupted, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mgpt_edge.runtime.decoding.steps import FinishedRow
    from mgpt_edge.runtime.intake.request import Request
    from mgpt_edge.runtime.model import Model
    from mgpt_edge.runtime.results.events import Event


def numbered(output: Path, count: int | None) -> list[Path]:
    """The files of `count` pictures; a single path where no count was asked for."""
    if count is None:
        return [output]
    return [output.with_name(f"{output.stem}-{index}{output.suffix}") for index in range(count)]


def check_output(path: Path) -> None:
    """Finds out before drawing whether the result can be written."""
    if path.suffix.lower() != ".png":
        msg = f"pictures are written as PNG, which keeps how they were drawn; got {path}"
        raise InvalidRequest(msg)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        msg = f"can't write to {path.parent}: it is no folder or not writable; give another place with -o"
        raise InvalidRequest(msg)


def draw(
    model: Model,
    request: Request,
    events: Iterator[Event],
    paths: list[Path],
    *,
    preview: Path | None = None,
    kept_rows: Sequence[int] = (),
    quiet: bool,
) -> dict[str, Any]:
    """Saves each picture of a request's events as it is done; returns what `--json` prints."""
    from mgpt_edge.runtime.decoding.steps import FinishedRow
    from mgpt_edge.runtime.results.events import Picture, Preview
    from mgpt_edge.runtime.results.metadata import KEY, save

    pictures: dict[int, dict[str, Any]] = {}
    rows: dict[int, FinishedRow] = {}  # the newest of each picture that is not done
    started = time.perf_counter()
    try:
        for event in _with_progress(model, events, len(paths), quiet=quiet):
            if isinstance(event, FinishedRow):
                rows[event.picture] = event
            elif isinstance(event, Preview) and preview is not None:
                save(event.image, preview)
            elif isinstance(event, Picture):
                save(event.image, paths[event.picture])
                if preview is not None:
                    save(event.image, preview)
                pictures[event.picture] = {"path": str(paths[event.picture]), **event.image.info[KEY]}
                del rows[event.picture]
    except KeyboardInterrupt as error:
        said = [f"{picture['path']} is done" for picture in pictures.values()]
        said += [line for row in rows.values() if (line := _save_partial(model, request, row, paths, kept_rows))]
        message = ["interrupted", *said] if said else ["interrupted before the first row", "nothing was written"]
        raise Interrupted("; ".join(message)) from error
    seconds = time.perf_counter() - started
    return {"pictures": [pictures[number] for number in sorted(pictures)], "seconds": round(seconds, 4)}


def _save_partial(
    model: Model, request: Request, row: FinishedRow, paths: list[Path], kept_rows: Sequence[int]
) -> str | None:
    """Keeps what an interrupted picture had, and how the whole is drawn; returns what to tell the user."""
    from mgpt_edge.runtime.results.metadata import KEY, save

    partial = model.presenter.partial(row.tokens)
    if partial is None:
        return None
    path = paths[row.picture].with_suffix(".partial.png")
    partial.info[KEY] = model.presenter.describe([request], row.picture, partial.size, kept_rows)
    save(partial, path)
    return f"the {row.row + 1} rows that were finished are in {path}"


def _with_progress(model: Model, events: Iterator[Event], pictures: int, *, quiet: bool) -> Iterator[Event]:
    """Passes the events on and shows rows, tokens/s and the time left, on a terminal's stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mgpt_edge.runtime.decoding.steps import FinishedRow

    console = Console(stderr=True)
    columns = (
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows  {task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    tokens, started = 0, time.perf_counter()
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("", total=None, speed="")
        for event in events:
            if isinstance(event, FinishedRow):
                layout = model.presenter.layout_of(event.tokens)
                tokens += layout.columns + 1
                speed = f"{tokens / (time.perf_counter() - started):.0f} tokens/s"
                progress.update(task, advance=1, total=layout.rows * pictures, speed=speed)
            yield event
