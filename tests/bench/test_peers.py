"""What others' runtimes are given, and that a missing or failing one stops nothing."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from mgpt_edge.bench import peers
from mgpt_edge.bench.measuring.sides import Case, ours
from mgpt_edge.bench.models.random_checkpoint import SHAPES, write_checkpoint
from mgpt_edge.bench.models.roofline import Decode
from mgpt_edge.bench.peers import PEERS
from mgpt_edge.bench.rivals import transformers_steps
from mgpt_edge.bench.rivals.plain_llama import write_gguf
from mgpt_edge.cli import app
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.runtime import machine
from mgpt_edge.runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from pathlib import Path

FAMILY, STATIC = "family's loop, float32", "static cache, float32"


@pytest.fixture
def case(tmp_path: Path) -> Case:
    write_checkpoint(tmp_path / "checkpoint", SHAPES["tiny"], vq=False)
    return Case(checkpoint=Checkpoint.open(tmp_path / "checkpoint"), folder=tmp_path, context=40, threads=1)


def measured(monkeypatch: pytest.MonkeyPatch, names: list[str], *flags: str) -> str:
    """What the command prints with these peers and the native engine only."""
    monkeypatch.setattr(peers, "ours", lambda case: ours(case, [("native", "int8")]))
    monkeypatch.setattr(peers, "PEERS", {name: PEERS[name] for name in names})
    arguments = ["bench", "peers", "--shape", "tiny", "--context", "40", "--rounds", "1", "--threads", "1", *flags]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    return run.stdout


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mgpt_edge.bench.rivals.genai", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    facts = json.loads(measured(monkeypatch, ["genai, int8", FAMILY], "--json"))
    assert facts["missing"] == {"genai, int8": "onnxruntime_genai is not installed: pip install onnxruntime-genai"}
    assert facts["sides"][FAMILY]["peer"]
    assert not facts["sides"]["native, int8"]["peer"]


def test_a_peer_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def growing(*_: Any) -> None:
        msg = "out of luck"
        raise RuntimeError(msg)

    monkeypatch.setattr(transformers_steps, "_growing", growing)
    facts = json.loads(measured(monkeypatch, [FAMILY, STATIC], "--json"))
    assert facts["missing"] == {FAMILY: "RuntimeError: out of luck"}
    assert set(facts["sides"]) == {STATIC, "native, int8", "native, int8, 4 streams"}
    said = measured(monkeypatch, [FAMILY]).splitlines()
    assert f"{FAMILY:28} not measured: RuntimeError: out of luck" in said


def test_a_peer_that_memory_does_not_hold_is_named(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = Decode(case.checkpoint.config, case.checkpoint.vocabulary.codes, PEERS[FAMILY].precision).held_bytes(40)
    monkeypatch.setattr(machine, "available_bytes", lambda: int(needed) - 1)
    assert "GiB of memory, 0.0 are free" in peers._set_up(case, PEERS[FAMILY])


def test_an_unknown_shape_gets_the_nearest_name() -> None:
    run = CliRunner().invoke(app, ["bench", "peers", "--shape", "357m"])
    assert isinstance(run.exception, InvalidRequest)
    assert "did you mean 375m" in str(run.exception)


def test_a_pass_a_row_reads_the_weights_twice(case: Case) -> None:
    twice, once = (peers._set_up(case, PEERS[name]) for name in (FAMILY, STATIC))
    assert twice.work(case)["operations"] == once.work(case)["operations"]
    assert once.work(case)["bytes"] < twice.work(case)["bytes"] < 2 * once.work(case)["bytes"]


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_the_gguf_has_the_dimensions_of_the_shape(kind: str, case: Case) -> None:
    gguf = pytest.importorskip("gguf")
    config, codes = case.checkpoint.config, case.checkpoint.vocabulary.codes
    write_gguf(case.checkpoint, case.folder / "made.gguf", kind)
    read = gguf.GGUFReader(case.folder / "made.gguf")
    said = {name: field.contents() for name, field in read.fields.items() if name.startswith("llama.")}
    assert said["llama.block_count"] == config.num_layers
    assert said["llama.embedding_length"] == config.hidden_size
    assert said["llama.feed_forward_length"] == config.intermediate_size
    assert said["llama.attention.head_count"] == config.num_heads
    assert said["llama.attention.head_count_kv"] == config.num_kv_heads
    assert said["llama.vocab_size"] == codes
    tensors = {tensor.name: tensor for tensor in read.tensors}
    assert tensors["output.weight"].shape.tolist() == [config.hidden_size, codes]
    assert tensors["blk.1.ffn_down.weight"].shape.tolist() == [config.intermediate_size, config.hidden_size]
    # Every matrix that a step reads, and the embedding.
    matrices = [tensor for tensor in read.tensors if len(tensor.shape) == 2 and tensor.name != "token_embd.weight"]
    held = PEERS[f"llama.cpp, {kind}"].precision
    assert sum(tensor.n_bytes for tensor in matrices) == Decode(config, codes, held).weight_bytes
