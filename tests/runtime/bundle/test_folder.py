"""A damaged, foreign or hostile bundle is refused before an engine sees it."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt_edge.runtime.bundle.folder import Bundle
from mgpt_edge.runtime.bundle.manifest import Manifest
from mgpt_edge.runtime.errors import BundleError
from mgpt_edge.runtime.files import write_atomically


@pytest.fixture
def bundle(bundle_of, tmp_path):
    """A copy that a test may damage."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_of("7b", "int8").folder, folder)
    return folder


def change(folder, edit):
    data = json.loads((folder / "manifest.json").read_text())
    edit(data)
    (folder / "manifest.json").write_text(json.dumps(data))


def test_opens_and_verifies(bundle):
    Bundle.open(bundle).verify()


def test_manifest_round_trip(bundle):
    manifest = Bundle.peek(bundle).manifest
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_schema_1_knew_one_task(bundle):
    def make_old(data):
        data.update(schema=1)
        del data["tasks"]

    change(bundle, make_old)
    manifest = Bundle.open(bundle).manifest
    assert manifest.tasks == {"text-to-image": manifest.defaults}


@pytest.mark.parametrize(("precision", "half"), [("int4", True), ("int8", False)])
def test_schema_3_knew_neither_arithmetic_nor_half_vq(bundle, precision, half):
    def make_old(data):
        data.update(schema=3, precision=precision)
        del data["arithmetic"], data["half_vq"]

    change(bundle, make_old)
    manifest = Bundle.open(bundle).manifest
    assert (manifest.arithmetic, manifest.half_vq) == (1, half)
    kept = json.loads((bundle / "manifest.json").read_text())
    assert json.loads(json.dumps(manifest.to_json())) == kept  # so it keeps its name


def test_no_bundle_names_the_command(tmp_path):
    with pytest.raises(BundleError, match="mgpt export"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="mgpt export"):
        Bundle.open(tmp_path / "missing")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(schema=5), "schema 5, this mgpt-edge reads 1 to 4"),
        (lambda d: d.update(schema=True), "schema True"),
        (lambda d: d.update(presicion="int8"), "did you mean 'precision'"),
        (lambda d: d.pop("precision"), "precision"),
        (lambda d: d["defaults"].update(guidance="4"), "guidance must be float"),
        (lambda d: d["defaults"].update(guidance=-1.0), "finite number"),
        (lambda d: d["defaults"].update(top_k=0), "whole numbers"),
        (lambda d: d["dimensions"].update(heads=3), "contradict"),
        (lambda d: d["vocabulary"].update(codes=10**6), "reach id"),
        (lambda d: d["files"].update({"../x": {"bytes": 1, "sha256": ""}}), "outside the bundle"),
        (lambda d: d.update(files=[]), "files must be an object"),
        (lambda d: d["pictures"].update(sizes=[[1]]), "pairs"),
        (lambda d: d["tasks"]["depth"].update(top_k=0), "whole numbers"),
        (lambda d: d["tasks"].update(depth={}), "depth"),
    ],
)
def test_manifest_errors(bundle, edit, message):
    change(bundle, edit)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", "[" * 100_000, '{"schema": 1}'])
def test_manifest_that_is_no_manifest(bundle, text):
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError):
        Bundle.open(bundle)


def test_truncated_file(bundle):
    path = bundle / "decoder.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"decoder\.safetensors: expected \d+ bytes, got"):
        Bundle.open(bundle)


def test_missing_file(bundle):
    (bundle / "vq_decoder.onnx").unlink()
    with pytest.raises(BundleError, match="no such file"):
        Bundle.open(bundle)


def test_one_wrong_bit(bundle):
    path = bundle / "decoder.safetensors"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"decoder\.safetensors is damaged: SHA-256"):
        Bundle.open(bundle)


def test_a_remembered_hash_does_not_hide_a_change_from_verify(bundle):
    opened = Bundle.open(bundle)
    path = bundle / "decoder.safetensors"
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    import os

    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    Bundle.open(bundle)  # size and time are as remembered
    with pytest.raises(BundleError, match="damaged"):
        opened.verify()


def test_read_only_cache_is_no_obstacle(bundle, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    Bundle.open(bundle)


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda x: st.lists(x) | st.dictionaries(st.text(max_size=8), x),
        max_leaves=8,
    ),
    st.data(),
)
def test_any_json_value_anywhere_is_a_bundle_error_or_fine(bundle_of, value, data):
    manifest = bundle_of("7b", "int8").manifest.to_json()
    where = data.draw(st.sampled_from(["", "vocabulary", "dimensions", "pictures", "defaults", "files", "tasks"]))
    target = manifest[where] if where else manifest
    key = data.draw(st.sampled_from(sorted(target)))
    target[key] = value
    with contextlib.suppress(BundleError):
        Manifest.from_json(manifest)


def test_write_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    from pathlib import Path

    def fail(*_):
        msg = "disk full"
        raise OSError(msg)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
