"""Everything that is measured here, one part after another, in one folder: report.html, report.md and report.json.

mgpt bench report [-o FOLDER] [--model BUNDLE] [--full]

A part that fails is named in the report and the others go on. What was interrupted goes on where it stopped when the
same command is given again; where all is measured, that writes the pages anew.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

import mgpt_edge
from mgpt_edge.bench.page import page, results
from mgpt_edge.bench.page.markdown import markdown
from mgpt_edge.bench.page.results import Results
from mgpt_edge.runtime.bundle.folder import Bundle, default_bundle
from mgpt_edge.runtime.errors import Interrupted, InvalidRequest, MgptError
from mgpt_edge.runtime.files import write_atomically

DRIFTING = ("ceiling", "latency", "speculation", "sampler", "chat")
"""Measured three times, minutes apart: a machine's speed drifts, which repeats in a row don't show."""
SCHEDULE = (*DRIFTING, "peers", *DRIFTING, "quality", "precisions", *DRIFTING)
PARTS: dict[str, tuple[str, str]] = {
    "ceiling": ("", ""),
    "peers": ("--rounds 9", "--rounds 31"),
    "latency": ("--pictures 10", "--pictures 40"),
    "speculation": ("--pictures 6", "--pictures 24"),
    "sampler": ("--repeats 1000", "--repeats 10000"),
    "chat": ("--rounds 10", "--rounds 40"),
    "quality": ("--count 40", "--count 400"),
    "precisions": ("--count 40", "--count 400 --all"),
}
"""Settings of each: usually, and with --full."""
OF_A_BUNDLE = ("latency", "speculation", "chat", "quality")
JUDGED = ("quality", "precisions")
PROMPTS = (
    "a red sphere on a gray floor",
    "a large blue cube on a brown floor",
    "a green cone on a beige floor",
    "a yellow cylinder on a black floor",
)
SIMULATED = "7b", (768, 768), 64
"""Shape, size and tokens of the prompt that other devices' estimates are for."""


def report(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the report.")] = Path("mgpt-report"),
    model: Annotated[Path | None, typer.Option(help="Bundle; the small model unless given.")] = None,
    full: Annotated[bool, typer.Option("--full", help="More rounds and pictures; takes longer.")] = False,
) -> None:
    """Measure everything, and write a page that can be published."""
    folder = model or default_bundle()
    found = _begun(output, folder, _command(output, model, full=full), full=full)
    try:
        for number, part in enumerate(SCHEDULE, start=1):
            _say(f"{number}/{len(SCHEDULE)} {part}", end=" ")
            if len(found.runs(part)) >= SCHEDULE[:number].count(part):
                _say("was measured before")
                continue
            entry = _measure(part, model, folder, full=full)
            found.add(part, entry)
            _say(entry.get("problem", f"{entry['seconds']} s"))
            found.save(output / "report.json")
        _finish(found, model)
        found.save(output / "report.json")
    except KeyboardInterrupt as error:
        _say("stopped")
        _write(found, output)
        msg = f"interrupted; what was measured is in {output}, and the same command goes on from there"
        raise Interrupted(msg) from error
    _write(found, output)
    print(output / "report.html")


def _begun(output: Path, folder: Path, command: str, *, full: bool) -> Results:
    """New results, or those of a stopped run with the same machine, versions and settings."""
    bundle = Bundle.open(folder)
    settings = {
        "bundle": f"{bundle.manifest.name} {bundle.manifest.precision}, {bundle.digest[:12]}",
        "engine": bundle.manifest.engine,
        "full": full,
    }
    new = Results(machine=results.machine_card(), versions=results.versions(), settings=settings, command=command)
    path = output / "report.json"
    if path.exists():
        old = results.read(path)
        differ = [name for name in ("machine", "versions", "settings") if getattr(old, name) != getattr(new, name)]
        if differ:
            msg = f"{path} is of another run ({', '.join(differ)} differ); give another folder with -o, or remove it"
            raise InvalidRequest(msg)
        return old
    try:
        output.mkdir(parents=True, exist_ok=True)
        new.save(path)
    except OSError as error:
        msg = f"can't write to {output}: {error.strerror or error}; give another folder with -o"
        raise InvalidRequest(msg) from error
    return new


def _command(output: Path, model: Path | None, *, full: bool) -> str:
    chosen = ["--model", str(model)] if model else []
    return shlex.join(["mgpt", "bench", "report", "-o", str(output), *chosen, *(["--full"] if full else [])])


def _measure(part: str, model: Path | None, folder: Path, *, full: bool) -> dict[str, Any]:
    """Runs a part in a process of its own."""
    arguments = [part, *PARTS[part][full].split()]
    if model is not None and part in OF_A_BUNDLE:
        arguments += ["--model", str(model)]
    if model is not None and part == "precisions":
        arguments.insert(1, str(folder.parent))
    if part == "latency":
        for width, height in Bundle.peek(folder).manifest.pictures.trained_sizes:
            arguments += ["--size", f"{width}x{height}"]
    started = time.perf_counter()
    if part in JUDGED and not (folder.parent / "judge.safetensors").is_file():
        said = {"problem": "there are no weights of a judge beside the bundle (judge.safetensors)"}
    else:
        said = run(arguments)
    seconds = round(time.perf_counter() - started, 1)
    return {"command": shlex.join(["mgpt", "bench", *arguments, "--json"]), "seconds": seconds, **said}


def run(arguments: list[str]) -> dict[str, Any]:
    """The `facts` that a bench prints, or the `problem` that it has."""
    command = [sys.executable, "-m", "mgpt_edge.cli", "bench", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        facts = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:]
        return {"problem": last[0] if last else f"it ended with {done.returncode} and said nothing"}
    if done.returncode:
        return {"problem": facts["error"]["message"]}
    return {"facts": facts}


def _finish(found: Results, model: Path | None) -> None:
    """A few pictures, and the estimates for other devices."""
    if not found.pictures:
        _say("pictures")
        try:
            found.pictures = _pictures(model)
        except MgptError as error:
            _say(str(error))
    try:
        found.estimates = _estimates()
    except ImportError as error:
        found.estimates = {"problem": f"estimates need {error.name}"}


def _pictures(model: Path | None) -> list[dict[str, Any]]:
    loaded, drawn = mgpt_edge.load(model), []
    for seed, prompt in enumerate(PROMPTS):
        buffer = io.BytesIO()
        loaded.generate(prompt, seed=seed).save(buffer, "PNG")
        drawn.append({"prompt": prompt, "seed": seed, "png": base64.b64encode(buffer.getvalue()).decode()})
    return drawn


def _estimates() -> dict[str, Any]:
    """By device, from bytes and bandwidth; it needs PyTorch, which nothing else here does."""
    from mgpt_edge.bench.models.roofline import DEVICES
    from mgpt_edge.bench.simulate import estimates

    shape, size, prompt = SIMULATED
    return {
        "of": f"{shape}, {size[0]}x{size[1]}, a prompt of {prompt} tokens, no speculation",
        "devices": {
            name: {
                "gb_s": device.gb_s,
                "share": device.share,
                "source": device.source,
                "precisions": estimates(device, shape, size, 1.0, prompt),
            }
            for name, device in DEVICES.items()
        },
    }


def _write(found: Results, output: Path) -> None:
    write_atomically(output / "report.md", markdown(found).encode())
    write_atomically(output / "report.html", page.html(found).encode())


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)
