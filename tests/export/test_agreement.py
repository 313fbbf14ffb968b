"""How far a bundle is from its checkpoint, against the same sums over transformers' Chameleon."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr
from typer.testing import CliRunner

from mgpt_edge.bench.rivals.reference import chameleon
from mgpt_edge.cli import app
from mgpt_edge.export.agreement import agreement
from mgpt_edge.export.bundle import export_bundle
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.finetune.mini.examples import write_examples
from mgpt_edge.runtime.engines import load_engine
from mgpt_edge.runtime.errors import InvalidRequest
from tests.families import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agreement")
    write_checkpoint(folder / "checkpoint")
    checkpoint = Checkpoint.open(folder / "checkpoint")
    export_bundle(checkpoint, folder / "int8", precision="int8", target_size=128)
    export_bundle(checkpoint, folder / "fp32", precision="fp32", target_size=128)
    write_examples(folder / "records", 11, 64)
    return folder


def conversation(vocabulary):
    """A question, an answer with a picture of two rows, and a word."""
    rng = np.random.default_rng(0)
    low, high = vocabulary.code_range
    rows = [token for _ in range(2) for token in (*rng.integers(low, high, 70).tolist(), vocabulary.end_row)]
    picture = [
        vocabulary.begin_image,
        vocabulary.first_grid + 1,
        vocabulary.first_grid + 1,
        *rows,
        vocabulary.end_image,
    ]
    taken = {*range(low, high), *picture, *vocabulary.turn_end, vocabulary.bos, vocabulary.end_row}
    taken |= {*range(vocabulary.first_grid, vocabulary.first_grid + vocabulary.grids)}
    words = sorted({*range(vocabulary.size)} - taken)[:3]
    tokens = [vocabulary.bos, *words, *vocabulary.turn_end, *picture, *words, *vocabulary.turn_end]
    asked = 1 + len(words) + len(vocabulary.turn_end)
    return tokens, [number >= asked for number in range(len(tokens))]


def test_equals_the_sums_over_transformers_logits(folder):
    checkpoint = Checkpoint.open(folder / "checkpoint")
    tokens, learnt = conversation(checkpoint.vocabulary)
    engine = load_engine(export_bundle(checkpoint, folder / "again", precision="int8", target_size=128), 1)
    found = agreement(checkpoint, engine, [(tokens, learnt)] * 2)

    model, head = chameleon(checkpoint)
    with torch.inference_mode():
        exact = (model(input_ids=torch.tensor([tokens])).last_hidden_state[0] @ head.T).numpy()
    low, high = checkpoint.vocabulary.code_range
    codes = [place for place, token in enumerate(tokens[1:]) if low <= token < high]
    words = [place for place in range(len(tokens) - 1) if learnt[place + 1] and place + 1 >= len(tokens) - 4]
    for kind, places in (("image", codes), ("text", words)):
        given = _logits(engine, tokens, kind)
        expected = exact[:, low:high] if kind == "image" else exact
        p, q = (F.softmax(torch.from_numpy(x[places]).double(), -1).numpy() for x in (expected, given))
        assert found[kind].positions == 2 * len(places)
        assert found[kind].divergence == pytest.approx(rel_entr(p, q).sum(-1).mean(), rel=1e-3, abs=1e-7)
        assert found[kind].same == np.mean(p.argmax(-1) == q.argmax(-1))


def _logits(engine, tokens, kind):
    from mgpt_edge.runtime.engines.base import Segment

    rows = engine.open((len(tokens), 0))
    return np.stack([rows.forward([Segment(0, [token])], kind)[0][0].copy() for token in tokens])


def test_the_command_compares_records(folder):
    records = ["--against", str(folder / "checkpoint"), "--data", str(folder / "records" / "records.jsonl")]
    found = {}
    for precision in ("fp32", "int8"):
        run = CliRunner().invoke(app, ["verify", str(folder / precision), *records, "--json"])
        assert run.exit_code == 0, run.output
        found[precision] = json.loads(run.stdout)
    for head in ("image", "text"):
        assert found["fp32"][head]["divergence"] == pytest.approx(0, abs=1e-6)
        assert found["fp32"][head]["same"] == 1
        assert found["int8"][head]["divergence"] > found["fp32"][head]["divergence"]
        assert found["int8"][head]["positions"] == found["fp32"][head]["positions"]


def test_statistics_are_measured_and_used_by_the_commands(folder):
    records, statistics = folder / "records" / "records.jsonl", folder / "statistics.safetensors"
    arguments = [str(folder / "checkpoint"), "--data", str(records), "-o", str(statistics), "--records", "4", "--json"]
    run = CliRunner().invoke(app, ["calibrate", *arguments])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["records"] == 4
    exported = [str(folder / "checkpoint"), "-o", str(folder / "int4"), "--precision", "int4", "--target-size", "128"]
    run = CliRunner().invoke(app, ["export", *exported, "--statistics", str(statistics)])
    assert run.exit_code == 0, run.output
    assert CliRunner().invoke(app, ["verify", str(folder / "int4")]).exit_code == 0


def test_weights_are_rounded_and_used_by_the_commands(folder):
    checkpoint, rounded = str(folder / "checkpoint"), str(folder / "rounded")
    data = ["--data", str(folder / "records" / "records.jsonl"), "--records", "4"]
    run = CliRunner().invoke(app, ["gptq", checkpoint, *data, "-o", rounded, "--json"])
    assert run.exit_code == 0, run.output
    exported = ["export", checkpoint, "--target-size", "128", "--gptq", rounded, "-o", str(folder / "gptq")]
    refused = CliRunner().invoke(app, exported)
    assert "goes with --precision int4 alone, got --precision int8" in str(refused.exception)
    run = CliRunner().invoke(app, [*exported, "--precision", "int4"])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, ["verify", str(folder / "gptq"), "--against", checkpoint, *data, "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["image"]["positions"] > 0


def test_a_comparison_says_what_is_missing(folder, tmp_path):
    alone = CliRunner().invoke(app, ["verify", str(folder / "int8"), "--against", str(folder / "checkpoint")])
    assert isinstance(alone.exception, InvalidRequest)
    assert "--against CHECKPOINT --data RECORDS" in str(alone.exception)
    write_checkpoint(tmp_path, seed=1)
    records = str(folder / "records" / "records.jsonl")
    other = CliRunner().invoke(app, ["verify", str(folder / "int8"), "--against", str(tmp_path), "--data", records])
    assert "another checkpoint" in str(other.exception)
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text('{"conversations": []}\n')
    run = CliRunner().invoke(
        app, ["verify", str(folder / "int8"), "--against", str(folder / "checkpoint"), "--data", str(nothing)]
    )
    assert "none of 1 records can be used; such as record 1" in str(run.exception)
