"""Export leaves a whole bundle or nothing."""

from __future__ import annotations

import pytest

from mgpt_edge.export.bundle import export_bundle
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.runtime.errors import BundleError, InvalidRequest


def test_interrupted_leaves_nothing(checkpoints, tmp_path):
    def stop(what: str, done: int, total: int) -> None:
        if done > total // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(Checkpoint.open(checkpoints["7b"]), tmp_path / "b", precision="fp32", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_folder_that_holds_something(checkpoints, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="exists already"):
        export_bundle(Checkpoint.open(checkpoints["7b"]), tmp_path / "b")


def test_refuses_a_place_that_is_no_folder(checkpoints, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="can't write"):
        export_bundle(Checkpoint.open(checkpoints["7b"]), tmp_path / "file" / "b")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"precision": "int3"}, "engine cpu has: fp32, int8, int4"), ({"engine": "npu"}, "exports for: native, cpu")],
)
def test_unknown_choices_name_the_known(options, message, checkpoints, tmp_path):
    with pytest.raises(InvalidRequest, match=message):
        export_bundle(Checkpoint.open(checkpoints["7b"]), tmp_path / "b", **options)


def test_forecast_predicts_the_files(checkpoints, bundle_of):
    from mgpt_edge.export.forecast import forecasts

    for precision, manifest in forecasts(Checkpoint.open(checkpoints["34b"])).items():
        written = bundle_of("34b", precision).manifest
        decoder = next(name for name in manifest.files if name.startswith("decoder."))
        for name in (decoder, "vq_decoder.data"):
            # Small weights go into the .onnx file, and each in the data file starts on a page.
            assert manifest.files[name].bytes == pytest.approx(written.files[name].bytes, rel=0.2, abs=200_000)
