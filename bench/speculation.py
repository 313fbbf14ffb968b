"""What guessing ahead saves: passes and time of the same pictures with and without it, beside published ways.

mgpt bench speculation [--model BUNDLE] [--size 256x256] [--pictures 12] [--json]
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import mgpt_edge
from mgpt_edge.bench.measuring.spread import nine_tenths, summary
from mgpt_edge.bench.rivals.jacobi import Jacobi
from mgpt_edge.runtime.decoding.schedule import decode
from mgpt_edge.runtime.decoding.steps import End

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgpt_edge.runtime.intake.job import Job
    from mgpt_edge.runtime.model import Model

PROMPTS = (
    "a red sphere on a gray floor",
    "a large blue cube on a brown floor",
    "a green cone to the left of a yellow cylinder on a beige floor",
    "a white cube behind a purple sphere on a black floor",
)
WINDOWS = (8, 16, 32)


def speculation(
    model: Annotated[Path | None, typer.Option(help="Bundle; the small model unless given.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT; the model's own unless given.")] = None,
    pictures: Annotated[int, typer.Option(min=1)] = 12,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Draw the same pictures in every way, one after another, and compare."""
    loaded = mgpt_edge.load(model)
    width, height = map(int, size.split("x")) if size else (None, None)
    settings = {} if width is None else {"size": (width, height)}
    jobs = [
        loaded.prepare(loaded.request(PROMPTS[seed % len(PROMPTS)], seed=seed, speculate="off", **settings))
        for seed in range(pictures)
    ]
    if jobs[0].request.guidance == 1:
        msg = "the peers are written for guided pictures; this bundle draws without guidance"
        raise mgpt_edge.InvalidRequest(msg)
    lines = _measure(loaded, jobs)
    if as_json:
        print(json.dumps(lines))
        return
    print(
        f"{loaded.manifest.name} {loaded.manifest.precision}, {pictures} pictures, codes a picture: {_codes(jobs[0])}"
    )
    for line in lines:
        same = {True: "same pictures", False: "other pictures", None: ""}[line["same"]]
        print(f"{line['way']:26} {line['codes_a_pass']:6.2f} codes a pass  {line['ms']:9.1f} ms  {same}")


def _measure(model: Model, jobs: list[Job]) -> list[dict[str, Any]]:
    """Medians over the jobs; all ways take turns, so that a slow minute slows them all."""
    ways = _ways(model)
    passes: dict[str, list[int]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    same = dict.fromkeys(ways, True)
    for job in (jobs[0], *jobs):  # the first one warms up
        drawn = {}
        for name, draw in ways.items():
            started = time.perf_counter()
            drawn[name], count = draw(job)
            seconds[name].append(time.perf_counter() - started)
            passes[name].append(count)
            same[name] &= drawn[name] == drawn["off"]
    return [
        {
            "way": name,
            "codes_a_pass": statistics.mean(_codes(jobs[0]) / count for count in passes[name][1:]),
            "codes_a_pass_spread": nine_tenths(_codes(jobs[0]) / count for count in passes[name][1:]),
            **summary("ms", [1000 * one for one in seconds[name][1:]]),
            "same": same[name] if "SJD" not in name else None,
        }
        for name in ways
    ]


def _ways(model: Model) -> dict[str, Callable[[Job], tuple[list[int], int]]]:
    def ours(speculate: int | str) -> Callable[[Job], tuple[list[int], int]]:
        def draw(job: Job) -> tuple[list[int], int]:
            sequences = model.engine.open(job.capacities)
            window = model.window(replace(job.request, speculate=speculate))
            (end,) = (step for step in decode(sequences, [job], window) if isinstance(step, End))
            # Up to the last code: what stands behind it is forced.
            return list(end.tokens[: len(job.form.layout) - 2]), end.passes

        return draw

    def peer(window: int, coupled: bool) -> Callable[[Job], tuple[list[int], int]]:
        def draw(job: Job) -> tuple[list[int], int]:
            sequences = model.engine.open(job.capacities)
            jacobi = Jacobi(sequences, job.prompt, job.form.layout, job.request, window, coupled)
            return jacobi.draw(), jacobi.passes

        return draw

    found = {"off": ours("off"), "auto": ours("auto")}
    for window in WINDOWS:
        found[f"window {window}"] = ours(window)
        found[f"SJD, window {window}"] = peer(window, coupled=False)
        found[f"coupled SJD, window {window}"] = peer(window, coupled=True)
    return found


def _codes(job: Job) -> int:
    layout = job.form.layout
    return layout.rows * layout.columns
