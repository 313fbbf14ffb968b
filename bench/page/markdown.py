"""The tables of a report as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgpt_edge.bench.page.figures import Figure
    from mgpt_edge.bench.page.results import Results


def markdown(results: Results) -> str:
    """Machine card, every figure, what is missing and why, estimates apart, and the command."""
    return "\n".join(_lines(results)) + "\n"


def number(value: float, digits: int = 4) -> str:
    """So many digits, as people write them."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def spread(figure: Figure) -> str:
    """From where to where; nothing where it was measured once."""
    return "" if figure.spread is None else f"{number(figure.spread[0])} to {number(figure.spread[1])}"


def _lines(results: Results) -> Iterator[str]:
    yield f"# {results.settings['bundle']}, {results.date[:10]}\n"
    yield "| | |\n|---|---|"
    for name, value in (results.machine | results.versions).items():
        yield f"| {name} | {_cell(str(value))} |"
    yield "\nMedians; the spread is that of nine tenths of the measurements, of a share its 95 % interval.\n"
    yield "| part | what | | | spread |\n|---|---|--:|---|---|"
    for figure in results.figures:
        name = _cell(figure.name)
        yield f"| {figure.part} | {name} | {number(figure.value)} | {figure.unit} | {spread(figure)} |"
    for name, why in results.problems.items():
        yield f"\nNot measured: {name}. {_cell(why)}"
    yield from _estimates(results)
    yield f"\n```\n{results.command}\n```"


def _estimates(results: Results) -> Iterator[str]:
    if "devices" not in results.estimates:
        return
    yield f"\nEstimates, not measurements: seconds a picture, {results.estimates['of']}.\n"
    devices = results.estimates["devices"]
    precisions = list(next(iter(devices.values()))["precisions"])
    yield f"| device | GB/s | share of it | {' | '.join(precisions)} |"
    yield "|---|--:|---|" + "--:|" * len(precisions)
    for name, of in devices.items():
        cells = " | ".join(number(p["s"]) if p["fits"] else "does not fit" for p in of["precisions"].values())
        yield f"| {name} | {of['gb_s']:g} | {of['share']:.0%}, {_cell(of['source'])} | {cells} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
