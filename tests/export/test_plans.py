"""Plans are really compiled, for GPUs that are not here; nothing of this runs on one."""

from __future__ import annotations

import shutil
import sys

import onnx
import pytest

from mgpt_edge.cli.build import build
from mgpt_edge.export import compiler, plans
from mgpt_edge.export.bundle import export_bundle
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.quantise.precision import precisions
from mgpt_edge.export.statistics import collect
from mgpt_edge.export.targets import Rtx
from mgpt_edge.runtime.bundle.folder import Bundle, default_bundle
from mgpt_edge.runtime.errors import BundleError, IncompatibleEngine, InvalidRequest, OutOfMemory
from tests.families import write_checkpoint

# Head widths as the family has them: of 16 there is no single-token attention.
WIDE = {"num_heads": 2, "num_kv_heads": 2, "head_dim": 64, "hidden_size": 128}
LAYER = {
    "num_layers": 1,
    "num_heads": 32,
    "num_kv_heads": 32,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 11008,
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rtx")
    write_checkpoint(folder / "checkpoint", WIDE)
    return export_bundle(Checkpoint.open(folder / "checkpoint"), folder / "bundle", precision="fp16").folder


@pytest.fixture
def bundle(exported, tmp_path):
    return Bundle.open(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture
def tensorrt():
    return pytest.importorskip("tensorrt_rtx", reason="pip install 'mgpt-edge[rtx]'")


def test_one_plan_a_graph_for_three_architectures(bundle, tensorrt, monkeypatch):
    steps = []
    built = plans.build_plans(bundle, [120, 86, 89], lambda *step: steps.append(step))
    assert {plan.graph for plan in built.manifest.plans.values()} == set(plans.GRAPHS)
    assert all(plan.sms == [86, 89, 120] for plan in built.manifest.plans.values())
    assert steps[0][0].startswith("decoder: ")
    assert all(done <= total for _, done, total in steps)

    opened = Bundle.open(bundle.folder)
    opened.verify()
    assert opened.manifest == built.manifest
    assert opened.digest == bundle.digest
    name = "rtx.decoder.sm86-89-120.plan"
    layers = bundle.manifest.dimensions.layers
    assert len(Rtx.DECODE_KERNEL.findall((bundle.folder / name).read_bytes())) == layers
    assert opened.manifest.weight_bytes == bundle.manifest.weight_bytes

    # What is there is not compiled again, whatever the order.
    monkeypatch.setattr(compiler, "compile_graph", None)
    assert plans.build_plans(opened, [86, 120, 89]).manifest == opened.manifest


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
    """One layer of the 7B shape, and statistics of it."""
    folder = tmp_path_factory.mktemp("layer")
    write_checkpoint(folder / "checkpoint", LAYER, vq=False)
    checkpoint = Checkpoint.open(folder / "checkpoint")
    return checkpoint, collect(checkpoint, [range(10, 60)], folder / "statistics")


@pytest.fixture(scope="module")
def layer_in_fp16(layer, tmp_path_factory):
    pytest.importorskip("tensorrt_rtx", reason="pip install 'mgpt-edge[rtx]'")
    return compiled(layer, "fp16", tmp_path_factory.mktemp("fp16"))


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    checkpoint = Checkpoint.open(default_bundle().parent)
    return checkpoint, collect(checkpoint, [range(10, 60)], tmp_path_factory.mktemp("mini") / "statistics")


def compiled(given, precision, folder):
    """The decoder's bytes before and after, for all of RTX that multiplies in the precision."""
    checkpoint, statistics = given
    bundle = export_bundle(checkpoint, folder / precision, precision=precision, engine="rtx", statistics=statistics)
    sms = [sm for sm in (86, 89, 120) if sm >= precisions()[precision].least_sm]
    built = plans.build_plans(bundle, sms)
    (name,) = (name for name, plan in built.manifest.plans.items() if plan.graph == "decoder")
    return bundle.manifest.files["decoder.data"].bytes, built.manifest.files[name].bytes


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int4", "w8a8", "fp8", "nvfp4"])
def test_weights_of_few_bits_stay_so_in_the_plan(precision, layer, layer_in_fp16, tmp_path):
    weights, plan = layer_in_fp16
    fewer, smaller = compiled(layer, precision, tmp_path)
    assert plan - smaller > 0.7 * (weights - fewer)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4", "w8a8", "fp8", "nvfp4"])
def test_mini_is_compiled_in_every_precision(precision, mini, tensorrt, tmp_path):
    """What the parser warns of, and an attention that is not for one token, fail the build."""
    weights, plan = compiled(mini, precision, tmp_path)
    assert plan > 0.7 * weights


def test_floats_of_few_bits_need_statistics_and_newer_gpus(tensorrt, tmp_path):
    write_checkpoint(tmp_path / "checkpoint", WIDE, vq=False)
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    with pytest.raises(InvalidRequest, match="mgpt calibrate"):
        export_bundle(checkpoint, tmp_path / "fp8", precision="fp8")
    statistics = collect(checkpoint, [range(10, 60)], tmp_path / "statistics")
    bundle = export_bundle(checkpoint, tmp_path / "fp8", precision="fp8", statistics=statistics)
    with pytest.raises(InvalidRequest, match=r"from SM 89 on, not SM 86; for those export with --precision int8"):
        plans.build_plans(bundle, [86, 89])


def test_names_of_layers_are_kept(bundle, tensorrt):
    plan = plans.build_plans(bundle, [89]).path("rtx.decoder.sm89.plan").read_bytes()
    assert b"layer.1.attention.TensorScatter" in plan
    assert b"model.layers.0.mlp.down_proj.weight.MatMul" in plan


def test_an_ignored_input_is_an_error(tensorrt, tmp_path):
    """ONNX's own attention is parsed without its lengths, and the parser says True."""
    shapes = {"q": [1, 2, 1, 64], "k": [1, 2, 32, 64], "v": [1, 2, 32, 64]}
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, shape) for name, shape in shapes.items()
    ]
    inputs.append(onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT64, [1]))
    node = onnx.helper.make_node("Attention", ["q", "k", "v", "", "", "", "lengths"], ["y"], is_causal=1)
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, shapes["q"])
    graph = onnx.helper.make_graph([node], "attention", inputs, [output])
    path = tmp_path / "attention.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)]), path)
    with pytest.raises(IncompatibleEngine, match="does not take all of"):
        compiler.compile_graph(Rtx("rtx", [89]), path, [{}], attentions=0, progress=lambda *_: None)


def test_a_slow_attention_is_an_error(bundle, tensorrt, monkeypatch):
    """A profile that takes wider passes too has no kernel for one token."""
    monkeypatch.setattr(plans, "profiles", lambda *_: ({"rows": (2, 2, 2), "width": (1, 16, 512)},))
    with pytest.raises(IncompatibleEngine, match="0 single-token attention kernels for 2 layers"):
        plans.build_plans(bundle, [89])
    assert not list(bundle.folder.glob("*.plan"))


def test_unknown_architectures_name_the_known(bundle, tensorrt):
    with pytest.raises(InvalidRequest, match=r"compiles for SM 75, 80, 86, 89, 120.*, not for 87"):
        plans.build_plans(bundle, [86, 87])


def test_the_command_compiles_and_says_what_is_there(bundle, tensorrt, capsys):
    build(bundle.folder, "89")
    assert "compiling takes about" in capsys.readouterr().out
    build(bundle.folder, "89")
    assert capsys.readouterr().out.count("MB, there already") == len(plans.GRAPHS)
    with pytest.raises(InvalidRequest, match="expected compute capabilities without the point"):
        build(bundle.folder, "8.9")


def test_a_damaged_graph_is_an_error(bundle, tensorrt):
    path = bundle.path("decoder.data")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"decoder\.data is damaged"):
        plans.build_plans(bundle, [89])
    assert not list(bundle.folder.glob("*.plan"))


def test_too_little_memory_is_said_first(bundle, tensorrt, monkeypatch):
    monkeypatch.setattr(plans.machine, "available_bytes", lambda: 100 << 20)
    with pytest.raises(OutOfMemory, match="at least, 100 MiB are free; compile it on a machine with more memory"):
        plans.build_plans(bundle, [89])


def test_a_decoder_that_memory_does_not_hold_is_cut(bundle, tensorrt, monkeypatch, capsys):
    """A machine with more memory keeps the halves."""
    monkeypatch.setattr(plans, "FIXED_BYTES", 0)
    monkeypatch.setattr(
        plans, "GRAPHS", ("decoder", "head_image", "head_text")
    )  # of so small a model the VQ's are larger
    files = bundle.manifest.files
    free = 2 * (files["decoder.onnx"].bytes + files["decoder.data"].bytes)
    with monkeypatch.context() as small:
        small.setattr(plans.machine, "available_bytes", lambda: free)
        build(bundle.folder, "89")
    assert "rtx.decoder.2of2.sm89.plan" in capsys.readouterr().out
    made = Bundle.open(bundle.folder).manifest.plans
    assert [plan.graph for plan in made.values()] == ["decoder.1of2", "decoder.2of2", *plans.GRAPHS[1:]]
    for half in ("1of2", "2of2"):
        assert len(Rtx.DECODE_KERNEL.findall((bundle.folder / f"rtx.decoder.{half}.sm89.plan").read_bytes())) == 1
    assert not list(bundle.folder.glob("decoder.?of?.onnx"))
    build(bundle.folder, "89")
    assert Bundle.open(bundle.folder).manifest.plans == made


def test_a_bundle_for_another_engine_has_no_graphs():
    with pytest.raises(BundleError, match="--engine rtx --precision int4"):
        plans.build_plans(Bundle.peek(default_bundle()), [89])


def test_without_tensorrt_the_extra_is_named(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(IncompatibleEngine, match=r"pip install 'mgpt-edge\[rtx\]'"):
        plans.build_plans(bundle, [89])
