"""The wheel for aarch64, tried under an emulator: the native module's tests, and mini's pictures beside this machine's.

`python run.py FOLDER`, whose site/ has the wheel in it. Correct and slow; no time means anything.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
sys.path.insert(0, str(HERE))

import machine  # noqa: E402

TESTS = ("cpu/test_float_cache.py", "test_machine.py", "sampling/test_noise.py", "sampling/test_sampler.py")
PICTURES = 4
# Native kernels are chosen by the CPU: with products of bytes, and without.
RUNS = (
    ("int8", "native", "max"),
    ("int8", "native", "cortex-a72"),
    ("int4", "native", "max"),
    ("int8", "cpu", "max"),
    ("fp32", "cpu", "max"),
)


def main(folder: Path) -> int:
    """Prints a line for each bundle; 1 where a test fails or the native engine's pictures differ."""
    tests = [str(TOP / "tests" / "csrc" / name) for name in TESTS]
    options = [
        "-q",
        "-m",
        "not slow",
        "--noconftest",
        "-c",
        "/dev/null",
        "--rootdir",
        str(TOP / "tests"),
        "-p",
        "no:cacheprovider",
    ]
    failed = subprocess.run(
        [*machine.python(folder), "-m", "pytest", *options, *tests], check=False, cwd=folder
    ).returncode
    print(f"{PICTURES} pictures of 128x128, aarch64 beside this machine")
    with tempfile.TemporaryDirectory() as bundles:
        for precision, engine, cpu in RUNS:
            bundle = _bundle(Path(bundles), precision, engine)
            here = _draw([sys.executable], bundle)
            there = _draw(machine.python(folder, cpu), bundle)
            same, pixels = _compare(here, there)
            kernels = f"{there['kernels']} beside {here['kernels']}" if engine == "native" else "ONNX Runtime"
            print(f"{precision} {engine:7} {kernels:28} tokens equal {same:.2%}, pixels differ by {pixels} at most")
            failed |= engine == "native" and same < 1
    return int(failed)


def _bundle(folder: Path, precision: str, engine: str) -> Path:
    out = folder / f"{precision}-{engine}"
    if not out.exists():
        model = str(TOP / "models" / "mini")
        command = ["export", model, "-o", str(out), "--precision", precision, "--engine", engine, "--json"]
        subprocess.run([str(Path(sys.executable).parent / "mgpt"), *command], check=True, stdout=subprocess.DEVNULL)
    return out


def _draw(python: list[str], bundle: Path) -> dict[str, list]:
    command = [*python, str(HERE / "draw.py"), str(bundle), str(PICTURES)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _compare(here: dict[str, list], there: dict[str, list]) -> tuple[float, int]:
    """Part of the tokens up to each picture's first difference, and the largest difference of pixels of equal ones."""
    equal, total, largest = 0, 0, 0
    for one, other, pixels, theirs in zip(
        *(side[key] for key in ("tokens", "pixels") for side in (here, there)), strict=True
    ):
        first = next((index for index, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one))
        equal, total = equal + first, total + len(one)
        if first == len(one):
            a, b = (np.frombuffer(bytes.fromhex(text), np.uint8).astype(int) for text in (pixels, theirs))
            largest = max(largest, int(np.abs(a - b).max()))
    return equal / total, largest


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
