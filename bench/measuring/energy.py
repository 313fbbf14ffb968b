"""Energy that the processor says it used: the counters of Linux's powercap (RAPL, on Intel and AMD)."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
PACKAGES = "intel-rapl:[0-9]*"  # AMD's, too; what lies below a package has another colon in its name


class Meter:
    """The packages' counters, as far as they may be read: mostly by root alone, and on few virtual machines."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        zones = (zone for zone in sorted(powercap.glob(PACKAGES)) if zone.name.count(":") == 1)
        self.zones = [zone for zone in zones if _number(zone / "energy_uj") is not None]

    def __bool__(self) -> bool:
        return bool(self.zones)

    def read(self) -> list[int]:
        """Microjoules of each package, from anywhere on."""
        return [_number(zone / "energy_uj") or 0 for zone in self.zones]

    def joules(self, before: list[int]) -> float:
        """Since a reading; counters begin again at their range."""
        used = 0
        for zone, first, last in zip(self.zones, before, self.read(), strict=True):
            used += last - first if last >= first else last - first + (_number(zone / "max_energy_range_uj") or 0)
        return used / 1e6


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
