"""`mgpt transform`: a picture becomes another, by one of the family's tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mgpt_edge.cli.drawing import check_outputs, draw, numbered
from mgpt_edge.cli.options import OUTPUT, AsJson, Bundle, Count, Guidance, Output, Seed, Temperature, Threads, TopK
from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.intake.request import parse_size


def transform(
    image: Annotated[Path, typer.Argument(help="Picture to look at.")],
    task: Annotated[
        str,
        typer.Option(
            help="depth, normals, segmentation, pose, detect, edit, reconstruct, from-edges, from-depth or "
            "from-segmentation; of Lumina-mGPT 2.0 panel-depth, panel-canny or panel-subject: the lower half of a "
            "picture whose upper half is IMAGE."
        ),
    ],
    instruction: Annotated[
        str | None,
        typer.Option(help="What to change or to detect, or what the picture drawn from edges or a map shows."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT in pixels; the trained size nearest to the picture unless given.")
    ] = None,
    seed: Seed = None,
    guidance: Guidance = None,
    top_k: TopK = None,
    temperature: Temperature = None,
    count: Count = None,
    output: Output = OUTPUT,
    model: Bundle = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Draw a depth map, an edit, … of a picture, or a picture from such a map.

    Options that are not given come from the bundle's manifest, for each task.
    """
    from mgpt_edge.runtime.family.tasks import tasks
    from mgpt_edge.runtime.intake.request import check_transform
    from mgpt_edge.runtime.model import load

    check_transform(task)
    if instruction is None and tasks()[task].field is not None:
        msg = f"the task {task!r} takes words, too: say with --instruction what to change, to detect or to show"
        raise InvalidRequest(msg)
    settings: dict[str, Any] = {
        "size": None if size is None else parse_size(size),
        "seed": seed,
        "guidance": guidance,
        "top_k": top_k,
        "temperature": temperature,
        "count": count,
    }
    check_outputs([output])
    loaded = load(model, threads=threads)
    request = loaded.request(instruction or "", task=task, **settings)
    paths = numbered(output, count)
    check_outputs(paths)
    result = draw(loaded, request, loaded.draw(request, [image]), paths, quiet=as_json)
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        for picture in result["pictures"]:
            print(picture["path"])
