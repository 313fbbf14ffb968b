"""What all verbs that draw share: sizes and files, progress on a terminal, and what Ctrl-C leaves."""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgpt_edge.runtime.errors import Interrupted, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL import Image

    from mgpt_edge.runtime.decoding.steps import FinishedRow
    from mgpt_edge.runtime.intake.request import Request
    from mgpt_edge.runtime.model import Model
    from mgpt_edge.runtime.results.events import Event


PARTIAL = ".partial.png"
LONGEST_NAME = 200


def numbered(output: Path, count: int | None) -> list[Path]:
    """The files of `count` pictures; a single path where no count was asked for."""
    if count is None:
        return [output]
    return [output.with_name(f"{output.stem}-{index}{output.suffix}") for index in range(count)]


def check_outputs(paths: Sequence[Path]) -> None:
    """Finds out before drawing whether every picture can be written, by trying.

    Raises:
        InvalidRequest: no PNG, a folder of that name, a name too long, or a place that can't be written.
    """
    for path in paths:
        if path.suffix.lower() != ".png":
            msg = f"pictures are written as PNG, which keeps how they were drawn; got {path}"
            raise InvalidRequest(msg)
        if path.is_dir():
            msg = f"{path} is a folder; give the name of a file with -o"
            raise InvalidRequest(msg)
    for folder in {path.parent for path in paths}:
        check_folder(folder)
    _check_name(max(paths, key=lambda path: len(path.name)))


def _check_name(path: Path) -> None:
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        msg = f"can't write {path}: {error.strerror}; give another name with -o"
        raise InvalidRequest(msg) from error


def check_folder(folder: Path) -> None:
    """Finds out whether files can be written to a folder, by writing one.

    Raises:
        InvalidRequest: it is none, or nothing can be written there.
    """
    if not folder.is_dir():
        msg = f"{folder} is no folder; make it, or give another with -o"
        raise InvalidRequest(msg)
    probe = folder / f".mgpt-{secrets.token_hex(6)}.tmp"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        msg = f"can't write to {folder}: {error.strerror}; give another place with -o"
        raise InvalidRequest(msg) from error


def save_somewhere(image: Image.Image, path: Path) -> Path:
    """Saves a picture; where that fails after minutes of drawing, in the folder for temporary files, and says so.

    Raises:
        InvalidRequest: it can be written nowhere.
    """
    from mgpt_edge.runtime.results.metadata import save

    try:
        save(image, path)
    except InvalidRequest as error:
        kept = Path(tempfile.mkdtemp(prefix="mgpt-")) / (path.name if len(path.name) < LONGEST_NAME else "picture.png")
        save(image, kept)
        print(f"mgpt: {error}; the picture is in {kept}", file=sys.stderr)
        return kept
    return path


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
    from mgpt_edge.runtime.results.metadata import KEY

    pictures: dict[int, dict[str, Any]] = {}
    rows: dict[int, FinishedRow] = {}  # the newest of each picture that is not done
    started = time.perf_counter()
    failed = False
    try:
        for event in _with_progress(model, events, len(paths), quiet=quiet):
            if isinstance(event, FinishedRow):
                rows[event.picture] = event
            elif isinstance(event, Preview):
                preview = _show(event.image, preview)
            elif isinstance(event, Picture):
                path = save_somewhere(event.image, paths[event.picture])
                failed = failed or path != paths[event.picture]
                preview = _show(event.image, preview)
                pictures[event.picture] = {"path": str(path), **event.image.info[KEY]}
                del rows[event.picture]
    except KeyboardInterrupt as error:
        said = [f"{picture['path']} is done" for picture in pictures.values()]
        said += [line for row in rows.values() if (line := _save_partial(model, request, row, paths, kept_rows))]
        message = ["interrupted", *said] if said else ["interrupted before the first row", "nothing was written"]
        raise Interrupted("; ".join(message)) from error
    seconds = time.perf_counter() - started
    if failed:
        msg = "not every picture is where it was wanted; see above"
        raise InvalidRequest(msg)
    return {"pictures": [pictures[number] for number in sorted(pictures)], "seconds": round(seconds, 4)}


def _show(image: Image.Image, preview: Path | None) -> Path | None:
    """Saves what is shown while a picture is drawn; where that fails, once said, nothing is shown any more."""
    from mgpt_edge.runtime.results.metadata import save

    if preview is not None:
        try:
            save(image, preview)
        except InvalidRequest as error:
            print(f"mgpt: no more previews: {error}", file=sys.stderr)
            return None
    return preview


def _save_partial(
    model: Model, request: Request, row: FinishedRow, paths: list[Path], kept_rows: Sequence[int]
) -> str | None:
    """Keeps what an interrupted picture had, and how the whole is drawn; returns what to tell the user."""
    from mgpt_edge.runtime.results.metadata import KEY

    partial = model.presenter.partial(row.tokens)
    if partial is None:
        return None
    partial.info[KEY] = model.presenter.describe([request], row.picture, partial.size, kept_rows)
    path = save_somewhere(partial, paths[row.picture].with_suffix(PARTIAL))
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
