"""Which tasks a checkpoint has, and with what defaults."""

from __future__ import annotations

import json

import pytest

from mgpt_edge.export.defaults import Defaults
from mgpt_edge.runtime.errors import CheckpointError
from mgpt_edge.runtime.family.tasks import from_words, tasks

UPPER_HALF = ("panel-depth", "panel-canny", "panel-subject")


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("Alpha-VLLM/Lumina-mGPT-7B-768-Omni", set(tasks()) - {*from_words()[1:], *UPPER_HALF}),
        ("Alpha-VLLM/Lumina-mGPT-2.0", set(from_words())),
        ("Alpha-VLLM/Lumina-mGPT-2.0-Omni", {*from_words(), *UPPER_HALF}),
        ("Alpha-VLLM/Lumina-mGPT-7B-512", {"text-to-image", "describe", "chat"}),
        ("my-own", {"text-to-image"}),
    ],
)
def test_tasks_by_name(source, wanted, tmp_path):
    assert set(Defaults.find(tmp_path, source).tasks) == wanted


def test_the_familys_settings_and_the_checkpoints_own(tmp_path):
    family = Defaults.find(tmp_path, "Lumina-mGPT-7B-768-Omni")
    assert family.sampling("text-to-image") == {"guidance": 4.0, "top_k": 2000, "text_top_k": 10, "temperature": 1.0}
    assert family.sampling("depth") == {"guidance": 1.0, "top_k": 200, "text_top_k": 10, "temperature": 1.0}
    assert family.sampling("chat") == {"guidance": 1.0, "top_k": 2000, "text_top_k": 5, "temperature": 1.0}
    second = Defaults.find(tmp_path, "Lumina-mGPT-2.0-Omni")
    assert second.target_size == 768
    for task in second.tasks:
        assert second.sampling(task) == {"guidance": 4.0, "top_k": 4096, "text_top_k": 10, "temperature": 1.0}
    says = {"target_size": 128, "temperature": 0.6, "tasks": {"depth": {"temperature": 0.3}, "chat": {}}}
    (tmp_path / "mgpt.json").write_text(json.dumps(says))
    own = Defaults.find(tmp_path, "mini")
    assert set(own.tasks) == {"depth", "chat"}
    assert own.sampling("depth") == {"guidance": 1.0, "top_k": 200, "text_top_k": 10, "temperature": 0.3}
    assert own.sampling("chat")["temperature"] == 0.6


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["depth"], "tasks must be an object"),
        ({"dept": {}}, "unknown task 'dept'; known: text-to-image, depth"),
        ({"depth": {"size": 3}}, "tasks must be an object from tasks to their settings"),
        ({"depth": {"top_k": 0}}, "top_k must be a whole number"),
        ({"depth": 3}, "tasks must be an object"),
    ],
)
def test_errors(said, message, tmp_path):
    (tmp_path / "mgpt.json").write_text(json.dumps({"tasks": said}))
    with pytest.raises(CheckpointError, match=message):
        Defaults.find(tmp_path, "mini")
