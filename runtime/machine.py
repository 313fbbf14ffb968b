"""The machine that this runs on: its processor, its cores and the memory that is free."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from mgpt_edge.runtime._native import instruction_sets


def processor() -> str:
    """Returns the processor's name and the fastest of our kernels on it."""
    names = re.findall(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return f"{names[0] if names else platform.processor() or platform.machine()}, {instruction_sets()[0]}"


def available_bytes() -> int:
    """Memory that a new process can have without swapping, within the limits of its control group."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo = (line.split() for line in _read("/proc/meminfo").splitlines())
    limits += [int(words[1]) << 10 for words in meminfo if words[0] == "MemAvailable:"]
    group, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if group.isdigit() and used.isdigit():
        limits.append(int(group) - int(used))
    return max(min(limits), 0)


def physical_cores() -> int:
    """Cores this process may use, two hardware threads of one core counted once."""
    cores = set()
    for cpu in os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1):
        siblings = _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").strip()
        cores.add(siblings or str(cpu))
    return len(cores)


def mebibytes(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
