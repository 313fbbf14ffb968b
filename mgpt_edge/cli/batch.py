"""`mgpt batch`: a file of jobs, one JSON object a line; what is done is skipped, what fails stops nothing."""

from __future__ import annotations

import codecs
import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgpt_edge.cli.options import AsJson, Bundle, Threads
from mgpt_edge.runtime.errors import IncompleteAnswer, Interrupted, InvalidRequest
from mgpt_edge.runtime.intake.request import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgpt_edge.runtime.model import Model

CONTENT = ("name", "prompt", "task", "image", "instruction", "question")
LONGEST_NAME = 200
SETTINGS = ("size", "seed", "guidance", "top_k", "text_top_k", "temperature", "max_tokens")


def batch(
    jobs: Annotated[Path, typer.Argument(help="JSONL file; pictures are looked for beside it.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for NAME.png and NAME.txt.")],
    model: Bundle = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Do many jobs with one loaded model.

    A job has a prompt, and maybe a task that draws from words; or a task, an image and, where the task takes one, an
    instruction; or an image and a question. Beside that a name (its line's number unless given), size "WxH", seed,
    guidance, top_k, text_top_k, temperature or max_tokens. A job whose file exists is skipped, so that a batch that
    was stopped goes on where it was. Pictures in an answer become NAME-1.png, … Exit code 1 if any job failed.
    """
    from mgpt_edge.runtime.model import load

    try:
        lines = jobs.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        msg = f"can't read {jobs}: {error.strerror}"
        raise InvalidRequest(msg) from error
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"can't write to {output}: {error.strerror}"
        raise InvalidRequest(msg) from error
    loaded = load(model, threads=threads)
    counts = {"done": 0, "skipped": 0, "failed": 0}
    try:
        for number, result in _run(loaded, lines, jobs.parent, output):
            if isinstance(result, Exception):
                counts["failed"] += 1
                print(f"{jobs}:{number}: {result}", file=sys.stderr)
            elif result is None:
                counts["skipped"] += 1
            else:
                counts["done"] += 1
                if not as_json:
                    print(result)
    except KeyboardInterrupt as error:
        msg = f"interrupted after {counts['done']} done, {counts['skipped']} skipped; run it again and it goes on"
        raise Interrupted(msg) from error
    print(json.dumps(counts) if as_json else ", ".join(f"{count} {name}" for name, count in counts.items()))
    raise typer.Exit(1 if counts["failed"] else 0)


def _run(model: Model, lines: list[bytes], beside: Path, output: Path) -> Iterator[tuple[int, Path | Exception | None]]:
    """Line number and the file that was written, None where it was there, or what went wrong."""
    names: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, _do(model, _parse(line, str(number), names), beside, output)
        except Exception as error:  # noqa: BLE001  whatever a job raises is that job's
            yield number, error


def _parse(line: bytes, name: str, names: set[str]) -> dict[str, Any]:
    """A line's job; `names` are those of earlier ones, and of this one afterwards."""
    try:
        text = line.decode()
        job = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"no JSON: {error}"
        raise InvalidRequest(msg) from error
    if not isinstance(job, dict):
        msg = f"expected an object, got {text.strip()[:40]}"
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
    printable = chosen.isprintable() and len(chosen.encode(errors="replace")) <= LONGEST_NAME
    if not printable or not chosen.strip("./\\ ") or {"/", "\\"} & set(chosen):
        msg = f"name must be a file's name without its folder, at most {LONGEST_NAME} bytes, got {chosen[:60]!r}"
        raise InvalidRequest(msg)
    if chosen in names:
        msg = f"an earlier job is called {chosen!r}, too"
        raise InvalidRequest(msg)
    names.add(chosen)
    if isinstance(job.get("size"), str):  # else as the metadata of a picture has it
        job["size"] = parse_size(job["size"])
    return job


def _do(model: Model, job: dict[str, Any], beside: Path, output: Path) -> Path | None:
    """Does one job; None where its file exists."""
    from mgpt_edge.runtime.family import tasks
    from mgpt_edge.runtime.files import write_atomically
    from mgpt_edge.runtime.results.metadata import save

    kinds = {"prompt", "task", "question"} & job.keys()
    known = tasks.from_words()
    from_words = "prompt" in kinds and kinds <= {"prompt", "task"} and job.get("task") in (None, *known)
    if ("image" in job) == from_words or not (from_words or kinds in ({"task"}, {"question"})):
        names, got = " or ".join(known), " and ".join(sorted(job.keys() & set(CONTENT) - {"name"}))
        msg = (
            f"a job has a prompt (and maybe the task {names}); or a task and an image; or a question and an image; "
            f"got {got or 'none of them'}"
        )
        raise InvalidRequest(msg)
    name, image = job.pop("name"), beside / str(job.pop("image", ""))
    words = "question" in kinds
    path = output / (f"{name}.txt" if words else f"{name}.png")
    if path.exists():
        return None
    if words:
        answer = _answer(model, image, output / name, **job)
        write_atomically(path, f"{answer}\n".encode())
    else:
        drawn = model.generate(**job) if from_words else model.transform(image, **job)
        save(drawn, path)  # type: ignore[arg-type]  one picture, since no count was asked for
    return path


def _answer(model: Model, image: Path, stem: Path, question: str, **settings: Any) -> str:
    """The answer's text, with a mark where each picture stands; the pictures go to files."""
    from mgpt_edge.runtime.results.events import Answer
    from mgpt_edge.runtime.results.metadata import save

    try:
        answer = Answer.of(model.stream(question, images=image, task="chat", **settings))
    except IncompleteAnswer as error:
        if error.image is not None:
            save(error.image, stem.with_name(f"{stem.name}.partial.png"))
        raise
    for number, picture in enumerate(answer.images, start=1):
        save(picture, stem.with_name(f"{stem.name}-{number}.png"))
    return answer.text
