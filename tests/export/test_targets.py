"""Bundles for TensorRT of a Jetson or a data centre, compiled by a module that stands for it: it was never at hand."""

from __future__ import annotations

import json
import shutil
import sys
from enum import IntEnum
from types import SimpleNamespace

import onnx
import pytest

from mgpt_edge.cli.build import build
from mgpt_edge.export import plans, targets
from mgpt_edge.export.bundle import export_bundle
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.statistics import collect
from mgpt_edge.runtime.bundle.folder import Bundle
from mgpt_edge.runtime.engines import engine_kind
from mgpt_edge.runtime.errors import IncompatibleEngine, InvalidRequest, OutOfMemory
from tests.families import write_checkpoint

LAYERS = 2


class Flag(IntEnum):
    STRONGLY_TYPED = 1


class Parser:
    num_errors = 0

    def __init__(self, network, log):
        self.network, self.log = network, log

    def parse_from_file(self, path):
        self.network.values = onnx.load(path, load_external_data=False).graph.input
        self.network.num_inputs = len(self.network.values)
        for message in TensorRT.said_of_a_graph:
            self.log.log(TensorRT.ILogger.WARNING, message)
        return True


class Input:
    def __init__(self, value):
        self.name, self.sizes = value.name, value.type.tensor_type.shape.dim
        self.shape = [-1 if size.HasField("dim_param") else size.dim_value for size in self.sizes]

    def get_dimension_name(self, axis):
        return self.sizes[axis].dim_param


class Network:
    def get_input(self, index):
        return Input(self.values[index])


class Builder:
    def __init__(self, log):
        log.log(TensorRT.ILogger.WARNING, "CUDA lazy loading is not enabled.")

    def create_network(self, flags):
        assert flags == 1 << Flag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self):
        profiles = []
        return SimpleNamespace(profiles=profiles, add_optimization_profile=profiles.append)

    def create_optimization_profile(self):
        shapes = {}
        return SimpleNamespace(shapes=shapes, set_shape=lambda name, *sizes: shapes.__setitem__(name, sizes))

    def build_serialized_network(self, network, config):
        config.progress_monitor.phase_start("Building", None, 1)
        config.progress_monitor.step_complete("Building", 0)
        config.progress_monitor.phase_finish("Building")
        return json.dumps([profile.shapes for profile in config.profiles]).encode()


class TensorRT:
    """Stands for the module `tensorrt`."""

    Builder, OnnxParser, NetworkDefinitionCreationFlag = Builder, Parser, Flag
    ILogger = type("ILogger", (), {"WARNING": 2})
    IProgressMonitor = type("IProgressMonitor", (), {})
    ProfilingVerbosity = SimpleNamespace(DETAILED=2)
    said_of_a_graph = ()

    def __init__(self, version):
        self.__version__ = version


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint.open(write_checkpoint(tmp_path_factory.mktemp("targets"), {"num_layers": LAYERS}))


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {
        engine: export_bundle(checkpoint, folder / engine, precision="int8", engine=engine).folder
        for engine in ("tensorrt", "tensorrt10")
    }


@pytest.fixture
def bundle(exported, tmp_path):
    return lambda engine: Bundle.open(shutil.copytree(exported[engine], tmp_path / engine))


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(targets, "Gpu", lambda: SimpleNamespace(sm=87))
    return lambda version: monkeypatch.setitem(sys.modules, "tensorrt", TensorRT(version))


@pytest.mark.parametrize(
    ("version", "engine"), [("10.3.0.30", "tensorrt10"), ("10.15.1", "tensorrt10"), ("11.0.0", "tensorrt")]
)
def test_a_bundle_is_compiled_for_the_gpu_of_the_machine(version, engine, bundle, installed):
    installed(version)
    built = plans.build_plans(bundle(engine), [])
    names = {f"{engine}.{graph}.sm87.plan" for graph in plans.GRAPHS}
    assert set(built.manifest.plans) == names
    assert {(tuple(plan.sms), plan.tensorrt) for plan in built.manifest.plans.values()} == {((87,), version)}
    alone, any_width = json.loads(built.path(f"{engine}.decoder.sm87.plan").read_bytes())
    assert alone["tokens"] == [[2, 1]] * 3
    assert any_width["tokens"] == [[2, 2], [2, 16], [2, engine_kind(engine).compiler.widest]]
    assert alone["past.0.key"][0][0] == 2
    Bundle.open(built.folder).verify()


@pytest.mark.parametrize(
    ("version", "engine", "said"),
    [
        ("10.2.0", "tensorrt10", "too old for any export; JetPack 6 has 10.3"),
        ("10.3.0.30", "tensorrt", "mgpt export CHECKPOINT --engine tensorrt10 -o"),
        ("10.16.2", "tensorrt", "mgpt export CHECKPOINT --engine tensorrt10 -o"),
        ("11.0.0.114", "tensorrt10", "mgpt export CHECKPOINT --engine tensorrt -o"),
    ],
)
def test_a_version_reads_one_engine_and_names_its_export(version, engine, said, bundle, installed):
    installed(version)
    with pytest.raises(IncompatibleEngine, match=said):
        plans.build_plans(bundle(engine), [])


def test_other_gpus_can_not_be_asked_for(bundle, installed, capsys):
    installed("10.3.0.30")
    opened = bundle("tensorrt10")
    with pytest.raises(InvalidRequest, match="GPU of this machine: leave --sm 87 out"):
        build(opened.folder, "87")
    capsys.readouterr()
    build(opened.folder)
    assert "tensorrt10.decoder.sm87.plan" in capsys.readouterr().out


def test_what_the_parser_warns_of_is_an_error(bundle, installed, monkeypatch):
    installed("10.3.0.30")
    monkeypatch.setattr(TensorRT, "said_of_a_graph", ("Unused Input: lengths",))
    with pytest.raises(IncompatibleEngine, match=r"TensorRT 10\.3\.0\.30 does not take all of .*Unused Input"):
        plans.build_plans(bundle("tensorrt10"), [])


def test_without_it_or_short_of_memory_there_is_advice(bundle, installed, monkeypatch):
    opened = bundle("tensorrt10")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(IncompatibleEngine, match="JetPack brings it"):
        plans.build_plans(opened, [])
    installed("10.3.0.30")
    monkeypatch.setattr(plans.machine, "available_bytes", lambda: 100 << 20)
    with pytest.raises(OutOfMemory, match="end what else runs on this machine"):
        plans.build_plans(opened, [])


def test_no_floats_of_four_bits_before_11(checkpoint, tmp_path):
    with pytest.raises(InvalidRequest, match="tensorrt10 has: fp16, int8, int4, w8a8, fp8"):
        export_bundle(checkpoint, tmp_path / "bundle", precision="nvfp4", engine="tensorrt10")


def test_w8a8_takes_its_scales_from_statistics(checkpoint, tmp_path):
    with pytest.raises(InvalidRequest, match="mgpt calibrate"):
        export_bundle(checkpoint, tmp_path / "bundle", precision="w8a8", engine="tensorrt10")
    statistics = collect(checkpoint, [range(10, 60)], tmp_path / "statistics")
    bundle = export_bundle(
        checkpoint, tmp_path / "bundle", precision="w8a8", engine="tensorrt10", statistics=statistics
    )
    bundle.verify()
    assert (bundle.manifest.engine, bundle.manifest.width_invariant) == ("tensorrt10", False)
