"""`mgpt finetune`, as a user runs it: from records to a checkpoint that `mgpt export` reads, killed and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mgpt_edge import cli
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.finetune.training import Settings, finetune
from mgpt_edge.runtime.errors import CheckpointError, InvalidRequest, NumericalError
from mgpt_edge.runtime.family.tasks.task import IMAGE_MARK
from tests.finetune.conversations import drawing, record, write_pictures, write_records

LOSSES = ("step", "loss", "z", "norm", "rate", "tokens")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, 6)
    return write_records(folder, [drawing(number) for number in range(6)])


@pytest.fixture
def settings(checkpoints, data, tmp_path):
    return Settings(model=str(checkpoints["7b"]), data=data, output=tmp_path / "out", steps=4, batch=2, rate=1e-3)


@pytest.fixture
def mgpt(monkeypatch, capfd):
    """Runs `mgpt …` in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mgpt", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop, pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.showwarning", None)
            cli.main()
        captured = capfd.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


def log(output) -> list[dict]:
    return [json.loads(line) for line in (output / "training" / "log.jsonl").read_text().splitlines()]


def losses(output) -> list[float]:
    return [entry["loss"] for entry in log(output)]


def weights(output) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(output)
    return {name: checkpoint.tensor(name) for name in checkpoint.names()}


def equal(a, b) -> bool:
    return all(torch.equal(weights(a)[name], value) for name, value in weights(b).items())


def at(step: int, act):
    """A report that does something when a step is done."""
    return lambda what, done, total, note: act() if (what.startswith("training"), done) == (True, step) else None


def kill() -> None:
    raise RuntimeError


def test_from_records_to_a_bundle(mgpt, checkpoints, data, tmp_path):
    out = tmp_path / "out"
    common = ("--model", checkpoints["7b"], "--data", data, "--steps", 3, "--batch", 2)
    code, said, _ = mgpt("finetune", "fp-sft", *common, "-o", out, "--json")
    assert code == 0
    result = json.loads(said)
    assert (result["checkpoint"], result["step"], result["bad"], result["finished"]) == (str(out), 3, 0, True)
    assert [entry["step"] for entry in log(out)] == [1, 2, 3]
    assert {"loss", "z", "norm", "rate", "tokens", "seconds", "left_s", "stage"} <= log(out)[0].keys()
    assert (out / "training" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not equal(out, checkpoints["7b"])
    code, _, said = mgpt("export", out, "-o", tmp_path / "bundle", "--precision", "fp32")
    assert code == 0, said
    code, said, _ = mgpt("inspect", tmp_path / "bundle")
    assert code == 0
    assert "target_size              128" in said


def test_stages_of_growing_size_and_their_mistakes(mgpt, checkpoints, data, tmp_path):
    out = tmp_path / "out"
    common = ("finetune", "fp-sft", "--model", checkpoints["7b"], "--data", data, "-o", out, "--batch", 6)
    sizes = ("--target-size", 64, "--target-size", 96)
    code, said, err = mgpt(*common, *sizes, "--epochs", 1.5)
    assert code == 0, err
    assert f"{out}: 2 steps, loss" in said
    assert "training stage-96: 2 of 2 steps" in err
    assert [(entry["stage"], entry["step"]) for entry in log(out)] == [
        ("stage-64", 1), ("stage-64", 2), ("stage-96", 1), ("stage-96", 2),
    ]  # fmt: skip
    assert Checkpoint.open(out).defaults.target_size == 96
    code, said, _ = mgpt(*common, *sizes, "--epochs", 1.5)
    assert code == 0
    assert "was trained to its end before" in said
    code, _, err = mgpt(*common, *sizes, "--epochs", 1.5, "--rate", 1)
    assert code == 2
    assert "rate was 2e-05, is 1.0" in err


def test_every_task_with_several_pictures(mgpt, checkpoints, data, tmp_path):
    asked = record(f"make it red {IMAGE_MARK}", IMAGE_MARK, "0.png", "1.png")
    records = write_records(data.parent, [asked, record("a", "b"), {"no": 1}], "omni.json")
    common = ("--model", checkpoints["7b"], "--data", records, "--steps", 1, "--batch", 2, "--lora", 2)
    code, said, err = mgpt("finetune", "omni-sft", *common, "-o", tmp_path / "omni")
    assert code == 0, err
    assert "records left out: 1" in said
    assert (tmp_path / "omni" / "adapter" / "adapter_config.json").is_file()
    code, said, _ = mgpt("finetune", "fp-sft", *common, "-o", tmp_path / "fp")
    assert code == 0
    assert "records left out: 2" in said
    code, _, err = mgpt("finetune", "omni-sft", *common, "-o", tmp_path / "strict", "--bad-records", "fail")
    assert code == 2
    assert "record 3 (line " in err


def test_a_killed_training_goes_on_as_if_nothing_had_been(settings, tmp_path):
    settings = replace(settings, save_minutes=0.0)
    finetune(replace(settings, output=tmp_path / "once"))
    with pytest.raises(RuntimeError):
        finetune(settings, at(3, kill))
    assert len(losses(settings.output)) == 3
    assert not (settings.output / "config.json").exists()
    result = finetune(settings)
    assert (result.step, result.finished) == (4, True)
    assert losses(settings.output) == losses(tmp_path / "once")
    assert equal(settings.output, tmp_path / "once")


def test_ctrl_c_leaves_a_model_and_a_state(settings, tmp_path, checkpoints):
    finetune(replace(settings, output=tmp_path / "once"))
    result = finetune(settings, at(2, lambda: signal.raise_signal(signal.SIGINT)))
    assert (result.step, result.steps, result.finished) == (2, 4, False)
    assert not equal(settings.output, checkpoints["7b"])
    assert finetune(settings).finished
    assert losses(settings.output) == losses(tmp_path / "once")
    assert equal(settings.output, tmp_path / "once")


def test_ctrl_c_says_how_to_go_on(mgpt, monkeypatch, checkpoints, data, tmp_path):
    monkeypatch.setattr(
        cli.finetune._Progress, "show", lambda self, *said: at(1, lambda: signal.raise_signal(signal.SIGTERM))(*said)
    )
    common = ("--model", checkpoints["7b"], "--data", data, "--steps", 3, "--batch", 2)
    code, _, err = mgpt("finetune", "fp-sft", *common, "-o", tmp_path / "out")
    assert code == 130
    assert "interrupted at step 1 of 3" in err
    assert "run this again to go on" in err


def test_two_processes_are_as_one(settings, tmp_path, checkpoints, data):
    """Two take over at step 2 what one began, and come to the same losses and weights as one alone."""
    settings = replace(settings, dropout=0.0, precision="fp32", output=tmp_path / "two")
    finetune(replace(settings, output=tmp_path / "one"))
    finetune(settings, at(2, lambda: signal.raise_signal(signal.SIGINT)))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "mgpt_edge.cli", "finetune", "omni-sft", "--model", checkpoints["7b"], "--data", data),
        *("-o", tmp_path / "two", "--steps", "4", "--batch", "2", "--rate", "1e-3", "--dropout", "0"),
        *("--precision", "fp32"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps, loss") == 1
    for one, two in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        # The norm too: AdamW's steps would not show gradients that are off by a factor.
        assert [two[key] for key in LOSSES] == pytest.approx([one[key] for key in LOSSES], rel=1e-5)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora": 0}, "lora must be at least 1, got 0"),
        ({"rate": float("nan")}, "rate must be above 0"),
        ({"batch": 2, "rows": 4}, "batch must be divisible by 1 processes x 4 rows, got 2"),
        ({"precision": "int8"}, "precision must be bf16 or fp32"),
        ({"target_sizes": (100,)}, "target-sizes must be multiples of 32"),
        ({"target_sizes": (64, 64)}, "each once"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1"),
    ],
)
def test_settings_that_cannot_be_used(settings, change, said):
    with pytest.raises(InvalidRequest, match=said):
        finetune(replace(settings, **change))


def test_a_loss_that_is_no_number_ends_it(settings):
    with pytest.raises(NumericalError, match="A lower --rate helps"):
        finetune(replace(settings, rate=1e30))
    assert not list(settings.output.glob("training/stage-128/state-*"))


def test_another_checkpoint_is_not_overwritten(settings):
    with pytest.raises(InvalidRequest, match="holds another checkpoint"):
        finetune(replace(settings, output=type(settings.output)(settings.model)))


def test_a_checkpoint_of_the_second_generation_is_refused(settings, checkpoints):
    with pytest.raises(CheckpointError, match="expected a checkpoint of the first Lumina-mGPT"):
        finetune(replace(settings, model=str(checkpoints["2.0"])))


def test_the_command_says_what_it_needs(mgpt, monkeypatch, tmp_path):
    common = ("finetune", "omni-sft", "--model", "x", "--data", "y", "-o", tmp_path)
    for options, said in (
        (("--target-size", 64, "--target-size", 96), "omni-sft trains one --target-size, got 2"),
        (("--bad-records", "ignore"), "--bad-records must be skip or fail"),
    ):
        code, _, err = mgpt(*common, *options)
        assert code == 2
        assert said in err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else object())
    code, _, err = mgpt(*common)
    assert code == 5
    assert "fine-tuning needs peft; install with: pip install 'mgpt-edge[finetune]'" in err
