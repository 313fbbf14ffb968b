"""TensorRT at run time: its plans name ONNX files, which ONNX Runtime runs on the stream's turn."""

from __future__ import annotations

import ctypes
import json
import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from tests.fake_cuda import STREAM

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fake_cuda import FakeCuda

TYPES = {"float": np.float32, "float16": np.float16, "int32": np.int32, "uint8": np.uint8, "int64": np.int64}


def plan(path: Path, profiles: list[dict[str, Any]]) -> bytes:
    """What stands for a compiled graph; of each profile the smallest and the largest shape of each input."""
    return json.dumps({"path": str(path), "profiles": profiles}).encode()


class FakeTensorRT:
    """Stands for the modules `tensorrt_rtx` and `tensorrt`."""

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="ours")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    Logger = SimpleNamespace(ERROR=1)
    TensorIOMode = SimpleNamespace(INPUT="input")

    def __init__(self, cuda: FakeCuda, version: str) -> None:
        self.cuda, self.__version__ = cuda, version
        self.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda *_: None})

    def Runtime(self, _: object) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._open)

    def _open(self, data: Any) -> Engine | None:
        try:
            said = json.loads(bytes(data))
        except ValueError:
            return None
        return Engine(self.cuda, **said)


class Engine:
    def __init__(self, cuda: FakeCuda, path: str, profiles: list[dict[str, Any]]) -> None:
        options = ort.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.cuda, self.profiles = cuda, profiles
        self.names = [value.name for side in (self.session.get_inputs(), self.session.get_outputs()) for value in side]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if any(value.name == name for value in self.session.get_inputs()) else "output"

    def get_tensor_shape(self, name: str) -> list[Any]:
        return next(value.shape for value in self.session.get_inputs() if value.name == name)

    def create_runtime_config(self) -> Any:
        cache = SimpleNamespace(deserialize=lambda _: False, serialize=lambda: b"kernels")
        return SimpleNamespace(
            create_runtime_cache=lambda: cache,
            set_runtime_cache=lambda _: True,
            set_execution_context_allocation_strategy=lambda strategy: strategy,
        )

    def create_execution_context(self, config: Any) -> Execution:
        """From a configuration, as TensorRT for RTX has it, or from a strategy alone."""
        return Execution(self, config if isinstance(config, str) else getattr(config, "cuda_graph_strategy", None))


class Execution:
    """Refuses, as TensorRT does, what has no address or lies outside the profile."""

    def __init__(self, engine: Engine, strategy: str | None) -> None:
        self.engine, self.strategy = engine, strategy
        self.memory = 0, 0
        self.inputs = {value.name: value for value in engine.session.get_inputs()}
        self.outputs = {value.name: value for value in engine.session.get_outputs()}
        self.addresses: dict[str, int] = {}
        self.shapes = {name: tuple(value.shape) for name, value in self.inputs.items()}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == STREAM
        assert self.strategy == "ours" or (profile == 0) == (self.strategy == "whole")
        self.profile = self.engine.profiles[profile]
        for name, (low, high) in self.profile.items():
            if low == high:
                self.shapes[name] = tuple(low)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.inputs or name in self.outputs

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, high = self.profile[name]
        self.shapes[name] = tuple(shape)
        return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    def update_device_memory_size_for_shapes(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def set_device_memory(self, address: int, count: int) -> None:
        self.memory = address, count

    def execute_async_v3(self, stream: int) -> bool:
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        if any(isinstance(size, str) for shape in shapes.values() for size in shape):
            return False
        if self.memory[1] < self.update_device_memory_size_for_shapes():
            return False
        if set(addresses) != set(self.inputs) | set(self.outputs):
            return False
        self.engine.cuda.enqueue(stream, lambda: self._run(shapes, addresses))
        return True

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        feed = {}
        for name, value in self.inputs.items():
            kind = np.dtype(TYPES[value.type[len("tensor(") : -1]])
            raw = ctypes.string_at(addresses[name], math.prod(shapes[name]) * kind.itemsize)
            feed[name] = np.frombuffer(raw, kind).reshape(shapes[name])
        for name, result in zip(self.outputs, self.engine.session.run(None, feed), strict=True):
            ctypes.memmove(addresses[name], np.ascontiguousarray(result).ctypes.data, result.nbytes)
