"""The model that comes along: its bundle belongs to its checkpoint, and a prompt draws what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mgpt_edge
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.runtime.golden import recompute

FOLDER = Path(__file__).resolve().parent.parent / "models" / "mini"
HUES = {"red": 0, "yellow": 50, "green": 125, "blue": 225}  # degrees


@pytest.fixture(scope="module")
def model():
    return mgpt_edge.load()


def test_the_bundle_is_of_this_checkpoint(model):
    assert mgpt_edge.default_bundle() == FOLDER / "bundle"
    assert model.manifest.created["checkpoint"] == Checkpoint.open(FOLDER).fingerprint()


def test_it_computes_its_golden_logits_here(model):
    assert recompute(model.bundle, model.engine) < 0.035  # 0.030 where it was exported


def test_it_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 32 << 20


def test_its_graphs_name_no_files_of_the_machine_that_exported_them():
    graphs = list((FOLDER / "bundle").glob("*.onnx"))
    assert graphs
    for path in graphs:
        assert b".py" not in path.read_bytes()


def coloured(image) -> dict[str, int]:
    """Pixels of strong colour near each hue."""
    hue, saturation, value = (np.asarray(channel, dtype=float) for channel in image.convert("HSV").split())
    strong = (saturation > 100) & (value > 60)
    degrees = hue * 360 / 256
    return {
        name: int(np.sum(strong & (np.abs((degrees - centre + 180) % 360 - 180) < 20))) for name, centre in HUES.items()
    }


def test_a_prompt_draws_the_color_it_names(model):
    right = 0
    for color in HUES:
        for image in model.generate(f"a large {color} sphere on a gray floor", seed=0, count=4):
            counts = coloured(image)
            right += counts[color] > 150 and counts[color] == max(counts.values())
    assert right >= 13  # of 16; a guess would be right in 4
