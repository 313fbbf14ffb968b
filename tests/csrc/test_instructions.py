"""How many instructions our own parts of a token take: a regression that no noisy clock hides.

`python -m tests.csrc.test_instructions` counts anew and writes instructions.json.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("instructions.json")
WORK = Path(__file__).with_name("work.py")
TIMES = {"sampler": 20, "pass": 10, "loop": 2}
UNITS = {"sampler": 1, "pass": 1, "loop": 64}  # of the loop, a code
MORE = 1.05  # what a compiler's or interpreter's minor version may change


def count(work: str) -> int:
    """Instructions of one unit of work: the difference of two runs, start and setup cancelled."""
    few, many = (_collected(work, times) for times in (TIMES[work], 2 * TIMES[work]))
    return round((many - few) / TIMES[work] / UNITS[work])


def _collected(work: str, times: int) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, str(WORK), work]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(times)], check=True, capture_output=True, text=True, env=environment)
    return int(re.search(r"Collected : (\d+)", done.stderr)[1])


def versions() -> dict[str, str]:
    compiler = subprocess.run(["c++", "-dumpfullversion"], check=True, capture_output=True, text=True).stdout.strip()
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "compiler": compiler.split(".")[0]}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
@pytest.mark.parametrize("work", list(TIMES))
def test_no_more_instructions_than_before(work: str) -> None:
    kept = json.loads(FILE.read_text())
    if kept["versions"] != versions():
        pytest.skip(f"counted with {kept['versions']}, this is {versions()}")
    assert count(work) <= MORE * kept["instructions"][work]


if __name__ == "__main__":
    found = {"versions": versions(), "instructions": {work: count(work) for work in TIMES}}
    FILE.write_text(json.dumps(found, indent=2) + "\n")
    print(FILE.read_text())
