"""What a picture costs: loading, seconds a picture, time outside the engine's passes, memory against the estimate.

python -m mgpt_edge.bench.draw [--model BUNDLE] [--pictures N] [--json]
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


class TimedSession:
    """An ONNX Runtime session that adds up the time spent inside it."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.seconds = 0.0

    def run_with_iobinding(self, binding: Any) -> None:
        started = time.perf_counter()
        self.session.run_with_iobinding(binding)
        self.seconds += time.perf_counter() - started

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def draw(
    model: Annotated[Path | None, typer.Option(help="Bundle; the small model unless given.")] = None,
    pictures: Annotated[int, typer.Option(min=1)] = 20,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure loading and drawing, one picture at a time, after a warm-up."""
    facts = {**_load(model), **_draw(model, pictures)}
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
    sessions = {name: TimedSession(model.engine.session(name)) for name in ("decoder", "head_image")}
    model.engine._sessions.update(sessions)  # noqa: SLF001  the only way to see inside a pass without slowing it
    seconds, outside, vq = [], [], []
    codes = model.layout(request.size).rows * model.layout(request.size).columns
    for seed in range(pictures):
        for session in sessions.values():
            session.seconds = 0.0
        started = time.perf_counter()
        events = list(model.draw(model.request(PROMPT, seed=seed)))
        seconds.append(time.perf_counter() - started)
        vq.append(sum(event.seconds for event in events if isinstance(event, Picture)))
        inside = vq[-1] + sum(session.seconds for session in sessions.values())
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


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


if __name__ == "__main__":
    typer.run(draw)
