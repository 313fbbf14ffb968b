"""What a picture costs: loading, seconds a picture, time outside the engine's passes, memory against the estimate.

mgpt bench draw [--model BUNDLE] [--pictures N] [--json]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

import mgpt_edge
from mgpt_edge.runtime import memory
from mgpt_edge.runtime.answer import Picture

PROMPT = "a red sphere on a gray floor"
TOGETHER = 4


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


def draw(
    model: Annotated[Path | None, typer.Option(help="Bundle; the small model unless given.")] = None,
    pictures: Annotated[int, typer.Option(min=1)] = 20,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure loading and drawing, one picture at a time, after a warm-up."""
    facts = {**_load(model), **_draw(model, pictures), **_together(model, pictures)}
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name:28} {value}")


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
    imports, loads = (statistics.median(column) for column in zip(*runs, strict=True))
    return {"import_s": round(imports, 3), "load_s": round(loads, 3)}


def _draw(path: Path | None, pictures: int) -> dict[str, Any]:
    model = mgpt_edge.load(path)
    request = model.request(PROMPT, seed=0)
    for _ in model.draw(request):  # warm-up: every graph is loaded and its buffers allocated
        pass
    timers = time_passes(model.engine)
    seconds, outside, vq = [], [], []
    codes = model.layout(request.size).rows * model.layout(request.size).columns
    for seed in range(pictures):
        for timer in timers:
            timer.seconds = 0.0
        started = time.perf_counter()
        events = list(model.draw(model.request(PROMPT, seed=seed)))
        seconds.append(time.perf_counter() - started)
        vq.append(sum(event.seconds for event in events if isinstance(event, Picture)))
        inside = vq[-1] + sum(timer.seconds for timer in timers)
        outside.append((seconds[-1] - inside) / codes)
    estimated = memory.forecast(model.manifest, request.size).total_bytes
    resident = _peak_bytes()
    return {
        "bundle": f"{model.manifest.name} {model.manifest.precision}",
        "size": f"{request.size[0]}x{request.size[1]}",
        "guidance": request.guidance,
        "threads": model.engine.threads,
        "picture_s": round(statistics.median(seconds), 4),
        "picture_s_spread": [round(min(seconds), 4), round(max(seconds), 4)],
        "vq_decoder_s": round(statistics.median(vq), 4),
        "outside_passes_us_a_token": round(statistics.median(outside) * 1e6, 1),
        "estimate_mib": estimated >> 20,
        "peak_resident_mib": resident >> 20,
        "above_estimate_mib": (resident - estimated) >> 20,
    }


def _together(path: Path | None, pictures: int) -> dict[str, Any]:
    """Pictures a second with `count`, against one picture after another; both take turns."""
    model = mgpt_edge.load(path)
    ratios = []
    for seed in range(max(2, pictures // TOGETHER) + 1):  # the first one warms up
        started = time.perf_counter()
        for number in range(TOGETHER):
            model.generate(PROMPT, seed=seed + number)
        between = time.perf_counter()
        model.generate(PROMPT, seed=seed, count=TOGETHER)
        ratios.append((between - started) / (time.perf_counter() - between))
    return {f"count_{TOGETHER}_throughput_x": round(statistics.median(ratios[1:]), 2)}


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0
