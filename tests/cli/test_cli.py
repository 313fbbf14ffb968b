"""The command, run as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgpt_edge.runtime.engines import engine_kind
from mgpt_edge.runtime.engines.gpu import device as gpu
from mgpt_edge.runtime.errors import Interrupted
from mgpt_edge.runtime.results import metadata
from tests.fake_cuda import FakeCuda

MGPT = [sys.executable, "-c", "from mgpt_edge.cli import main; main()"]


@pytest.fixture
def bundle(bundle_of):
    return bundle_of("7b", "int8").folder


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


pytestmark = pytest.mark.filterwarnings("default::mgpt_edge.runtime.errors.CompatibilityWarning")


def test_generate_and_again_from_its_file(mgpt, bundle, tmp_path):
    code, out, _ = mgpt("generate", "a cat", "--size", "64x32", "--seed", 3, "--guidance", 2, "--model", bundle)
    assert (code, out.strip()) == (0, "out.png")
    assert pixels("out.png").shape == (32, 64, 3)
    code, *_ = mgpt("generate", "--from-image", "out.png", "-o", "again.png", "--model", bundle)
    assert code == 0
    assert np.array_equal(pixels("out.png"), pixels("again.png"))
    mgpt("generate", "--from-image", "out.png", "--seed", 4, "-o", "other.png", "--model", bundle)
    assert not np.array_equal(pixels("out.png"), pixels("other.png"))


def test_count_json_and_preview(mgpt, bundle):
    code, out, err = mgpt(
        "generate", "a cat", "--size", "32x64", "--seed", 8, "--count", 3, "-o", "p.png",
        "--preview", "now.png", "--json", "--speculate", "off", "--model", bundle,
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0
    assert [picture["path"] for picture in result["pictures"]] == ["p-0.png", "p-1.png", "p-2.png"]
    assert [picture["seed"] for picture in result["pictures"]] == [8, 9, 10]
    assert [picture["passes"] for picture in result["pictures"]] == 3 * [2 * 4 - 1]
    assert np.array_equal(pixels("now.png"), pixels("p-2.png"))
    assert "warning" in err  # 32x64 is none of the checkpoint's sizes


def test_another_bundle_is_warned_of(mgpt, bundle, bundle_of):
    mgpt("generate", "a cat", "--size", "32x32", "--seed", 3, "--model", bundle)
    _, _, err = mgpt("generate", "--from-image", "out.png", "-o", "b.png", "--model", bundle_of("34b", "int8").folder)
    assert "the picture will differ" in err


def test_a_picture_of_another_arithmetic_may_differ(mgpt, bundle):
    mgpt("generate", "a cat", "--size", "32x32", "--seed", 3, "--model", bundle)
    drawn = metadata.read("out.png")
    assert drawn["arithmetic"] == engine_kind(drawn["engine"]).arithmetic
    assert "arithmetic" not in mgpt("generate", "--from-image", "out.png", "-o", "b.png", "--model", bundle)[2]
    with Image.open("out.png") as image:
        older = image.convert("RGB")
    del drawn["arithmetic"]  # as before it was counted
    older.info["mgpt"] = drawn
    metadata.save(older, "older.png")
    code, _, err = mgpt("generate", "--from-image", "older.png", "-o", "b.png", "--model", bundle)
    assert code == 0
    assert "drawn by arithmetic 1 of engine 'native', this version computes by 2: the picture may differ" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate"], 2, "give a prompt"),
        (["generate", "a cat", "--size", "65x64"], 2, "nearest size is 64x64"),
        (["generate", "a cat", "--size", "huge"], 2, "128x128"),
        (["generate", "a cat", "--seed", "-1"], 2, "seed"),
        (["generate", "a cat", "--seed", "x"], 2, "seed"),
        (["generate", "a cat", "--guidance", "nan"], 2, "guidance"),
        (["generate", "a cat", "-o", "nowhere/x.png"], 2, "nowhere is no folder"),
        (["generate", "a cat", "-o", "x.jpg"], 2, "PNG"),
        (["generate", "--from-image", "missing.png"], 2, "no such file"),
        (["generate", "a cat", "--model", "nowhere"], 4, "mgpt export"),
        (["export", "nowhere", "-o", "b"], 3, "nowhere"),
        (["inspect", "nowhere"], 4, "no bundle"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_errors_are_one_line_or_json(mgpt, bundle, arguments, code, message):
    model = ["--model", bundle] if arguments[0] == "generate" and "--model" not in arguments else []
    got, out, err = mgpt(*arguments, *model)
    assert (got, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert err.startswith("mgpt: ")
    got, out, _ = mgpt(*arguments, *model, "--json")
    assert got == code
    assert message in json.loads(out)["error"]["message"]


def test_foreign_png(mgpt, bundle):
    Image.new("RGB", (4, 4)).save("plain.png")
    assert "does not say how it was drawn" in mgpt("generate", "--from-image", "plain.png", "--model", bundle)[2]
    Path("junk.png").write_bytes(b"junk")
    assert "no PNG that can be read" in mgpt("generate", "--from-image", "junk.png", "--model", bundle)[2]


def test_export_inspect_verify_estimate(mgpt, checkpoints):
    code, out, _ = mgpt("export", checkpoints["34b"], "-o", "bundle", "--precision", "int8", "--json")
    assert code == 0
    assert json.loads(out)["bytes"] > 1000
    assert json.loads(mgpt("inspect", "bundle", "--json")[1])["precision"] == "int8"
    assert json.loads(mgpt("inspect", checkpoints["34b"], "--json")[1])["decoder"]["swin_norm"] is True
    assert "precision" in mgpt("inspect", "bundle")[1]
    assert "as they were written" in mgpt("verify", "bundle")[1]
    for place, size in (("bundle", "64x64"), (checkpoints["34b"], "96x64")):
        code, out, _ = mgpt("estimate", place, "--size", size, "--json")
        facts = json.loads(out)
        assert (code, facts["fits"]) == (0, True)
        parts = sum(
            facts[name] for name in facts if name.endswith("_bytes") and name not in {"total_bytes", "free_bytes"}
        )
        assert facts["total_bytes"] == parts


def test_estimate_says_what_would_fit(mgpt, checkpoints, monkeypatch):
    from mgpt_edge.runtime import machine

    need = json.loads(mgpt("estimate", checkpoints["7b"], "--precision", "fp32", "--size", "256x256", "--json")[1])
    monkeypatch.setattr(machine, "available_bytes", lambda: need["total_bytes"] - 1)
    code, out, _ = mgpt("estimate", checkpoints["7b"], "--precision", "fp32", "--size", "256x256")
    assert code == 1
    assert "does not fit; int8 would" in out
    monkeypatch.setattr(machine, "available_bytes", lambda: 1 << 20)
    assert "nothing would" in mgpt("estimate", checkpoints["7b"])[1]


def test_estimate_asks_the_gpu_of_a_bundle_for_one(mgpt, bundle, tmp_path, monkeypatch):
    shutil.copytree(bundle, tmp_path / "copy")
    path = tmp_path / "copy" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"engine": "rtx"}))
    for free, code in ((1 << 20, 1), (1 << 40, 0)):
        cuda = FakeCuda(free=free)
        monkeypatch.setattr(gpu, "_runtime", lambda cuda=cuda: cuda)
        found, out, _ = mgpt("estimate", path.parent, "--json")
        assert found == code
        assert json.loads(out)["free_bytes"] == free
    monkeypatch.setattr(cuda, "cudaSetDevice", lambda _: (type(cuda).cudaError_t(2),))
    code, out, _ = mgpt("estimate", path.parent)
    assert code == 1
    assert "mgpt doctor" in out


def test_verify_finds_damage(mgpt, bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "copy")
    path = tmp_path / "copy" / "vq_decoder.data"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, _, err = mgpt("verify", tmp_path / "copy")
    assert code == 4
    assert "damaged" in err


def test_help_and_version(mgpt):
    import mgpt_edge

    assert mgpt("--version")[:2] == (0, mgpt_edge.__version__ + "\n")
    assert mgpt()[0] == 0
    assert "Exit codes" in mgpt("--help")[1]


def test_doctor(mgpt):
    code, out, _ = mgpt("doctor", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["cores"] >= 1
    assert float(facts["memory read"].split()[0]) > 0.1
    assert facts["engine native"] == "ready"


def test_ctrl_c_saves_the_rows_so_far(bundle, tmp_path):
    # Eight pictures, since one may be done before the signal comes.
    arguments = ["generate", "a cat", "--size", "1024x1024", "--count", "8", "-o", "big.png", "--preview", "now.png"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [*MGPT, *arguments, "--model", bundle],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # What a shell starts in the background ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  a signal is all it sets
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "now.png").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=180)  # its rows are decoded first, on cores that other tests use too
    assert process.returncode == 130
    assert "big-0.partial.png" in err
    assert pixels(tmp_path / "big-0.partial.png").shape == (1024, 1024, 3)
    assert not (tmp_path / "big-0.png").exists()
    assert metadata.read(tmp_path / "big-0.partial.png")["size"] == [1024, 1024]


def test_ctrl_c_names_what_was_finished(bundle, monkeypatch, tmp_path):
    from mgpt_edge.cli import drawing
    from mgpt_edge.runtime.model import load
    from mgpt_edge.runtime.results.events import Picture

    model = load(bundle)

    request = model.request("a cat", size=(32, 64), seed=1, count=2, speculate="off")

    def interrupted():
        for event in model.draw(request):
            yield event
            if isinstance(event, Picture):
                raise KeyboardInterrupt

    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(Interrupted, match=r"a\.png is done; .*b\.partial\.png|a\.png is done$") as error:
        drawing.draw(model, request, interrupted(), paths, quiet=True)
    assert "nothing" not in str(error.value)
    assert (tmp_path / "a.png").exists()


def test_a_part_of_a_picture_says_what_it_kept(bundle, tmp_path):
    from mgpt_edge.cli import drawing
    from mgpt_edge.runtime.model import load

    model = load(bundle)
    whole = model.generate("a cat", size=(32, 64), seed=1)
    request = model.request("a cat", size=(32, 64), seed=2)

    def interrupted():
        events = model.draw(request, keep=whole, keep_rows=[1])
        yield next(events)
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="1 rows that were finished"):
        drawing.draw(model, request, interrupted(), [tmp_path / "a.png"], kept_rows=[1], quiet=True)
    assert metadata.read(tmp_path / "a.partial.png")["kept_rows"] == [1]


def test_disk_full_is_said(mgpt, bundle, monkeypatch):
    from mgpt_edge.runtime.results import metadata

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metadata, "write_atomically", full)
    code, _, err = mgpt("generate", "a cat", "--size", "32x32", "--model", bundle)
    assert code == 2
    assert "No space left on device" in err
