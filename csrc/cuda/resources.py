"""What each kernel takes of each architecture, from a log of nvcc's --resource-usage; a spill is an error."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def readable(symbol: str) -> str:
    """The symbol of ``mgpt::(anonymous namespace)::step_kernel(mgpt::Pictures)`` -> ``step_kernel``."""
    text = subprocess.run(["c++filt", symbol], check=True, capture_output=True, text=True).stdout.strip()
    match = re.search(r"::(\w+_kernel)(?:<.*?\)(\d+)>)?\(", text)
    if match is None:
        return text
    return match[1] if match[2] is None else f"{match[1]}<{match[2]}>"


def parse(log: str) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(kernel, architecture) -> registers, bytes spilled or on the stack, bytes of shared memory."""
    found: dict[tuple[str, str], tuple[int, int, int]] = {}
    kernel, spilled = None, 0
    for line in log.splitlines():
        if match := KERNEL.search(line):
            kernel = readable(match[1]), match[2]
        elif match := SPILLS.search(line):
            spilled = sum(map(int, match.groups()))
        elif (match := USED.search(line)) and kernel is not None:
            shared = SHARED.search(line)
            found[kernel] = int(match[1]), spilled, 0 if shared is None else int(shared[1])
            kernel = None
    return found


def main() -> int:
    """Prints a line for each kernel; 1 where one spills, or the log is not complete."""
    found = parse(Path(sys.argv[1]).read_text(encoding="utf-8"))
    kernels = sorted({kernel for kernel, _ in found})
    architectures = sorted({architecture for _, architecture in found}, key=lambda name: int(name[3:]))
    if not found or len(found) != len(kernels) * len(architectures):
        print(f"{sys.argv[1]} does not name each kernel for each architecture: {sorted(found)}", file=sys.stderr)
        return 1
    print("registers for each architecture; bytes of shared memory, and spilled or on the stack: the most of all")
    print(f"{'kernel':20}" + "".join(f"{name[3:]:>5}" for name in architectures) + f"{'shared':>8}{'spilled':>9}")
    spills = 0
    for kernel in kernels:
        used = [found[kernel, architecture] for architecture in architectures]
        spilled = max(stack for _, stack, _ in used)
        spills += spilled
        shared = max(size for _, _, size in used)
        print(f"{kernel:20}" + "".join(f"{registers:5}" for registers, _, _ in used) + f"{shared:8}{spilled:9}")
    return 1 if spills else 0


if __name__ == "__main__":
    sys.exit(main())
