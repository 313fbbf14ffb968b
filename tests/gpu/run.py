"""Builds the kernels on a GPU machine, checks them, looks for races and bad accesses, times them, in ten minutes."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "gpu"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PYTEST = "-q --confcutdir tests/gpu -p no:cacheprovider -W ignore -m gpu tests/gpu"
SANITISER = "--error-exitcode 3 --report-api-errors no --target-processes all"
ARCHITECTURE = "import cupy; print(cupy.cuda.Device().compute_capability)"


def missing() -> list[str]:
    """What this machine lacks."""
    programs = [program for program in ("nvcc", "cmake", "compute-sanitizer") if shutil.which(program) is None]
    return programs + [module for module in ("cupy", "numpy", "pytest") if importlib.util.find_spec(module) is None]


def run(command: list[str], seconds: int, log: Path | None = None) -> bool:
    """Whether the command succeeded in time; its output goes to the screen, or to a log that is shown if it failed."""
    stream = None if log is None else log.open("w", encoding="utf-8")
    try:
        done = subprocess.run(command, cwd=ROOT, check=False, timeout=seconds, stdout=stream, stderr=subprocess.STDOUT)
        good = done.returncode == 0
    except subprocess.TimeoutExpired:
        print(f"not done after {seconds} s: {' '.join(command)}")
        good = False
    if log is not None and not good:
        print(log.read_text(encoding="utf-8"))
    return good


def build() -> bool:
    found = subprocess.run([sys.executable, "-c", ARCHITECTURE], check=False, capture_output=True, text=True)
    if found.returncode != 0:
        print(f"cupy finds no GPU: {found.stderr.strip().splitlines()[-1]}")
        return False
    architecture = f"-DMGPT_CUDA_ARCHITECTURES={found.stdout.strip()}"
    BUILD.mkdir(parents=True, exist_ok=True)
    log = BUILD / "log"
    return (
        run(["cmake", "-S", "csrc/cuda", "-B", str(BUILD), architecture], 30, BUILD / "configure.log")
        and run(["cmake", "--build", str(BUILD), "--clean-first"], 120, log)
        and run([sys.executable, "csrc/cuda/resources.py", str(log)], 20)
    )


def main() -> int:
    """Each stage, then whether it passed."""
    lacking = missing()
    if lacking:
        print(f"the GPU tests need {', '.join(lacking)}, which this machine lacks")
        return 1
    if not build():
        return 1
    python = sys.executable
    stages = [("NumPy agrees", [python, "-m", "pytest", *PYTEST.split()], 120)]
    for tool in TOOLS:
        command = ["compute-sanitizer", "--tool", tool, *SANITISER.split(), python, "-m", "tests.gpu.sanitised"]
        stages.append((tool, command, 55))
    stages.append(("timed", [python, "-m", "tests.gpu.timing"], 80))
    passed = []
    for name, command, seconds in stages:
        started = time.perf_counter()
        good = run(command, seconds, BUILD / f"{name}.log" if name in TOOLS else None)
        passed.append(good)
        print(f"== {name}: {'passed' if good else 'FAILED'} in {time.perf_counter() - started:.0f} s", flush=True)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
