"""A stored report into a repository's texts: docs/benchmarks.json, docs/benchmarks.md and the README's figures.

mgpt bench publish [REPORT.json] [--root FOLDER]

The README's figures stand between `<!-- NAME -->` and `<!-- end -->`, NAME being `peers` or `latency`; what is there is
replaced. Without REPORT.json the texts are written anew from docs/benchmarks.json.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgpt_edge.bench.page import results
from mgpt_edge.bench.page.markdown import markdown, number
from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgpt_edge.bench.page.results import Results

STORED, PAGE, README = Path("docs/benchmarks.json"), Path("docs/benchmarks.md"), Path("README.md")
SECTION = re.compile(r"(<!-- (?P<part>peers|latency) -->\n).*?(<!-- end -->)", re.DOTALL)


def publish(
    report: Annotated[Path | None, typer.Argument(help="report.json of mgpt bench report.")] = None,
    root: Annotated[Path, typer.Option(help="Folder of README.md and docs.")] = Path(),
) -> None:
    """Write a stored report's figures into the texts."""
    found = results.read(report or root / STORED)
    texts = published(found, (root / README).read_text(encoding="utf-8"))
    if report is not None:
        replace(found, pictures=[]).save(root / STORED)
    for path, text in texts.items():
        write_atomically(root / path, text.encode())
        print(root / path)


def published(found: Results, readme: str) -> dict[Path, str]:
    """Each text's path in the repository -> what stands in it.

    Raises:
        InvalidRequest: the README has a section for something that was not measured.
    """
    card = found.machine
    measured = f"{card['processor']}, {card['cores']} cores, {found.date[:10]}; [all of it]({PAGE}):"

    def section(match: re.Match[str]) -> str:
        part = match["part"]
        facts = found.facts(part)
        if facts is None:
            msg = (
                f"{README} has figures of {part}, and the report has none: {found.problems.get(part, 'it did not run')}"
            )
            raise InvalidRequest(msg)
        return match[1] + "\n".join(("", measured, "", *WRITERS[part](facts), "", match[3]))

    return {PAGE: markdown(found), README: SECTION.sub(section, readme)}


def _peers(facts: Any) -> Iterator[str]:
    yield "| | ms | beside `native`, int8 |\n|---|--:|--:|"
    for name, side in facts["sides"].items():
        yield f"| {name} | {number(side['ms'], 3)} | {number(side['times_native'], 3)} x |"
    share, low, high = (100 * value for value in (facts["native_share"], *facts["native_share_spread"]))
    yield f"\n`native`, int8, reads its bytes at {share:.0f} % ({low:.0f}-{high:.0f}) of the speed of a plain read."


def _latency(facts: Any) -> Iterator[str]:
    yield "| size | speculation | s a picture | s to the first row | ms a code | µs a code outside the passes |"
    yield "|---|---|--:|--:|--:|--:|"
    for way in facts["ways"]:
        cells = (way[key] for key in ("picture_s", "first_row_s", "code_ms", "outside_us_a_code"))
        yield f"| {way['size']} | {way['speculate']} | {' | '.join(number(cell, 3) for cell in cells)} |"
    yield f"\nFour pictures at a time: {number(facts['count_4_throughput_x'], 3)} times as many a second."


WRITERS = {"peers": _peers, "latency": _latency}
