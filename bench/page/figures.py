"""What the parts of a report measured, as single figures that two reports can be compared by."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mgpt_edge.runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHARE = re.compile(r"([\d.]+) % \(([\d.]+)-([\d.]+), n=\d+\)")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        part: the bench that measured it.
        name: what it is of.
        value: the median.
        unit: of the value.
        spread: that of nine tenths of the measurements, or a share's 95 % interval; None where there was one.
        rising: whether more is better.
    """

    part: str
    name: str
    value: float
    unit: str
    spread: tuple[float, float] | None
    rising: bool = False

    def worse_than(self, other: Figure) -> bool:
        """Whether it is worse and neither's spread reaches the other's."""
        if self.spread is None or other.spread is None:
            return False
        return self.spread[1] < other.spread[0] if self.rising else self.spread[0] > other.spread[1]


def figures(part: str, facts: Any) -> Iterator[Figure]:
    """Every figure in what a bench printed as JSON.

    Raises:
        InvalidRequest: no such bench, or it prints something else.
    """
    try:
        yield from READERS[part](facts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        msg = f"these are no results of mgpt bench {part}: {error!r}"
        raise InvalidRequest(msg) from error


def _ceiling(facts: Any) -> Iterator[Figure]:
    for key, title in (("read_gb_s", "memory read"), ("copy_gb_s", "memory copied")):
        for threads in facts[key]:
            of = {"rate": facts[key][threads], "rate_spread": facts[f"{key}_spread"][threads]}
            yield _figure("ceiling", f"{title}, threads: {threads}", of, "rate", "GB/s", rising=True)
    if "gpu" in facts:
        yield _figure("ceiling", f"memory copied, {facts['gpu']}", facts, "gpu_copy_gb_s", "GB/s", rising=True)
    for kind, rate in facts["tera_operations_s"].items():
        of = {"rate": rate, "rate_spread": facts["tera_operations_s_spread"][kind]}
        yield _figure("ceiling", f"{kind} products", of, "rate", "TOPS", rising=True)


def _peers(facts: Any) -> Iterator[Figure]:
    case = f"{facts['shape']}, context {facts['context']}"
    for name, side in facts["sides"].items():
        yield _figure("peers", f"{case}: {name}", side, "ms", "ms")
    yield _figure("peers", f"{case}: native's share of memory's speed", facts, "native_share", "", rising=True)


def _latency(facts: Any) -> Iterator[Figure]:
    yield _figure("latency", "loading", facts, "load_s", "s")
    for way in facts["ways"]:
        case = f"{way['size']}, speculation {way['speculate']}"
        yield _figure("latency", f"{case}: a picture", way, "picture_s", "s")
        yield _figure("latency", f"{case}: its first row", way, "first_row_s", "s")
        yield _figure("latency", f"{case}: a code", way, "code_ms", "ms")
        yield _figure("latency", f"{case}: outside passes, a code", way, "outside_us_a_code", "µs")
        if "picture_j" in way:
            yield _figure("latency", f"{case}: energy of a picture", way, "picture_j", "J")
    yield _figure("latency", "pictures a second, 4 at a time", facts, "count_4_throughput_x", "x", rising=True)
    yield Figure("latency", "peak memory", facts["peak_resident_mib"], "MiB", None)


def _speculation(facts: Any) -> Iterator[Figure]:
    for way in facts:
        yield _figure("speculation", f"{way['way']}: a picture without its VQ", way, "ms", "ms")
        yield _figure("speculation", f"{way['way']}: codes a pass", way, "codes_a_pass", "", rising=True)


def _sampler(facts: Any) -> Iterator[Figure]:
    for row in facts["rows"]:
        case = f"{row['instruction_set']}, {row['ids']} ids, top-k {row['top_k']}"
        for name in ("native", "numpy", "torch"):
            if row[f"{name}_us"] is not None:
                yield _figure("sampler", f"{case}: {name}", row, f"{name}_us", "µs")


def _chat(facts: Any) -> Iterator[Figure]:
    for name, of in facts["times"].items():
        yield _figure("chat", name, of, "ratio", "x")


def _quality(facts: Any) -> Iterator[Figure]:
    """Shares only: they say how far to trust them."""
    for name, share in _shares(facts):
        yield Figure("quality", name, *share, rising=True)


def _precisions(facts: Any) -> Iterator[Figure]:
    for line in facts:
        case = f"{line['engine']}, {line['precision']}"
        if line["code_ms"] is not None:
            yield _figure("precisions", f"{case}: a code", line, "code_ms", "ms")
        for head, kept in line["agreement"].items():
            yield Figure("precisions", f"{case}: {head}, divergence from float32", kept["divergence"], "nats", None)
            yield Figure("precisions", f"{case}: {head}, as float32", 100 * kept["same"], "%", None, rising=True)
        for name, share in _shares(line["shares"]):
            yield Figure("precisions", f"{case}: {name}", *share, rising=True)


def _shares(said: dict[str, str]) -> Iterator[tuple[str, tuple[float, str, tuple[float, float]]]]:
    """Name, and value, unit and interval, of what is a share."""
    for name, words in said.items():
        if match := SHARE.fullmatch(words):
            value, low, high = map(float, match.groups())
            yield name, (value, "%", (low, high))


def _figure(part: str, name: str, of: Any, key: str, unit: str, *, rising: bool = False) -> Figure:
    low, high = of[f"{key}_spread"]
    return Figure(part, name, of[key], unit, (low, high), rising)


READERS: dict[str, Callable[[Any], Iterator[Figure]]] = {
    "ceiling": _ceiling,
    "peers": _peers,
    "latency": _latency,
    "speculation": _speculation,
    "sampler": _sampler,
    "chat": _chat,
    "quality": _quality,
    "precisions": _precisions,
}
