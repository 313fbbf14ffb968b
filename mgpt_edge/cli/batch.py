"""`mgpt batch`: a file of jobs, one JSON object a line; what is done is skipped, what fails stops nothing."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgpt_edge.cli.drawing import parse_size
from mgpt_edge.cli.options import AsJson, Bundle
from mgpt_edge.runtime.errors import InvalidRequest, MgptError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgpt_edge.runtime.model import Model

CONTENT = ("name", "prompt", "task", "image", "instruction", "question")
SETTINGS = ("size", "seed", "guidance", "top_k", "text_top_k", "temperature", "max_tokens")


def batch(
    jobs: Annotated[Path, typer.Argument(help="JSONL file; pictures are looked for beside it.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for NAME.png and NAME.txt.")],
    model: Bundle = None,
    as_json: AsJson = False,
) -> None:
    """Do many jobs with one loaded model.

    A job has a prompt, and maybe a task that draws from words; or a task, an image and, where the task takes one, an
    instruction; or an image and a question. Beside that a name (its line's number unless given), size "WxH", seed,
    guidance, top_k, text_top_k, temperature or max_tokens. A job whose file exists is skipped, so that a batch that
    was stopped goes on where it was. Exit code 1 if any job failed.
    """
    from mgpt_edge.runtime.model import load

    try:
        lines = jobs.read_text(encoding="utf-8").splitlines()
        output.mkdir(parents=True, exist_ok=True)
    except (OSError, UnicodeDecodeError) as error:
        msg = f"can't read {jobs} or write to {output}: {error}"
        raise InvalidRequest(msg) from error
    loaded = load(model)
    counts = {"done": 0, "skipped": 0, "failed": 0}
    for number, result in _run(loaded, lines, jobs.parent, output):
        if isinstance(result, MgptError):
            counts["failed"] += 1
            print(f"{jobs}:{number}: {result}", file=sys.stderr)
        elif result is None:
            counts["skipped"] += 1
        else:
            counts["done"] += 1
            if not as_json:
                print(result)
    print(json.dumps(counts) if as_json else ", ".join(f"{count} {name}" for name, count in counts.items()))
    raise typer.Exit(1 if counts["failed"] else 0)


def _run(model: Model, lines: list[str], beside: Path, output: Path) -> Iterator[tuple[int, Path | MgptError | None]]:
    """Line number and the file that was written, None where it was there, or what went wrong."""
    names: set[str] = set()
    width = len(str(len(lines)))
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            job = _parse(line, f"{number:0{width}}")
            if job["name"] in names:
                msg = f"an earlier job is called {job['name']!r}, too"
                raise InvalidRequest(msg)
            names.add(job["name"])
            yield number, _do(model, job, beside, output)
        except MgptError as error:
            yield number, error


def _parse(line: str, name: str) -> dict[str, Any]:
    try:
        job = json.loads(line)
    except (ValueError, RecursionError) as error:
        msg = f"no JSON: {error}"
        raise InvalidRequest(msg) from error
    if not isinstance(job, dict):
        msg = f"expected an object, got {line.strip()[:40]}"
        raise InvalidRequest(msg)
    for key, value in job.items():
        if key not in CONTENT + SETTINGS:
            near = difflib.get_close_matches(key, CONTENT + SETTINGS, n=1)
            msg = f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            raise InvalidRequest(msg)
        if key in CONTENT and not isinstance(value, str):
            msg = f"{key} must be a text, got {value!r}"
            raise InvalidRequest(msg)
    job.setdefault("name", name)
    chosen = job["name"]
    if not chosen.strip("./\\ ") or {"/", "\\", "\0"} & set(chosen):
        msg = f"name must be a file's name without its folder, got {chosen!r}"
        raise InvalidRequest(msg)
    if "size" in job:
        job["size"] = parse_size(str(job["size"]))
    return job


def _do(model: Model, job: dict[str, Any], beside: Path, output: Path) -> Path | None:
    """Does one job; None where its file exists."""
    from mgpt_edge.runtime.bundle import write_atomically
    from mgpt_edge.runtime.metadata import save
    from mgpt_edge.runtime.prompt import FROM_WORDS

    kinds = {"prompt", "task", "question"} & job.keys()
    from_words = "prompt" in kinds and kinds <= {"prompt", "task"} and job.get("task") in (None, *FROM_WORDS)
    if ("image" in job) == from_words or not (from_words or kinds in ({"task"}, {"question"})):
        tasks = " or ".join(FROM_WORDS)
        msg = f"a job has a prompt (and maybe the task {tasks}); or a task and an image; or a question and an image"
        raise InvalidRequest(msg)
    name, image = job.pop("name"), beside / str(job.pop("image", ""))
    words = "question" in kinds
    path = output / (f"{name}.txt" if words else f"{name}.png")
    if path.exists():
        return None
    if words:
        write_atomically(path, (model.ask(image, **job) + "\n").encode())
    else:
        drawn = model.generate(**job) if from_words else model.transform(image, **job)
        save(drawn, path)  # type: ignore[arg-type]  one picture, since no count was asked for
    return path
