"""`mgpt generate`: a prompt becomes a picture, with progress, a preview, and what is needed to draw it again."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgpt_edge.runtime.errors import MgptError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgpt_edge.runtime.answer import Event
    from mgpt_edge.runtime.model import Model
    from mgpt_edge.runtime.request import Request


class Interrupted(MgptError):
    """Ctrl-C, after what was finished has been saved."""

    exit_code = 130


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the picture shows.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels, multiples of 32.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same picture.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How strictly to follow the prompt; 1 is as trained.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Candidates at each code.")] = None,
    temperature: Annotated[float | None, typer.Option(help="1 is as trained, 0 takes the likeliest.")] = None,
    count: Annotated[int | None, typer.Option(help="Pictures, drawn with seed, seed + 1, …")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG file; out-0.png, … with --count.")] = Path(
        "out.png"
    ),
    model: Annotated[Path | None, typer.Option(help="Bundle; the small model of the package unless given.")] = None,
    preview: Annotated[Path | None, typer.Option(help="PNG file kept up to date with the finished rows.")] = None,
    from_image: Annotated[Path | None, typer.Option(help="Draw the picture of this PNG again.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Draw pictures from a prompt.

    Every option that is not given comes from --from-image, else from the bundle's manifest.
    """
    from mgpt_edge.runtime.errors import InvalidRequest
    from mgpt_edge.runtime.model import load

    given: dict[str, Any] = {
        "prompt": prompt,
        "size": None if size is None else parse_size(size),
        "seed": seed,
        "guidance": guidance,
        "top_k": top_k,
        "temperature": temperature,
        "count": count,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    loaded = load(model)
    if from_image is not None:
        settings = {**recorded(from_image, loaded), **settings}
    if "prompt" not in settings:
        msg = "give a prompt, such as: mgpt generate 'a red sphere on a gray floor'; or --from-image PNG"
        raise InvalidRequest(msg)
    _check_output(output)
    if preview is not None:
        _check_output(preview)
    request = loaded.request(**settings)
    result = _draw(loaded, request, numbered(output, count), preview, quiet=as_json)
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        for picture in result["pictures"]:
            print(picture["path"])


def parse_size(text: str) -> tuple[int, int]:
    """`WIDTHxHEIGHT` -> (width, height)."""
    from mgpt_edge.runtime.errors import InvalidRequest

    match = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text.strip())
    if match is None:
        msg = f"--size must look like 128x128 (width x height), got {text!r}"
        raise InvalidRequest(msg)
    return int(match[1]), int(match[2])


def recorded(path: Path, model: Model) -> dict[str, Any]:
    """The settings that a PNG was drawn with; warns where this bundle is another one."""
    import warnings

    from mgpt_edge.runtime import metadata
    from mgpt_edge.runtime.errors import CompatibilityWarning

    info = metadata.read(path)
    if info.get("bundle") != model.bundle.digest:
        msg = (
            f"{path} was drawn by {info.get('model')!r} in {info.get('precision')!r}, another bundle than "
            f"{model.bundle.folder}: the picture will differ; choose the bundle with --model"
        )
        warnings.warn(msg, CompatibilityWarning, stacklevel=2)
    return {name: info[name] for name in ("prompt", "size", "seed", "guidance", "top_k", "temperature") if name in info}


def numbered(output: Path, count: int | None) -> list[Path]:
    """The files of `count` pictures; a single path where no count was asked for."""
    if count is None:
        return [output]
    return [output.with_name(f"{output.stem}-{index}{output.suffix}") for index in range(count)]


def _check_output(path: Path) -> None:
    """Finds out before drawing whether the result can be written."""
    from mgpt_edge.runtime.errors import InvalidRequest

    if path.suffix.lower() != ".png":
        msg = f"pictures are written as PNG, which keeps how they were drawn; got {path}"
        raise InvalidRequest(msg)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        msg = f"can't write to {path.parent}: it is no folder or not writable; give another place with -o"
        raise InvalidRequest(msg)


def _draw(model: Model, request: Request, paths: list[Path], preview: Path | None, *, quiet: bool) -> dict[str, Any]:
    from mgpt_edge.runtime.answer import Picture, Preview
    from mgpt_edge.runtime.decode import FinishedRow
    from mgpt_edge.runtime.metadata import KEY, save

    pictures: list[dict[str, Any]] = []
    passes = 0
    row: FinishedRow | None = None
    started = time.perf_counter()
    try:
        for event in _with_progress(model, request, preview=preview is not None, quiet=quiet):
            if isinstance(event, FinishedRow):
                row = event
                passes += event.passes
            elif isinstance(event, Preview) and preview is not None:
                save(event.image, preview)
            elif isinstance(event, Picture):
                save(event.image, paths[event.picture])
                if preview is not None:
                    save(event.image, preview)
                pictures.append({"path": str(paths[event.picture]), **event.image.info[KEY]})
                row = None
    except KeyboardInterrupt as error:
        raise Interrupted(_save_partial(model, row, paths)) from error
    seconds = time.perf_counter() - started
    return {"pictures": pictures, "seconds": round(seconds, 4), "passes": passes}


def _save_partial(model: Model, row: object, paths: list[Path]) -> str:
    """Keeps what an interrupted picture had; returns what to tell the user."""
    from mgpt_edge.runtime.decode import FinishedRow
    from mgpt_edge.runtime.metadata import save

    if not isinstance(row, FinishedRow):
        return "interrupted before the first row; nothing was written"
    path = paths[row.picture].with_suffix(".partial.png")
    partial = model.presenter.partial(row.tokens)
    if partial is not None:
        save(partial, path)
    return f"interrupted; the {row.row + 1} rows that were finished are in {path}"


def _with_progress(model: Model, request: Request, *, preview: bool, quiet: bool) -> Iterator[Event]:
    """Passes the model's events on and shows rows, tokens/s and the time left, on a terminal's stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mgpt_edge.runtime.decode import FinishedRow

    events = model.draw(request, preview=preview)
    console = Console(stderr=True)
    rows = model.layout(request.size).rows * request.count
    columns = (
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows  {task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    tokens, started = 0, time.perf_counter()
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("", total=rows, speed="")
        for event in events:
            if isinstance(event, FinishedRow):
                tokens += model.layout(request.size).columns + 1
                progress.update(task, advance=1, speed=f"{tokens / (time.perf_counter() - started):.0f} tokens/s")
            yield event
