"""What pictures cost: loading, first row, code, picture, with guesses ahead and without; memory; four at a time; energy
where the processor reports it.

mgpt bench latency [--model BUNDLE | --shape 375m [--precision int8]] [--size 256x256]... [--pictures N] [--json]
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

import mgpt_edge
from mgpt_edge.bench.measuring.energy import Meter
from mgpt_edge.bench.measuring.spread import nine_tenths, summary
from mgpt_edge.runtime._native import read_bandwidth
from mgpt_edge.runtime.bundle.folder import Bundle
from mgpt_edge.runtime.decoding.steps import FinishedRow
from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.intake import memory
from mgpt_edge.runtime.results.events import Picture

if TYPE_CHECKING:
    from mgpt_edge.runtime.intake.request import Request
    from mgpt_edge.runtime.model import Model

PROMPT = "a red sphere on a gray floor"
TOGETHER = 4
SPECULATE = ("off", "auto")
BANDWIDTH_BYTES, BANDWIDTH_SECONDS = 256 << 20, 0.5


class Timed:
    """Stands before an object and adds up the time spent in one of its methods."""

    def __init__(self, inner: Any, method: str) -> None:
        self.inner, self.method = inner, method
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        if name != self.method:
            return value

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = value(*arguments, **named)
            self.seconds += time.perf_counter() - started
            return result

        return timed


def time_passes(engine: Any) -> list[Timed]:
    """Puts timers around what an engine computes a pass with; streams opened from now on go through them."""
    if engine.bundle.manifest.engine == "native":
        engine.decoder = Timed(engine.decoder, "forward")
        return [engine.decoder]
    sessions = {name: Timed(engine.session(name), "run_with_iobinding") for name in ("decoder", "head_image")}
    engine._sessions.update(sessions)  # noqa: SLF001  the only way to see inside a pass without slowing it
    return list(sessions.values())


@dataclass(slots=True)
class Way:
    """Pictures of one size, drawn in one way."""

    request: Request
    codes: int
    first_row: list[float] = field(default_factory=list)  # seconds
    picture: list[float] = field(default_factory=list)
    vq: list[float] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)  # neither in a pass nor in the VQ decoder
    passes: list[int] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)  # empty where nothing reports them

    def draw(self, model: Model, timers: list[Timed], meter: Meter, seed: int) -> None:
        """One picture more."""
        for timer in timers:
            timer.seconds = 0.0
        counted = meter.read()
        started, first, passes = time.perf_counter(), 0.0, 0
        for event in model.draw(replace(self.request, seed=seed)):
            if isinstance(event, FinishedRow):
                first = first or time.perf_counter() - started
                passes += event.passes
            elif isinstance(event, Picture):
                self.vq.append(event.seconds)
        self.picture.append(time.perf_counter() - started)
        if meter:
            self.joules.append(meter.joules(counted))
        self.first_row.append(first)
        self.passes.append(passes + 1)  # and the prompt's, which the first code comes out of
        self.outside.append(self.picture[-1] - self.vq[-1] - sum(timer.seconds for timer in timers))

    def facts(self) -> dict[str, Any]:
        """Medians with their spread, nine tenths of the pictures' time; the first picture was the warm-up."""
        width, height = self.request.size or (0, 0)
        picture, outside = self.picture[1:], self.outside[1:]
        decoding = [a - b for a, b in zip(picture, self.vq[1:], strict=True)]
        codes_a_pass = [self.codes / passes for passes in self.passes[1:]]
        return {
            "size": f"{width}x{height}",
            "speculate": self.request.speculate,
            **summary("picture_s", picture, 4),
            "picture_s_p90": round(float(np.quantile(picture, 0.9)), 4),
            **summary("first_row_s", self.first_row[1:], 4),
            **summary("code_ms", [1e3 * seconds / self.codes for seconds in decoding], 3),
            "codes_a_pass": round(self.codes / statistics.mean(self.passes[1:]), 2),
            "codes_a_pass_spread": nine_tenths(codes_a_pass),
            **summary("vq_decoder_s", self.vq[1:], 4),
            **summary("outside_us_a_code", [1e6 * seconds / self.codes for seconds in outside], 1),
            **(summary("picture_j", self.joules[1:], 3) if self.joules else {}),
        }


def latency(
    model: Annotated[Path | None, typer.Option(help="Bundle; the small model unless given.")] = None,
    shape: Annotated[str | None, typer.Option(help="Random weights of a shape in a bundle's place: 375m, 7b.")] = None,
    precision: Annotated[str, typer.Option(help="Of a shape.")] = "int8",
    size: Annotated[list[str] | None, typer.Option(help="WIDTHxHEIGHT, may be repeated; else the usual.")] = None,
    pictures: Annotated[int, typer.Option(min=1)] = 20,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure loading and drawing; all sizes and ways take turns, picture by picture, after a warm-up."""
    if shape is None:
        facts = _measure(model, size, pictures)
    elif model is not None:
        msg = "--model and --shape both say what is measured; give one of them"
        raise InvalidRequest(msg)
    else:
        with tempfile.TemporaryDirectory() as folder:
            facts = _measure(_random_bundle(Path(folder), shape, precision), size, pictures)
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        if name != "ways":
            print(f"{name:35} {value}")
    shown = [name for name in facts["ways"][0] if not name.endswith("_spread")]
    print("".join(f"{name:>18}" for name in shown))
    for way in facts["ways"]:
        print("".join(f"{way[name]!s:>18}" for name in shown))


def _random_bundle(folder: Path, shape: str, precision: str) -> Path:
    """A bundle of random weights; PyTorch is needed to write it."""
    from mgpt_edge.bench.models.random_checkpoint import shape_named, write_checkpoint
    from mgpt_edge.export.bundle import export_bundle
    from mgpt_edge.export.checkpoint import Checkpoint

    write_checkpoint(folder / shape, shape_named(shape))  # a bundle is named as its checkpoint
    return export_bundle(Checkpoint.open(folder / shape), folder / "bundle", precision=precision).folder


def _measure(model: Path | None, size: list[str] | None, pictures: int) -> dict[str, Any]:
    facts = _load(model)
    loaded = mgpt_edge.load(model)
    sizes = [tuple(map(int, text.split("x"))) for text in size or []] or [(loaded.manifest.pictures.target_size,) * 2]
    facts |= {"bundle": f"{loaded.manifest.name} {loaded.manifest.precision}", "threads": loaded.engine.threads}
    facts |= {**_together(loaded, sizes[0], pictures), **_ceiling(loaded, sizes[0])}
    facts["ways"] = _draw(loaded, sizes, pictures)
    return facts | _memory(loaded.bundle.folder, sizes)


def _load(model: Path | None) -> dict[str, Any]:
    """Seconds of `load()` in processes of their own, files cached; the import apart."""
    argument = "" if model is None else repr(str(model))
    code = (
        "import time; a = time.perf_counter(); import mgpt_edge; b = time.perf_counter();"
        f"mgpt_edge.load({argument}); print(b - a, time.perf_counter() - b)"
    )
    runs = [
        [float(x) for x in subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.split()]
        for _ in range(5)
    ]
    imports, loads = zip(*runs, strict=True)
    return {**summary("import_s", imports, 3), **summary("load_s", loads, 3)}


def _together(model: Model, size: tuple[int, int], pictures: int) -> dict[str, Any]:
    """Pictures a second with `count`, against one picture after another; both take turns."""
    ratios = []
    for seed in range(max(2, pictures // TOGETHER) + 1):  # the first one warms up
        started = time.perf_counter()
        for number in range(TOGETHER):
            model.generate(PROMPT, size=size, seed=seed + number)
        between = time.perf_counter()
        model.generate(PROMPT, size=size, seed=seed, count=TOGETHER)
        ratios.append((between - started) / (time.perf_counter() - between))
    return summary(f"count_{TOGETHER}_throughput_x", ratios[1:], 2)


def _ceiling(model: Model, size: tuple[int, int]) -> dict[str, Any]:
    """What reading a pass' bytes takes at least, from main memory; a small model sits in the caches and is faster."""
    layout, manifest = model.layout(size), model.manifest
    v, hidden = manifest.vocabulary, manifest.dimensions.hidden_size
    if manifest.engine != "native":
        return {}
    unread = v.size * hidden * 2 + (v.size - v.codes) * hidden  # the embedding, and the head of all but the codes
    held = memory.estimate(manifest, layout, (len(layout), len(layout)), 1).cache_bytes // 2  # half full on average
    bandwidth = read_bandwidth(BANDWIDTH_BYTES, model.engine.threads, BANDWIDTH_SECONDS)
    least = (manifest.weight_bytes - unread + held) / bandwidth / 1e6
    return {"memory_read_gb_s": round(bandwidth, 1), "least_ms_a_pass_from_memory": round(least, 3)}


def _draw(model: Model, sizes: list[tuple[int, int]], pictures: int) -> list[dict[str, Any]]:
    ways = []
    for size in sizes:
        layout = model.layout(size)
        for speculate in SPECULATE:
            request = model.request(PROMPT, size=size, seed=0, speculate=speculate)
            ways.append(Way(request, layout.rows * layout.columns))
    timers, meter = time_passes(model.engine), Meter()
    for seed in range(pictures + 1):
        for way in ways:
            way.draw(model, timers, meter, seed)
    return [way.facts() for way in ways]


def _memory(folder: Path, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    """The most that a process held which drew one picture of the largest size, beside what was foretold."""
    width, height = size = max(sizes, key=math.prod)
    code = (
        f"import mgpt_edge; model = mgpt_edge.load({str(folder)!r}); model.generate({PROMPT!r}, size={size});"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM:')))"
    )
    resident = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout) << 10
    estimated = memory.forecast(Bundle.peek(folder).manifest, size).total_bytes
    return {
        "memory_of": f"{width}x{height}",
        "estimate_mib": estimated >> 20,
        "peak_resident_mib": resident >> 20,
        "above_estimate_mib": (resident - estimated) >> 20,
    }
