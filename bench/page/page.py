"""A report as one HTML page that loads nothing: figures, plots, pictures and tables are in it."""

from __future__ import annotations

from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgpt_edge.bench.page.figures import READERS
from mgpt_edge.bench.page.markdown import number, spread
from mgpt_edge.bench.page.plots import plots

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mgpt_edge.bench.page.results import Results

STYLE = Path(__file__).with_name("page.css")


def html(results: Results) -> str:
    """The page; what was not measured is said in it."""
    title = f"mgpt bench: {results.settings['bundle']}"
    sections = (_head, _machine, _plots, _pictures, _figures, _estimates, _missing, _repeat)
    body = "\n".join(line for section in sections for line in section(results))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _head(results: Results) -> Iterator[str]:
    yield f"<header>\n<h1>{escape(results.settings['bundle'].split(',')[0])}</h1>"
    processor = escape(results.machine["processor"])
    yield f'<p class="quiet">Measured with mgpt bench on {results.date[:10]}, {processor}</p>'
    tiles = list(_tiles(results))
    if tiles:
        yield '<div class="tiles">'
        for value, what in tiles:
            yield f'<div class="tile"><b>{escape(value)}</b><span class="quiet">{escape(what)}</span></div>'
        yield "</div>"
    yield "</header>"


def _tiles(results: Results) -> Iterator[tuple[str, str]]:
    """The numbers that most readers come for."""
    if latency := results.facts("latency"):
        way = latency["ways"][0]
        yield f"{number(way['picture_s'], 3)} s", f"a picture of {way['size']}"
        yield f"{latency['peak_resident_mib']:,} MiB", "peak memory"
    if peers := results.facts("peers"):
        native = peers["sides"]["native, int8"]
        yield f"{number(native['ms'], 3)} ms", f"a guided code of the {peers['shape']} shape, native, int8"
        yield f"{peers['native_share']:.0%}", "of memory's speed reached in it"
        others = {name: side["times_native"] for name, side in peers["sides"].items() if side["peer"]}
        if others:
            fastest = min(others, key=lambda name: others[name])
            yield f"{number(others[fastest], 3)} x", f"that time in the fastest peer: {fastest}"


def _machine(results: Results) -> Iterator[str]:
    yield '<section class="card">\n<h2>Machine</h2>\n<dl>'
    facts = {**results.machine, **results.versions, "engine of the bundle": results.settings["engine"]}
    if ceiling := results.facts("ceiling"):
        threads = max(ceiling["read_gb_s"], key=int)
        facts["memory read"] = f"{ceiling['read_gb_s'][threads]:.1f} GB/s with {threads} threads"
    for name, value in facts.items():
        yield f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
    yield "</dl>\n</section>"


def _plots(results: Results) -> Iterator[str]:
    drawn = list(plots(results))
    if not drawn:
        return
    yield '<section>\n<h2>Plots</h2>\n<div class="grid">'
    for title, caption, svg in drawn:
        named = svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
        yield f"<figure><h3>{escape(title)}</h3>\n{named}<figcaption>{escape(caption)}</figcaption></figure>"
    yield "</div>\n</section>"


def _pictures(results: Results) -> Iterator[str]:
    if not results.pictures:
        return
    yield '<section>\n<h2>Drawn here</h2>\n<div class="pictures">'
    for picture in results.pictures:
        words = escape(picture["prompt"])
        yield f'<figure><img alt="{words}" src="data:image/png;base64,{escape(picture["png"])}">'
        yield f"<figcaption>{words}, seed {picture['seed']}</figcaption></figure>"
    yield "</div>\n</section>"


def _figures(results: Results) -> Iterator[str]:
    yield "<section>\n<h2>All figures</h2>"
    yield '<p class="quiet">Medians, and nine tenths of the measurements; of a share, its 95 % interval.</p>'
    for part, group in groupby(results.figures, lambda figure: figure.part):
        rows = [
            (escape(of.name), f"{number(of.value)} {escape(of.unit)}", spread(of) or "measured once") for of in group
        ]
        command = escape(results.parts[part]["command"])
        yield f'<details>\n<summary>{part} <span class="quiet">{len(rows)} figures</span></summary>'
        yield f'<p class="quiet"><code>{command}</code></p>'
        yield from _table(("what", "median", "spread"), rows)
        yield "</details>"
    yield "</section>"


def _estimates(results: Results) -> Iterator[str]:
    if "devices" not in results.estimates:
        return
    devices: dict[str, Any] = results.estimates["devices"]
    precisions = list(next(iter(devices.values()))["precisions"])
    yield '<section class="estimate">\n<h2>Other devices: estimates, not measurements</h2>'
    yield f"<p>Seconds a picture: {escape(results.estimates['of'])}. Bytes to read, divided by the bandwidth of the "
    yield "data sheet and the share of it that decoding is assumed to reach; nothing here was run.</p>"
    rows = [
        (
            escape(name),
            f"{of['gb_s']:g}",
            f"{of['share']:.0%}",
            *(number(p["s"]) if p["fits"] else "does not fit" for p in of["precisions"].values()),
        )
        for name, of in devices.items()
    ]
    yield from _table(("device", "GB/s", "share", *precisions), rows)
    for source, group in groupby(devices, lambda name: devices[name]["source"]):
        yield f'<p class="quiet">{escape(", ".join(group))}: {escape(source)}</p>'
    yield "</section>"


def _missing(results: Results) -> Iterator[str]:
    """What failed, what was left out, and what an interrupted run has not reached."""
    problems = results.problems | {part: "not reached yet" for part in READERS if part not in results.parts}
    if "problem" in results.estimates:
        problems["estimates"] = results.estimates["problem"]
    if not problems:
        return
    yield "<section>\n<h2>Not measured</h2>"
    yield from _table(("part", "why"), [(escape(part), escape(why)) for part, why in problems.items()], plain=True)
    yield "</section>"


def _repeat(results: Results) -> Iterator[str]:
    yield f"<section>\n<h2>Repeat it</h2>\n<pre><code>{escape(results.command)}</code></pre>\n</section>"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]], *, plain: bool = False) -> Iterator[str]:
    """First column words, the others numbers unless `plain`; cells are HTML already."""
    kind = "" if plain else ' class="n"'
    first, *others = heads
    yield f'<div class="wide"><table>\n<thead><tr><th scope="col">{first}</th>'
    yield "".join(f'<th scope="col"{kind}>{head}</th>' for head in others) + "</tr></thead>\n<tbody>"
    for name, *cells in rows:
        yield f'<tr><th scope="row">{name}</th>' + "".join(f"<td{kind}>{cell}</td>" for cell in cells) + "</tr>"
    yield "</tbody></table></div>"
