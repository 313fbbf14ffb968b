"""The engines of TensorRT, with ONNX Runtime for their plans and this process' memory for the GPU's."""

from __future__ import annotations

import ctypes
import json
import shutil
from dataclasses import replace
from itertools import count

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession

from mgpt_edge.export import plans as compiled
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.cut import cut
from mgpt_edge.runtime.bundle.folder import MANIFEST, Bundle, sha256
from mgpt_edge.runtime.bundle.manifest import FileEntry, Plan
from mgpt_edge.runtime.engines import load_engine
from mgpt_edge.runtime.engines.base import Segment
from mgpt_edge.runtime.engines.cpu import CpuEngine
from mgpt_edge.runtime.engines.gpu import device as gpu
from mgpt_edge.runtime.engines.gpu import kernels as engine_kernels
from mgpt_edge.runtime.engines.gpu import plans
from mgpt_edge.runtime.engines.gpu.plans import part_names
from mgpt_edge.runtime.engines.gpu.tensorrt import TensorRtEngine
from mgpt_edge.runtime.engines.kind import Compiler
from mgpt_edge.runtime.errors import IncompatibleEngine, NumericalError, OutOfMemory
from mgpt_edge.runtime.files import write_atomically
from mgpt_edge.runtime.golden import recompute
from mgpt_edge.runtime.model import Model
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import FakeTensorRT, plan
from tests.reference import load_decoder
from tests.runtime.engines.gpu.drawing import drawn, without_drawer

VERSION = "1.7.1"


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda(sm=89)
    monkeypatch.setattr(gpu, "_runtime", lambda: fake)
    monkeypatch.setattr(Compiler, "load", lambda self: FakeTensorRT(fake, VERSION))
    return fake


@pytest.fixture(scope="module")
def bundle_of(bundle_of, tmp_path_factory):
    """Copies, for plans to be written to."""
    copies = tmp_path_factory.mktemp("copies")

    def copy(kind, precision, engine):
        folder = bundle_of(kind, precision, engine).folder
        if not (copies / folder.name).exists():
            shutil.copytree(folder, copies / folder.name)
        return Bundle.peek(copies / folder.name)  # its plans are written anew by each test

    return copy


@pytest.fixture(params=["rtx", "tensorrt10"])  # tensorrt differs from rtx in its contexts only
def load(request, library, bundle_of):
    """(kind, precision) -> the engine."""
    return lambda kind, precision, parts=1: load_engine(
        built(bundle_of(kind, precision, request.param), parts=parts), 1
    )


def shapes(shape, profile):
    """Smallest and largest."""
    sizes = [profile[size] if isinstance(size, str) else (size,) * 3 for size in shape]
    return [low for low, _, _ in sizes], [high for _, _, high in sizes]


def built(bundle, *, sms=(86, 89), version=VERSION, graphs=compiled.GRAPHS, parts=1):
    """The bundle with plans as `mgpt build` records them, and the profiles that it compiles."""
    files, made = dict(bundle.manifest.files), {}
    if parts > 1:
        names = part_names("decoder", parts)
        for name, part in zip(names, cut(bundle.folder / "decoder.onnx", parts), strict=True):
            onnx.save(part, bundle.folder / f"{name}.onnx")
        graphs = [*names, *(graph for graph in graphs if graph != "decoder")]
    for graph in graphs:
        name = f"{bundle.manifest.engine}.{graph}.sm86-89.plan"
        inputs = InferenceSession(bundle.folder / f"{graph}.onnx").get_inputs()
        profiles = [
            {value.name: shapes(value.shape, profile) for value in inputs}
            for profile in compiled.profiles(bundle.manifest, graph.partition(".")[0])
        ]
        path = bundle.folder / name
        write_atomically(path, plan(bundle.folder / f"{graph}.onnx", profiles))
        files[name] = FileEntry(bytes=path.stat().st_size, sha256=sha256(path))
        made[name] = Plan(graph=graph, sms=list(sms), tensorrt=version, key="")
    manifest = replace(bundle.manifest, files=files, plans=made)
    write_atomically(bundle.folder / MANIFEST, json.dumps(manifest.to_json()).encode())
    return Bundle.open(bundle.folder)


@pytest.mark.parametrize(("kind", "parts"), [("7b", 1), ("7b", 2), ("34b", 1)])
def test_logits_equal_pytorch(kind, parts, load, checkpoints):
    """Rows of different length, passes longer than a plan takes, several logits at once, a row that goes back."""
    checkpoint = Checkpoint.open(checkpoints[kind])
    rng = np.random.default_rng(0)
    tokens = [rng.integers(10, checkpoint.vocabulary.size, count).tolist() for count in (30, 24)]
    engine = load(kind, "fp16", parts)
    engine.widest = 5
    rows = engine.open((30, 24))
    decoder = load_decoder(checkpoint)
    with torch.inference_mode():
        expected = [decoder.lm_head(decoder.hidden(torch.tensor([row]))[0]).numpy() for row in tokens]
    low, high = checkpoint.vocabulary.code_range

    def feed(*parts, head="text"):
        got = rows.forward([Segment(row, tokens[row][a:b], last) for row, a, b, last in parts], head)
        for (row, _, b, last), logits in zip(parts, got, strict=True):
            wanted = expected[row][b - last : b, slice(low, high) if head == "image" else slice(None)]
            np.testing.assert_allclose(logits, wanted, atol=5e-3 * np.abs(expected[row]).max())

    feed((0, 0, 9, 1), (1, 0, 3, 1))
    feed((0, 9, 16, 7))
    rows.rollback(0, 10)
    feed((1, 3, 10, 6), (0, 10, 12, 2), head="image")
    feed((0, 12, 13, 1), (1, 10, 11, 1), head="image")
    feed((1, 11, 24, 13), (0, 13, 30, 8))
    assert [rows.length(row) for row in (0, 1)] == [30, 24]


def test_golden_logits(cuda, bundle_of):
    engine = load_engine(built(bundle_of("7b", "int8", "rtx")), 1)
    assert recompute(engine.bundle, engine) <= 3e-3


def test_a_picture_is_the_one_that_onnxruntime_draws(cuda, bundle_of, monkeypatch):
    model = Model(built(bundle_of("7b", "fp16", "rtx")))
    settings = {"size": (128, 128), "seed": 3, "guidance": 2.0, "top_k": 1}
    drawn = model.generate("a red cube", **settings)
    exact = Model(bundle_of("7b", "fp32", "cpu")).generate("a red cube", **settings)
    assert np.abs(np.asarray(drawn, int) - np.asarray(exact, int)).mean() < 1
    assert model.chat().context <= model.engine.most_tokens


@pytest.mark.parametrize("engine", ["rtx", "tensorrt", "tensorrt10"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pictures_draw_themselves(engine, guidance, library, cuda, bundle_of):
    """The tokens that go through the host otherwise, whatever was drawn before, and one wait a row of codes."""
    bundle = built(bundle_of("7b", "fp16", engine))
    itself, through = Model(bundle), Model(bundle)
    through.engine.open = lambda *given: without_drawer(type(through.engine).open(through.engine, *given))
    for size, seed, columns in (((96, 160), 3, 6), ((128, 128), 4, 8)):
        settings = {"size": size, "seed": seed, "guidance": guidance, "top_k": 20}
        expected, _, _ = drawn(through, cuda, settings)
        tokens, rows, waits = drawn(itself, cuda, settings)
        assert tokens == expected
        assert waits < len(rows) + 10  # some for the prompt, and for the picture of the codes
        # The first code comes with the prompt; an end of a row has a pass of its own.
        assert [row.passes for row in rows] == [columns - 1, *[columns + 1] * (len(rows) - 1)]
    assert (cuda.launches > 0) == (engine != "rtx")


def test_rows_that_are_kept_are_not_drawn(library, cuda, bundle_of):
    bundle = built(bundle_of("7b", "fp16", "rtx"))
    itself, through = Model(bundle), Model(bundle)
    through.engine.open = lambda *given: without_drawer(TensorRtEngine.open(through.engine, *given))
    first = itself.generate("a red cube", size=(128, 128), seed=3)
    again, expected = (model.redraw(first, keep_rows=range(2, 5), seed=4) for model in (itself, through))
    assert np.array_equal(np.asarray(again), np.asarray(expected))
    assert not np.array_equal(np.asarray(again), np.asarray(first))


def test_logits_that_are_not_numbers_say_where(library, cuda, bundle_of, monkeypatch):
    """And the engine stays usable."""
    model = Model(built(bundle_of("7b", "fp16", "rtx")))
    settings = {"size": (128, 128), "seed": 3}
    good = model.generate("a red cube", **settings)
    step, steps = engine_kernels.Kernels.step, count()

    def spoilt(kernels, pictures):
        if next(steps) == 20:
            logits = int(pictures["logits"][0])
            cuda.enqueue(kernels.gpu.stream, lambda: ctypes.memset(logits, 255, 4))
        step(kernels, pictures)

    with monkeypatch.context() as patch:
        patch.setattr(engine_kernels.Kernels, "step", spoilt)
        with pytest.raises(NumericalError, match=r"the logits of the code at index \d+ of the picture hold NaN"):
            model.generate("a red cube", **settings)
    assert np.array_equal(np.asarray(model.generate("a red cube", **settings)), np.asarray(good))


@pytest.mark.parametrize("size", [(64, 96), (128, 128)])
def test_pictures_in_and_out(size, cuda, bundle_of):
    """The trained square has a profile of its own."""
    engine = load_engine(built(bundle_of("7b", "fp16", "rtx")), threads=1)
    onnxruntime = CpuEngine(bundle_of("7b", "fp32", "cpu"), threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    codes = engine.encode_pixels(pixels)
    np.testing.assert_array_equal(codes, onnxruntime.encode_pixels(pixels))
    np.testing.assert_array_equal(engine.decode_pixels(codes), onnxruntime.decode_pixels(codes))


def test_a_prompt_is_copied_from_row_to_row(load):
    rows = load("7b", "fp16").open((12, 9))
    rows.forward([Segment(0, [1, 20, 30, 40])], "text")
    rows.copy_prefix(0, 1, 3)
    one = rows.forward([Segment(1, [50, 60])], "text")[0].copy()
    rows.rollback(0, 3)
    np.testing.assert_array_equal(one, rows.forward([Segment(0, [50, 60])], "text")[0])


def test_single_tokens_become_one_graph_each(cuda, bundle_of):
    """From the second on, and again where the logits have moved."""
    rows = load_engine(built(bundle_of("7b", "fp16", "tensorrt")), 1).open((12, 9))
    feed = lambda: rows.forward([Segment(0, [1]), Segment(1, [2])], "image")  # noqa: E731
    feed()
    assert cuda.launches == 0
    feed()
    assert cuda.launches == 2
    rows.forward([Segment(0, [3, 4, 5], 3)], "image")
    feed()
    assert cuda.launches == 4
    assert cuda.graphs == 2


def test_what_compiles_on_the_machine_is_kept(cuda, bundle_of, tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "cache_folder", lambda: tmp_path)
    engine = load_engine(built(bundle_of("7b", "fp16", "rtx")), threads=1)
    engine.open((8, 8))
    digest = engine.bundle.digest
    del engine
    assert (tmp_path / f"rtx-{digest[:32]}.kernels").read_bytes() == b"kernels"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"graphs": ()}, "has no plan of decoder, a GPU is SM 89; compile its plans again: mgpt build .* --sm 89"),
        ({"sms": (120,)}, "has plans of decoder for SM 120, a GPU is SM 89"),
        ({"version": "1.2"}, "was compiled with TensorRT for RTX 1.2, installed is 1.7.1"),
    ],
)
def test_no_plan_that_fits(made, said, cuda, bundle_of):
    with pytest.raises(IncompatibleEngine, match=said):
        load_engine(built(bundle_of("7b", "fp16", "rtx"), **made), threads=1)


def test_a_part_that_is_missing(cuda, bundle_of):
    bundle = built(bundle_of("7b", "fp16", "rtx"), parts=2)
    manifest = bundle.manifest
    left = {name: plan for name, plan in manifest.plans.items() if plan.graph != "decoder.2of2"}
    with pytest.raises(IncompatibleEngine, match="has only parts of decoder, a GPU is SM 89"):
        load_engine(Bundle(bundle.folder, replace(manifest, plans=left)), threads=1)


def test_a_plan_that_tensorrt_refuses(cuda, bundle_of, monkeypatch):
    bundle = built(bundle_of("7b", "fp16", "rtx"))
    (bundle.folder / "rtx.decoder.sm86-89.plan").write_bytes(b"of another version")
    with pytest.raises(IncompatibleEngine, match=r"TensorRT for RTX 1.7.1 on a GPU refuses .*mgpt build"):
        load_engine(bundle, threads=1)


def test_a_conversation_longer_than_the_cache(cuda, bundle_of):
    engine = load_engine(built(bundle_of("7b", "fp16", "rtx")), threads=1)
    with pytest.raises(OutOfMemory, match=rf"100000 tokens wanted, the plans of .* hold {engine.most_tokens}"):
        engine.open((100000, 5))
    cuda.free = 1000
    with pytest.raises(OutOfMemory, match="0 MiB are free"):
        engine.open((8, 8))


def test_no_driver(bundle_of, monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(cuda, "cudaSetDevice", lambda _: (type(cuda).cudaError_t(2),))
    monkeypatch.setattr(gpu, "_runtime", lambda: cuda)
    with pytest.raises(IncompatibleEngine, match=r"cudaSetDevice gives .*mgpt doctor"):
        load_engine(bundle_of("7b", "fp16", "rtx"), threads=1)
