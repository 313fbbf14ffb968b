"""Compiled engines of TensorRT: which of a bundle's plans is this machine's, opening it, and running it.

Only a GPU runs any of this, and none has yet; the tests put ONNX Runtime and a host's memory in its place.
"""

from __future__ import annotations

import mmap
import weakref
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from mgpt_edge.runtime.bundle import write_atomically
from mgpt_edge.runtime.errors import IncompatibleEngine
from mgpt_edge.runtime.gpu import Gpu

if TYPE_CHECKING:
    from mgpt_edge.runtime.bundle import Bundle
    from mgpt_edge.runtime.gpu import Buffer

PROFILES = 2
"""Of every plan: the first for one shape, which it runs fastest and from one CUDA graph; the second for any."""


class Plans:
    """A bundle's plans for this machine's GPU; each is opened when first used.

    Args:
        bundle: opened, of an engine of TensorRT's.

    Raises:
        IncompatibleEngine: no GPU, no TensorRT, or no plan that both can run.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.gpu = Gpu()
        self.trt = tensorrt_rtx()
        self._engines: dict[str, Any] = {}
        self.engine("decoder")

    def engine(self, graph: str) -> Any:
        """TensorRT's engine of a graph.

        Raises:
            IncompatibleEngine: as above, or TensorRT does not take the plan.
        """
        if graph not in self._engines:
            path = self.bundle.path(self._name(graph))
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
                engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                msg = f"TensorRT for RTX {self.trt.__version__} on {self.gpu.name} refuses {path}; {self._advice}"
                raise IncompatibleEngine(msg)
            self._engines[graph] = engine
        return self._engines[graph]

    def context(self, graph: str, profile: int) -> Context:
        """What runs a graph in one of its profiles."""
        return Context(self, graph, profile)

    @cached_property
    def kernels(self) -> Any:
        """What TensorRT for RTX compiles on the machine itself, kept from one process to the next."""
        cache = self.engine("decoder").create_runtime_config().create_runtime_cache()
        path = Path(platformdirs.user_cache_dir("mgpt-edge")) / f"rtx-{self.bundle.digest[:32]}.kernels"
        if path.is_file():
            cache.deserialize(path.read_bytes())  # refused and left empty where GPU, driver or version are others
        weakref.finalize(self, _store, cache, path)
        return cache

    @cached_property
    def _runtime(self) -> Any:
        return self.trt.Runtime(self.trt.Logger(self.trt.Logger.ERROR))

    @property
    def _advice(self) -> str:
        return f"compile its plans again: mgpt build {self.bundle.folder} --sm {self.gpu.sm}"

    def _name(self, graph: str) -> str:
        """File of the graph's plan for this GPU and this TensorRT."""
        plans = {name: plan for name, plan in self.bundle.manifest.plans.items() if plan.graph == graph}
        fitting = {name: plan for name, plan in plans.items() if self.gpu.sm in plan.sms}
        if not fitting:
            sms = sorted({sm for plan in plans.values() for sm in plan.sms})
            have = f"plans of {graph} for SM {', '.join(map(str, sms))}" if sms else f"no plan of {graph}"
            msg = f"{self.bundle.folder} has {have}, {self.gpu.name} is SM {self.gpu.sm}; {self._advice}"
            raise IncompatibleEngine(msg)
        for name, plan in fitting.items():
            if plan.tensorrt == self.trt.__version__:
                return name
        versions = ", ".join(sorted({plan.tensorrt for plan in fitting.values()}))
        msg = (
            f"{self.bundle.folder} was compiled with TensorRT for RTX {versions}, installed is "
            f"{self.trt.__version__}; {self._advice}"
        )
        raise IncompatibleEngine(msg)


class Context:
    """A graph ready to run in one profile. Memory for what it computes grows to what the shapes need.

    Args:
        plans: whose GPU it runs on.
        graph: of the bundle's.
        profile: below `PROFILES`.
    """

    def __init__(self, plans: Plans, graph: str, profile: int) -> None:
        self.graph, self.gpu = graph, plans.gpu
        engine, trt = plans.engine(graph), plans.trt
        config = engine.create_runtime_config()
        config.set_runtime_cache(plans.kernels)
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if profile == 0:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._workspace: Buffer | None = None
        self._context = engine.create_execution_context(config)
        if self._context is None or not self._context.set_optimization_profile_async(profile, self.gpu.stream):
            msg = f"no memory on {self.gpu.name} to run {graph}; see: mgpt estimate"
            raise IncompatibleEngine(msg)

    def bind(self, addresses: dict[str, int]) -> None:
        """Where inputs and outputs lie on the device, from now on."""
        for name, address in addresses.items():
            self._check(self._context.set_tensor_address(name, address), f"takes no {name}")

    def run(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Enqueues a run with inputs of these shapes; the others' are fixed."""
        for name, shape in shapes.items():
            self._check(self._context.set_input_shape(name, shape), f"takes no {name} of {shape}")
        need = self._context.update_device_memory_size_for_shapes()
        if self._workspace is None or self._workspace.count < need:
            self._workspace = self.gpu.allocate(need)
            self._context.set_device_memory(self._workspace.address, need)
        self._check(self._context.execute_async_v3(self.gpu.stream), "does not run")

    def _check(self, done: bool, what: str) -> None:
        if not done:
            msg = f"the plan of {self.graph} {what}; compile it again: mgpt build"
            raise IncompatibleEngine(msg)


def _store(cache: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, cache.serialize())
    except OSError:
        return  # a read-only home: the next process compiles again


def tensorrt_rtx() -> Any:
    """The installed module of TensorRT for RTX.

    Raises:
        IncompatibleEngine: none is.
    """
    try:
        import tensorrt_rtx as module
    except ImportError as error:
        msg = f"TensorRT for RTX can't be imported ({error}); install it: pip install 'mgpt-edge[rtx]'"
        raise IncompatibleEngine(msg) from error
    return module
