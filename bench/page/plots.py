"""The pictures of a report as inline SVG, in the colors of the page around them: light and dark from one drawing."""

from __future__ import annotations

import io
import re
from itertools import cycle
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from mgpt_edge.bench.page.figures import SHARE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matplotlib.axes import Axes

    from mgpt_edge.bench.page.results import Results

INK, QUIET, LINE, OURS, PEERS, THIRD = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
VARIABLES = {INK: "--ink", QUIET: "--quiet", LINE: "--line", OURS: "--ours", PEERS: "--peers", THIRD: "--third"}
"""What a color stands for, and the page's CSS variable that takes its place."""
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mgpt",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 6.5,
}
WAYS = {
    "window": ("ours", OURS, "o-"),
    "SJD, window": ("SJD", PEERS, "s-"),
    "coupled SJD, window": ("coupled SJD", THIRD, "^-"),
}


def plots(results: Results) -> Iterator[tuple[str, str, str]]:
    """Title, what it shows, and SVG of each plot whose parts were measured."""
    facts = {part: results.facts(part) for part in results.parts}
    if facts.get("ceiling") and facts.get("peers"):
        yield "Roofline", ROOFLINE, _drawn(lambda axes: _roofline(axes, facts["ceiling"], facts["peers"]), 4.8)
    if facts.get("latency"):
        yield "Seconds a picture, by size", LATENCY, _drawn(lambda axes: _latency(axes, facts["latency"]))
    if facts.get("speculation"):
        yield "Codes a pass, by window", PASSES, _drawn(lambda axes: _passes(axes, facts["speculation"]))
    if facts.get("precisions"):
        yield "Quality and speed", QUALITY, _drawn(lambda axes: _quality(axes, facts["precisions"]))


ROOFLINE = (
    "Guided codes of a random model. The slope is memory's speed, the levels are matrix products. "
    "Operations and bytes are counted, the time is measured; only what stays in the caches can be above the slope."
)
LATENCY = "Median, and nine tenths of the pictures as a bar."
PASSES = "Codes that a pass yields with so many guesses ahead: more is fewer passes. Mean, and nine tenths."
QUALITY = (
    "How often a picture shows what was asked, with its 95 % interval, against the time of a code; of each engine and "
    "precision that runs here."
)


def _drawn(draw: Callable[[Axes], None], height: float = 3.6) -> str:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.9, height), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' id="[a-z]+_[a-z0-9_.]+"', "", text)  # the names of groups, alike in every plot
    text = re.sub(r"(width|height)=\"[\d.]+pt\" ?", "", text, count=2)  # as wide as the page lets it be
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px; font-family: inherit", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return text


THREAD = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.6}


def _roofline(axes: Axes, ceiling: Any, peers: Any) -> None:
    """Operations a second by operations a byte."""
    speed = max(ceiling["read_gb_s"].values())
    levels = {kind: 1e3 * rate for kind, rate in ceiling["tera_operations_s"].items()}
    points = {
        name: (side["operations"] / side["bytes"], side["operations"] / side["ms"] / 1e6, side)
        for name, side in peers["sides"].items()
    }
    edge = max(levels.values()) / speed
    left, right = min(x for x, _, _ in points.values()) / 3, 3 * max(edge, *(x for x, _, _ in points.values()))
    for kind, rate in levels.items():
        axes.plot([rate / speed, right], [rate, rate], color=QUIET, linewidth=1)
        axes.text(right, rate, kind, ha="right", va="bottom", color=QUIET, fontsize=9)
    axes.plot([left, edge], [left * speed, edge * speed], color=INK, linewidth=1)
    for (name, (x, y, side)), marker in zip(points.items(), cycle("oD^sv<>pPX*dh+x")):
        low, high = (side["operations"] / ms / 1e6 for ms in reversed(side["ms_spread"]))
        spread = [[max(0, y - low)], [max(0, high - y)]]
        color = PEERS if side["peer"] else OURS
        axes.errorbar(x, y, spread, fmt=marker, color=color, label=name, elinewidth=1.2)
    bottom = min(y for _, y, _ in points.values()) / 3
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, None))
    axes.set(xlabel="operations a byte", ylabel="giga-operations a second")
    axes.figure.legend(loc="outside lower left", ncols=2)
    _plain(axes)


def _latency(axes: Axes, latency: Any) -> None:
    sizes = list(dict.fromkeys(way["size"] for way in latency["ways"]))
    for speculate, color, marker, shift in (("off", OURS, "o-", -0.04), ("auto", THIRD, "s-", 0.04)):
        ways = [way for way in latency["ways"] if way["speculate"] == speculate]
        places = [sizes.index(way["size"]) + shift for way in ways]
        _line(axes, places, ways, "picture_s", label=f"speculation {speculate}", fmt=marker, color=color)
    axes.set(xlabel="pixels", ylabel="seconds", xlim=(-0.5, len(sizes) - 0.5))
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_ylim(0, 1.25 * max(way["picture_s_spread"][1] for way in latency["ways"]))
    axes.legend()


def _passes(axes: Axes, speculation: Any) -> None:
    by_name = {way["way"]: way for way in speculation}
    axes.axhline(by_name["off"]["codes_a_pass"], color=QUIET, linewidth=1, label="no guesses")
    for way, (title, color, marker) in WAYS.items():
        windows = {int(name.split()[-1]): of for name, of in by_name.items() if name.rsplit(" ", 1)[0] == way}
        _line(axes, list(windows), list(windows.values()), "codes_a_pass", label=title, fmt=marker, color=color)
    axes.set(xlabel="guesses ahead", ylabel="codes a pass")
    axes.set_xticks(sorted(windows))
    axes.set_ylim(bottom=0)
    axes.legend()


def _quality(axes: Axes, precisions: Any) -> None:
    """Every kind of request in each precision that was timed."""
    timed = [line for line in precisions if line["code_ms"] is not None]
    colors = {"one solid": OURS, "two solids": PEERS, "held-out pair": THIRD}
    for kind, color in colors.items():
        shares = [
            SHARE.fullmatch(next(of for name, of in line["shares"].items() if name.endswith(kind))) for line in timed
        ]
        values, lows, highs = zip(*(map(float, share.groups()) for share in shares if share), strict=True)
        spread = [
            [v - low for v, low in zip(values, lows, strict=True)],
            [h - v for v, h in zip(values, highs, strict=True)],
        ]
        places = [line["code_ms"] for line in timed]
        axes.errorbar(places, values, spread, fmt="o", color=color, label=kind, elinewidth=1.2)
    most = 1.1 * max(line["code_ms"] for line in timed)
    least = 0.0
    for line in sorted(timed, key=lambda line: line["code_ms"]):
        name, place = f"{line['engine']} {line['precision']}", line["code_ms"]
        least = max(place, least + most / 28)  # names stand side by side, each with a line to its place
        axes.annotate(
            name, (place, 0), (least, 6), ha="center", rotation=90, color=QUIET, fontsize=9, arrowprops=THREAD
        )
    axes.set(xlabel="milliseconds a code", ylabel="% as asked", ylim=(0, 105), xlim=(0, most))
    axes.figure.legend(loc="outside lower left", ncols=3)


def _line(axes: Axes, places: list[float], ways: list[Any], key: str, **look: str) -> None:
    """Measured values with nine tenths of what was measured."""
    values = [way[key] for way in ways]
    edges = [way[f"{key}_spread"] for way in ways]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, edges, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, edges, strict=True)]
    axes.errorbar(places, values, [below, above], elinewidth=1.2, **look)


def _plain(axes: Axes) -> None:
    """Numbers as people write them, at the powers of ten only."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
