"""A report goes on where it stopped, says what failed, and is one page that loads nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from mgpt_edge.bench import report
from mgpt_edge.bench.page import page, plots
from mgpt_edge.bench.page.figures import figures
from mgpt_edge.bench.page.markdown import markdown
from mgpt_edge.bench.page.results import read
from mgpt_edge.cli import app
from mgpt_edge.runtime.bundle.folder import default_bundle
from mgpt_edge.runtime.errors import Interrupted, InvalidRequest
from tests.bench.conftest import made_up

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mgpt_edge.bench.page.results import Results

DRIFTING = ["ceiling", "latency", "speculation", "sampler", "chat"]
ALL = [*DRIFTING, "peers", *DRIFTING, *DRIFTING]
"""What runs beside the small model; the judge's weights are nowhere."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The parts that were run, none of them really."""
    names: list[str] = []

    def run(arguments: list[str]) -> dict[str, Any]:
        names.append(arguments[0])
        return {"facts": made_up()[arguments[0]]}

    picture = {"prompt": "a <red> sphere", "seed": 0, "png": "iVBORw0KGgo="}
    monkeypatch.setattr(report, "run", run)
    monkeypatch.setattr(report, "_pictures", lambda _: [picture])
    alone = tmp_path / "model" / "bundle"  # the small model where no judge lies beside it
    alone.parent.mkdir()
    alone.symlink_to(default_bundle())
    monkeypatch.setattr(report, "default_bundle", lambda: alone)
    return names


def reported(output: Path, *flags: str) -> Any:
    return CliRunner().invoke(app, ["bench", "report", "-o", str(output), *flags])


def test_everything_runs_once(ran: list[str], tmp_path: Path) -> None:
    run = reported(tmp_path / "out")
    assert run.exit_code == 0, run.output
    assert ran == ALL
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.json", "report.md"}
    stored = read(tmp_path / "out" / "report.json")
    assert stored.command == f"mgpt bench report -o {tmp_path / 'out'}"
    assert "no weights of a judge" in stored.parts["quality"]["problem"]
    assert reported(tmp_path / "out").exit_code == 0
    assert ran == ALL


def test_an_interrupted_one_goes_on(ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = report.run

    def interrupted(arguments: list[str]) -> dict[str, Any]:
        if arguments[0] == "latency" and "peers" in ran:
            raise KeyboardInterrupt
        return measure(arguments)

    monkeypatch.setattr(report, "run", interrupted)
    run = reported(tmp_path)
    assert isinstance(run.exception, Interrupted)
    assert ran == [*DRIFTING, "peers", "ceiling"]
    assert list(read(tmp_path / "report.json").parts) == [*DRIFTING, "peers"]
    assert "not reached yet" in (tmp_path / "report.html").read_text()
    monkeypatch.setattr(report, "run", measure)
    assert reported(tmp_path).exit_code == 0
    assert ran == ALL
    assert "not reached yet" not in (tmp_path / "report.html").read_text()


def test_a_part_that_fails_stops_nothing(ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = report.run
    problem = {"problem": "it needs <nothing> | less"}
    monkeypatch.setattr(report, "run", lambda arguments: problem if arguments[0] == "peers" else measure(arguments))
    assert reported(tmp_path).exit_code == 0
    assert ran == [part for part in ALL if part != "peers"]
    assert "it needs &lt;nothing&gt; | less" in (tmp_path / "report.html").read_text()
    assert "Not measured: peers. it needs <nothing> \\| less" in (tmp_path / "report.md").read_text()
    monkeypatch.setattr(report, "run", measure)
    reported(tmp_path)
    assert ran[-1] == "peers"  # what failed is tried again, nothing else
    assert len(ran) == len(ALL)


def test_figures_cover_every_run(ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: list[str]) -> dict[str, Any]:
        ran.append(arguments[0])
        facts = made_up()[arguments[0]]
        if arguments[0] == "latency":
            time = ran.count("latency")
            facts |= {"load_s": 0.1 * time, "load_s_spread": [0.1 * time - 0.05, 0.1 * time + 0.05]}
        return {"facts": facts}

    monkeypatch.setattr(report, "run", run)
    assert reported(tmp_path).exit_code == 0
    stored = read(tmp_path / "report.json")
    assert len(stored.runs("latency")) == 3
    assert len(stored.runs("peers")) == 1
    facts = stored.facts("latency")
    assert facts["load_s"] == pytest.approx(0.2)
    assert facts["load_s_spread"] == pytest.approx([0.05, 0.35])
    assert facts["ways"] == made_up()["latency"]["ways"]


def test_other_settings_want_another_folder(ran: list[str], tmp_path: Path) -> None:
    reported(tmp_path)
    run = reported(tmp_path, "--full")
    assert isinstance(run.exception, InvalidRequest)
    assert "settings differ" in str(run.exception)


class Reader(HTMLParser):
    """What a page loads, and its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "srcset"}]


def test_the_page_loads_nothing(results: Callable[..., Results]) -> None:
    found = results(pictures=[{"prompt": "a <red> sphere", "seed": 0, "png": "iVBORw0KGgo="}])
    text = page.html(found)
    reader = Reader()
    reader.feed(text)
    assert reader.tags.count("svg") == 4
    assert reader.tags.count("img") == 1
    assert all(source.startswith(("data:", "#")) for source in reader.loads)
    assert not {"script", "link", "iframe"} & set(reader.tags)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "a &lt;red&gt; sphere" in text
    assert "prefers-color-scheme: dark" in text
    assert not any(color in text for color in plots.VARIABLES)


def test_a_page_of_nothing_measured(results: Callable[..., Results]) -> None:
    text = page.html(results(parts={}))
    assert text.count("not reached yet") == len(report.PARTS)
    assert "<svg" not in text


def test_a_missing_peer_is_said(results: Callable[..., Results]) -> None:
    found = results()
    assert "peers, llama.cpp, F16" in page.html(found)
    assert "Not measured: peers, llama.cpp, F16. llama_cpp is not installed" in markdown(found)


def test_every_figure_is_in_the_table(results: Callable[..., Results]) -> None:
    found = results()
    rows = re.findall(rf"^\| ({'|'.join(found.parts)}) \|", markdown(found), re.MULTILINE)
    assert len(rows) == len(list(found.figures))


def test_estimates_stand_apart_and_say_so(results: Callable[..., Results]) -> None:
    found = results(estimates=report._estimates())
    assert "estimates, not measurements" in page.html(found)
    assert "Estimates, not measurements" in markdown(found)
    assert not any("orin" in figure.name for figure in found.figures)


def test_a_bench_in_its_own_process() -> None:
    said = report.run(["sampler", "--repeats", "10"])
    assert all(figure.spread[0] <= figure.value <= figure.spread[1] for figure in figures("sampler", said["facts"]))
    assert "there is no bench 'nothing'" in report.run(["nothing"])["problem"]
