"""What a code has to read: counted against transformers' model, and the estimates made of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import DynamicCache
from typer.testing import CliRunner

from mgpt_edge.bench import ceiling, simulate
from mgpt_edge.bench.measuring import sides as decode
from mgpt_edge.bench.models.random_checkpoint import SHAPES, write_checkpoint
from mgpt_edge.bench.models.roofline import DEVICES, PRECISIONS, Decode, Device, device
from mgpt_edge.bench.rivals import reference
from mgpt_edge.cli import app
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.finetune.arithmetic import has_bfloat16
from mgpt_edge.runtime import machine
from mgpt_edge.runtime.engines.gpu import device as gpu
from mgpt_edge.runtime.errors import InvalidRequest
from tests.fake_cuda import FakeCuda

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import ChameleonModel

SHAPE = SHAPES["tiny"]
CONTEXT = 600


@pytest.fixture(scope="module")
def chameleon(tmp_path_factory: pytest.TempPathFactory) -> ChameleonModel:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, SHAPE, vq=False)
    return reference.chameleon(Checkpoint.open(folder), torch.float32)[0]


def test_weights_are_transformers_linears_and_the_image_head(chameleon: ChameleonModel) -> None:
    linears = [module for module in chameleon.layers.modules() if isinstance(module, torch.nn.Linear)]
    weights = sum(linear.weight.numel() for linear in linears) + SHAPE.vq.codes * SHAPE.decoder.hidden_size
    for name, bits in (("bf16", 16), ("int8", 8), ("int4", 4.5)):
        assert Decode(SHAPE.decoder, SHAPE.vq.codes, PRECISIONS[name]).weight_bytes == weights * bits / 8


def test_a_step_reads_both_rows_of_transformers_cache(chameleon: ChameleonModel) -> None:
    cache = DynamicCache(config=chameleon.config)
    with torch.inference_mode():
        chameleon(input_ids=torch.zeros(2, 5, dtype=torch.int64), past_key_values=cache, use_cache=True)
    elements = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    decode = Decode(SHAPE.decoder, SHAPE.vq.codes, PRECISIONS["bf16"])
    assert decode.step_bytes(5) - decode.step_bytes(0) == 2 * elements
    heads = elements // SHAPE.decoder.head_dim
    quantised = Decode(SHAPE.decoder, SHAPE.vq.codes, PRECISIONS["int8"])
    assert quantised.step_bytes(5) - quantised.step_bytes(0) == elements + 4 * heads


def test_a_picture_is_the_sum_of_its_steps() -> None:
    decode = Decode(SHAPE.decoder, SHAPE.vq.codes, PRECISIONS["int8"])
    passes, read = decode.picture_bytes((128, 64), 10, 16)
    # The conditional row holds the prompt besides; grid tokens and row ends lie between the codes.
    before = [3 + code + code // 8 for code in range(passes)]
    steps = sum(decode.step_bytes((10 + 2 * held) / 2) for held in before)
    assert passes == 32
    assert read == pytest.approx(steps, rel=0.01)


def test_an_estimate_falls_with_bandwidth_and_speculation() -> None:
    slow, fast = Device(100, 64, 0.5, "test"), Device(200, 64, 0.5, "test")
    once, twice = (simulate.estimates(target, "375m", (512, 512), 1.0, 64) for target in (slow, fast))
    fewer = simulate.estimates(slow, "375m", (512, 512), 2.0, 64)
    for name in PRECISIONS:
        assert once[name]["s"] == pytest.approx(2 * twice[name]["s"]) == pytest.approx(2 * fewer[name]["s"])
    # At its whole bandwidth a machine does what `bench ceiling` says is the least.
    whole = simulate.estimates(Device(100, 64, 1.0, "test"), "375m", (512, 512), 1.0, 64)
    assert whole["int8"]["ms"] == pytest.approx(ceiling.least(100)["375m"]["int8"]["ms"])


def test_what_does_not_fit_is_said() -> None:
    found = simulate.estimates(DEVICES["orin-nano"], "7b", (768, 768), 1.0, 64)
    assert not found["bf16"]["fits"]
    assert not found["int8"]["fits"]
    assert found["int4"]["fits"]


def test_an_unknown_device_gets_the_nearest_name() -> None:
    with pytest.raises(InvalidRequest, match="did you mean orin-agx-64"):
        device("orin-agx")


def test_the_command_says_that_it_estimates() -> None:
    run = CliRunner().invoke(app, ["bench", "simulate", "--device", "thor", "--size", "512x512"])
    assert run.exit_code == 0, run.output
    assert "an estimate, not a measurement" in run.output
    told = json.loads(CliRunner().invoke(app, ["bench", "simulate", "--device", "thor", "--json"]).output)
    assert told["estimate"] is True
    assert told["precisions"].keys() == PRECISIONS.keys()


@pytest.mark.slow
def test_it_predicts_this_machine(tmp_path: Path) -> None:
    """Other work on the machine moves both; one of three attempts is to be within 20 %."""
    write_checkpoint(tmp_path / "checkpoint", SHAPES["375m"], vq=False)
    case = decode.Case(
        checkpoint=Checkpoint.open(tmp_path / "checkpoint"),
        folder=tmp_path,
        context=CONTEXT,
        threads=machine.usable_cores(),
    )
    native = dict(decode.ours(case, [decode.BASE_BUNDLE], streams=[1]))
    ratios = []
    for _ in range(3):
        measured = decode.measure(case, native, 15)["sides"][decode.BASE]["ms"]
        target = simulate.here()
        step = native[decode.BASE].work(case)["bytes"]
        ratios.append(1e3 * step / (1e9 * target.gb_s * target.share) / measured)
        if ratios[-1] == pytest.approx(1, rel=0.2):
            return
    pytest.fail(f"predicted over measured: {ratios}")


def test_the_ceiling_of_this_machine(monkeypatch, capsys) -> None:
    monkeypatch.setattr(ceiling, "BUFFER", 1 << 22)
    monkeypatch.setattr(ceiling, "MATRIX", 64)
    ceiling.ceiling(threads=1, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    # Where products of bfloat16 are emulated, their rate says nothing about the machine.
    assert set(facts["tera_operations_s"]) == {"int8", "fp32"} | ({"bf16"} if has_bfloat16() else set())
    for rates in ("read_gb_s", "copy_gb_s", "tera_operations_s"):
        assert all(rate > 0 for rate in facts[rates].values())
    assert "gpu" not in facts


def test_the_ceiling_of_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "_runtime", FakeCuda)
    monkeypatch.setattr(ceiling, "BUFFER", 1 << 16)
    facts = ceiling._of_gpu()
    assert facts["gpu"] == "a GPU"
    assert facts["gpu_copy_gb_s"] > 0
    monkeypatch.setattr(gpu, "_runtime", lambda: FakeCuda(free=1 << 16))
    assert ceiling._of_gpu() == {}  # full: nothing is said
