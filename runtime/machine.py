"""The machine that this runs on, as far as this process may use it: processor, cores, memory, a folder for caches."""

from __future__ import annotations

import os
import platform
import re
import resource
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from mgpt_edge.runtime._native import instruction_sets

CGROUPS = Path("/sys/fs/cgroup")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Limit:
    """Memory that a process can still have, and what says so."""

    free_bytes: int
    source: str


def processor() -> str:
    """Returns the processor's name and the fastest of our kernels on it."""
    names = re.findall(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return f"{names[0] if names else platform.processor() or platform.machine()}, {instruction_sets()[0]}"


def available_bytes() -> int:
    """Returns the memory that this process can have without swapping, within all limits set for it."""
    return memory_limit().free_bytes


def memory_limit() -> Limit:
    """Returns the least of the machine's free memory, the limits of the control groups that this process is in (both
    versions, from its own up to the root's), and its own limits of address space and data.

    Page cache and other reclaimable memory of a group count as free: the kernel gives them up before it refuses.
    """
    limits = [Limit(os.sysconf("SC_PHYS_PAGES") * PAGE_BYTES, "the machine's memory"), *_machine(), *_processes()]
    for group in _groups("memory"):
        limits += _group(group)
    return min(limits, key=lambda limit: limit.free_bytes)


def _machine() -> list[Limit]:
    words = _numbers(_read(Path("/proc/meminfo")).replace(":", " "))
    return [Limit(words["MemAvailable"] << 10, "the machine's memory")] if "MemAvailable" in words else []


def _processes() -> list[Limit]:
    """Limits of this process alone (ulimit -v, ulimit -d)."""
    used = _read(Path("/proc/self/statm")).split()
    found = []
    for kind, column, source in ((resource.RLIMIT_AS, 0, "ulimit -v"), (resource.RLIMIT_DATA, 5, "ulimit -d")):
        most = resource.getrlimit(kind)[0]
        if most != resource.RLIM_INFINITY and len(used) > column:
            found.append(Limit(max(most - int(used[column]) * PAGE_BYTES, 0), source))
    return found


def _group(folder: Path) -> list[Limit]:
    """Of one control group: version 2 has memory.max and memory.high, version 1 memory.limit_in_bytes."""
    stat = _numbers(_read(folder / "memory.stat"))
    used = _number(folder / "memory.current")
    limits: tuple[str, ...] = ("memory.max", "memory.high")
    reclaimable = sum(stat.get(name, 0) for name in ("inactive_file", "active_file", "slab_reclaimable"))
    if used is None:
        used, limits = _number(folder / "memory.usage_in_bytes"), ("memory.limit_in_bytes",)
        reclaimable = sum(stat.get(name, 0) for name in ("total_inactive_file", "total_active_file"))
    if used is None:
        return []
    held = max(used - reclaimable, 0)
    known = ((name, _number(folder / name)) for name in limits)
    return [Limit(max(most - held, 0), str(folder / name)) for name, most in known if most is not None]


def usable_cores() -> int:
    """Returns how many threads can compute at once: the cores this process may use, two hardware threads of one counted
    once, and no more than its control groups' quota of processor time.
    """
    cores = set()
    for cpu in os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1):
        siblings = _read(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).strip()
        cores.add(siblings or str(cpu))
    return max(1, min(len(cores), *(int(quota) for quota in _quotas())) if _quotas() else len(cores))


def _quotas() -> list[float]:
    """Processors' worth of time that control groups leave to this process."""
    found = []
    for group in _groups("cpu"):
        words = _read(group / "cpu.max").split() or [
            str(_number(group / name) or -1) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        ]
        if len(words) == 2 and all(word.isdigit() and int(word) > 0 for word in words):
            found.append(int(words[0]) / int(words[1]))
    return found


def _groups(controller: str) -> list[Path]:
    """Folders of the control groups that this process is in, its own first; in a container the root may be its own."""
    found = [CGROUPS, CGROUPS / controller]
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = CGROUPS / controllers if controllers else CGROUPS
        for root in {base, CGROUPS / controller if controllers else CGROUPS}:
            group = root / path.strip("/")
            found += [group, *(parent for parent in group.parents if parent.is_relative_to(root))]
    return [folder for folder in dict.fromkeys(found) if folder.is_dir()]


def cache_folder() -> Path | None:
    """Returns where things that save time are kept, in the user's cache; None where there is no home."""
    try:
        return Path(platformdirs.user_cache_dir("mgpt-edge"))
    except (RuntimeError, KeyError, OSError):  # neither HOME nor an entry in passwd, as in containers
        return None


def mebibytes(count: int) -> str:
    """Returns bytes as people read them."""
    return f"{count / (1 << 20):,.0f} MiB"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _numbers(text: str) -> dict[str, int]:
    """Lines of a name and a number."""
    lines = (line.split() for line in text.splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
