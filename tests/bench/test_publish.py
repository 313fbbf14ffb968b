"""A stored report becomes the repository's texts; what the texts of this repository say is what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from mgpt_edge.bench import publish
from mgpt_edge.bench.page import results
from mgpt_edge.cli import app
from mgpt_edge.runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgpt_edge.bench.page.results import Results

ROOT = Path(__file__).resolve().parents[2]
README = """# A title

<!-- latency -->
| old |
<!-- end -->

Words between.

<!-- peers -->
<!-- end -->
The end.
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / publish.README).write_text(README, encoding="utf-8")
    return tmp_path


def test_figures_take_the_place_of_older_ones(results: Callable[..., Results], root: Path) -> None:
    results(pictures=[{"png": "iVBORw0KGgo="}]).save(root / "report.json")
    run = CliRunner().invoke(app, ["bench", "publish", str(root / "report.json"), "--root", str(root)])
    assert run.exit_code == 0, run.output
    text = (root / publish.README).read_text(encoding="utf-8")
    assert "| old |" not in text
    assert "| native, int8 | 12 | 1 x |" in text
    assert "| 32x32 | off | 2 | 2 | 2 | 2 |" in text
    assert text.startswith("# A title")
    assert "Words between." in text
    assert text.endswith("<!-- end -->\nThe end.\n")
    assert "| peers |" in (root / publish.PAGE).read_text(encoding="utf-8")
    assert "iVBORw0KGgo" not in (root / publish.STORED).read_text(encoding="utf-8")
    # Again, from what is stored now: nothing changes.
    again = CliRunner().invoke(app, ["bench", "publish", "--root", str(root)])
    assert again.exit_code == 0, again.output
    assert (root / publish.README).read_text(encoding="utf-8") == text


def test_figures_that_were_not_measured_are_an_error(results: Callable[..., Results], root: Path) -> None:
    results(parts={"peers": {"command": "mgpt bench peers", "problem": "too little memory"}}).save(root / "report.json")
    run = CliRunner().invoke(app, ["bench", "publish", str(root / "report.json"), "--root", str(root)])
    assert isinstance(run.exception, InvalidRequest)
    assert "figures of latency, and the report has none: it did not run" in str(run.exception)
    assert (root / publish.README).read_text(encoding="utf-8") == README
    assert not (root / publish.STORED).exists()


@pytest.mark.skipif(not (ROOT / publish.STORED).exists(), reason="no report has been stored")
def test_the_texts_here_say_what_is_stored() -> None:
    readme = (ROOT / publish.README).read_text(encoding="utf-8")
    for path, text in publish.published(results.read(ROOT / publish.STORED), readme).items():
        assert (ROOT / path).read_text(encoding="utf-8") == text
