"""`mgpt generate`: a prompt becomes a picture, with progress, a preview, and what is needed to draw it again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgpt_edge.cli.drawing import check_outputs, draw, numbered
from mgpt_edge.cli.options import OUTPUT, AsJson, Bundle, Count, Guidance, Output, Seed, Temperature, Threads, TopK
from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.intake.request import parse_size

if TYPE_CHECKING:
    from mgpt_edge.runtime.model import Model


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the picture shows.")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="pair-depth, pair-canny, pair-hed or pair-pose: a picture above its map (Lumina-mGPT 2.0)."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels, multiples of 32.")] = None,
    seed: Seed = None,
    guidance: Guidance = None,
    top_k: TopK = None,
    temperature: Temperature = None,
    count: Count = None,
    output: Output = OUTPUT,
    model: Bundle = None,
    threads: Threads = None,
    preview: Annotated[Path | None, typer.Option(help="PNG file kept up to date with the finished rows.")] = None,
    from_image: Annotated[Path | None, typer.Option(help="Draw the picture of this PNG again.")] = None,
    keep_rows: Annotated[
        str | None, typer.Option(help="Rows of codes of --from-image that stay, from 0 at the top: 0-3 or 0-1,6.")
    ] = None,
    speculate: Annotated[
        str | None, typer.Option(help="Codes to guess ahead: auto (where the picture stays the same), off or a number.")
    ] = None,
    approximate: Annotated[
        int | None,
        typer.Option(help="Keep guesses among so many best codes: faster, another picture; needs --speculate N."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw pictures from a prompt.

    Every option that is not given comes from --from-image, else from the bundle's manifest.
    """
    from mgpt_edge.runtime.intake.request import check_generate
    from mgpt_edge.runtime.model import load

    check_generate(task or "text-to-image")
    given: dict[str, Any] = {
        "prompt": prompt,
        "task": task,
        "size": None if size is None else parse_size(size),
        "seed": seed,
        "guidance": guidance,
        "top_k": top_k,
        "temperature": temperature,
        "count": count,
        "speculate": int(speculate) if speculate is not None and speculate.isdecimal() else speculate,
        "approximate": approximate,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    check_outputs([output] if preview is None else [output, preview])
    loaded = load(model, threads=threads)
    if from_image is not None:
        settings = {**recorded(from_image, loaded), **settings}
    if "prompt" not in settings:
        msg = "give a prompt, such as: mgpt generate 'a red sphere on a gray floor'; or --from-image PNG"
        raise InvalidRequest(msg)
    rows = [] if keep_rows is None else parse_rows(keep_rows)
    if rows and from_image is None:
        msg = "--keep-rows says what stays of a picture: name that with --from-image"
        raise InvalidRequest(msg)
    request = loaded.request(**settings)
    events = loaded.draw(request, keep=from_image, keep_rows=rows, preview=preview is not None)
    paths = numbered(output, count)
    check_outputs(paths)
    result = draw(loaded, request, events, paths, preview=preview, kept_rows=rows, quiet=as_json)
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        for picture in result["pictures"]:
            print(picture["path"])


def recorded(path: Path, model: Model) -> dict[str, Any]:
    """The settings that a PNG was drawn with; warns where this bundle is another one."""
    import warnings

    from mgpt_edge.runtime.engines import engine_kind
    from mgpt_edge.runtime.errors import CompatibilityWarning
    from mgpt_edge.runtime.family.tasks import from_words
    from mgpt_edge.runtime.results import metadata

    info = metadata.read(path)
    if info.get("bundle") != model.bundle.digest:
        msg = (
            f"{path} was drawn by {info.get('model')!r} in {info.get('precision')!r}, another bundle than "
            f"{model.bundle.folder}: the picture will differ; choose the bundle with --model"
        )
        warnings.warn(msg, CompatibilityWarning, stacklevel=2)
    arithmetic = engine_kind(model.manifest.engine).arithmetic
    if info.get("engine") == model.manifest.engine and info.get("arithmetic", 1) != arithmetic:
        msg = (
            f"{path} was drawn by arithmetic {info.get('arithmetic', 1)} of engine {model.manifest.engine!r}, "
            f"this version computes by {arithmetic}: the picture may differ"
        )
        warnings.warn(msg, CompatibilityWarning, stacklevel=2)
    if info.get("altered"):
        msg = f"{path} was changed after it was drawn; this draws the picture that it was"
        warnings.warn(msg, CompatibilityWarning, stacklevel=2)
    if info.get("task", "text-to-image") not in from_words():
        msg = f"{path} is an answer to more than its own words ({info['task']}), which it does not hold"
        raise InvalidRequest(msg)
    if info.get("kept_rows"):
        msg = f"{path} has rows of another picture, which it does not hold: what is drawn now differs"
        warnings.warn(msg, CompatibilityWarning, stacklevel=2)
    names = ("seed", *metadata.DRAWN_FROM)
    return {name: info[name] for name in names if name in info}


def parse_rows(text: str) -> list[int]:
    """`0-3,6` -> [0, 1, 2, 3, 6]."""
    rows: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            msg = f"--keep-rows must look like 0-3 or 0-1,6, got {text!r}"
            raise InvalidRequest(msg)
        rows += range(first, last + 1)
    return rows
