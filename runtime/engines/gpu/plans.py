"""Compiled engines of TensorRT: which of a bundle's plans is this machine's, opening it, and running it.

Only a GPU runs any of this, and none has yet; the tests put ONNX Runtime and a host's memory in its place.
"""

from __future__ import annotations

import mmap
import weakref
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mgpt_edge.runtime.engines.gpu.device import Gpu
from mgpt_edge.runtime.errors import IncompatibleEngine
from mgpt_edge.runtime.files import write_atomically
from mgpt_edge.runtime.machine import cache_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from mgpt_edge.runtime.bundle.folder import Bundle
    from mgpt_edge.runtime.engines.gpu.device import Buffer, Graph
    from mgpt_edge.runtime.engines.kind import Compiler

RESIDUAL = "residual."
"""Begins the names of what goes from one part of a graph to the next."""


def part_names(graph: str, count: int) -> list[str]:
    """What the parts of a graph are called, in order; of one, as the graph."""
    return [graph] if count == 1 else [f"{graph}.{part}of{count}" for part in range(1, count + 1)]


def parts_of(graph: str, names: Collection[str]) -> list[str]:
    """As what a graph stands among plans' names: whole, or in the fewest parts; nothing where a part is missing."""
    found = (part_names(graph, count) for count in range(1, len(names) + 1))
    return next((parts for parts in found if set(parts) <= set(names)), [])


class Plans:
    """A bundle's plans for this machine's GPU; each is opened when first used.

    Args:
        bundle: opened, of an engine of TensorRT's.
        compiler: of its plans.

    Raises:
        IncompatibleEngine: no GPU, no TensorRT, or no plan that both can run.
    """

    def __init__(self, bundle: Bundle, compiler: Compiler) -> None:
        self.bundle = bundle
        self.gpu = Gpu()
        self.title, self.trt = compiler.title, compiler.load()
        self.rtx = compiler.for_rtx
        self.captures = not self.rtx  # TensorRT for RTX makes CUDA graphs itself
        self._engines: dict[str, list[Any]] = {}
        self.engines("decoder")

    def engines(self, graph: str) -> list[Any]:
        """TensorRT's engine of a graph, or of each of its parts in order.

        Raises:
            IncompatibleEngine: as above, or TensorRT does not take a plan.
        """
        if graph not in self._engines:
            self._engines[graph] = [self._open(self.bundle.path(name)) for name in self._names(graph)]
        return self._engines[graph]

    def _open(self, path: Path) -> Any:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            msg = f"{self.title} {self.trt.__version__} on {self.gpu.name} refuses {path}; {self._advice}"
            raise IncompatibleEngine(msg)
        return engine

    def context(self, graph: str, profile: int) -> Context | Chain:
        """What runs a graph in one of its profiles.

        Raises:
            IncompatibleEngine: the device's memory does not do.
        """
        contexts = [self._context(engine, graph, profile) for engine in self.engines(graph)]
        return contexts[0] if len(contexts) == 1 else Chain(contexts)

    def _context(self, engine: Any, graph: str, profile: int) -> Context:
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.rtx:
            config = engine.create_runtime_config()
            config.set_runtime_cache(self.kernels)
            config.set_execution_context_allocation_strategy(strategy)
            if profile == 0:
                config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(strategy)
        if context is None or not context.set_optimization_profile_async(profile, self.gpu.stream):
            msg = f"no memory on {self.gpu.name} to run {graph}; see: mgpt estimate"
            raise IncompatibleEngine(msg)
        return Context(context, self.gpu, graph, *self._tensors(engine), captured=profile == 0 and self.captures)

    def residuals(self, graph: str) -> list[str]:
        """Names of what goes from part to part of a graph."""
        outputs = (self._tensors(engine)[1] for engine in self.engines(graph))
        return [name for names in outputs for name in names if name.startswith(RESIDUAL)]

    def _tensors(self, engine: Any) -> tuple[set[str], set[str]]:
        """Names of what goes into an engine, and of what comes out of it."""
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        inputs = {name for name in names if engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT}
        return inputs, names - inputs

    @cached_property
    def kernels(self) -> Any:
        """What TensorRT for RTX compiles on the machine itself, kept from one process to the next."""
        cache = self.engines("decoder")[0].create_runtime_config().create_runtime_cache()
        folder = cache_folder()
        if folder is None:
            return cache
        path = folder / f"rtx-{self.bundle.digest[:32]}.kernels"
        if path.is_file():
            cache.deserialize(path.read_bytes())  # refused and left empty where GPU, driver or version are others
        weakref.finalize(self, _store, cache, path)
        return cache

    @cached_property
    def _runtime(self) -> Any:
        return self.trt.Runtime(self.trt.Logger(self.trt.Logger.ERROR))

    @property
    def _advice(self) -> str:
        sm = f" --sm {self.gpu.sm}" if self.rtx else ""
        return f"compile its plans again: mgpt build {self.bundle.folder}{sm}"

    def _names(self, graph: str) -> list[str]:
        """Files of the graph's plan, or plans, for this GPU and this TensorRT."""
        every = self.bundle.manifest.plans.items()
        plans = {name: plan for name, plan in every if plan.graph.partition(".")[0] == graph}
        fitting = {name: plan for name, plan in plans.items() if self.gpu.sm in plan.sms}
        current = {name: plan for name, plan in fitting.items() if plan.tensorrt == self.trt.__version__}
        for key in {plan.key: None for plan in current.values()}:  # parts belong together that were made together
            names = {plan.graph: name for name, plan in current.items() if plan.key == key}
            if parts := parts_of(graph, names):
                return [names[part] for part in parts]
        if current:
            have = f"has only parts of {graph}, {self.gpu.name} is SM {self.gpu.sm}"
        elif fitting:
            versions = ", ".join(sorted({plan.tensorrt for plan in fitting.values()}))
            have = f"was compiled with {self.title} {versions}, installed is {self.trt.__version__}"
        else:
            sms = ", ".join(map(str, sorted({sm for plan in plans.values() for sm in plan.sms})))
            have = f"has plans of {graph} for SM {sms}" if plans else f"has no plan of {graph}"
            have += f", {self.gpu.name} is SM {self.gpu.sm}"
        msg = f"{self.bundle.folder} {have}; {self._advice}"
        raise IncompatibleEngine(msg)


class Context:
    """A graph ready to run in one profile. Memory for what it computes grows to what the shapes need.

    Args:
        context: TensorRT's.
        gpu: where it runs.
        graph: of the bundle's.
        inputs: names of what it takes.
        outputs: names of what it leaves.
        captured: whether runs become one CUDA graph, from the second on.
    """

    def __init__(
        self, context: Any, gpu: Gpu, graph: str, inputs: set[str], outputs: set[str], *, captured: bool
    ) -> None:
        self.gpu, self.graph, self.captured = gpu, graph, captured
        self.inputs, self.outputs = inputs, outputs
        self._context = context
        self._workspace: Buffer | None = None
        self._addresses: dict[str, int] = {}
        self._ran = False
        self._recorded: Graph | None = None

    def bind(self, addresses: dict[str, int]) -> None:
        """Where inputs and outputs lie on the device, from now on."""
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                self._check(self._context.set_tensor_address(name, address), f"takes no {name}")
                self._addresses[name], self._recorded = address, None

    def run(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Enqueues a run with inputs of these shapes; the others' are fixed, and of what is captured all are."""
        if self._recorded is None:
            if not (self.captured and self._ran):
                self.enqueue(shapes)
                self._ran = True
                return
            self._recorded = self.gpu.capture(lambda: self.enqueue(shapes))
        self.gpu.launch(self._recorded)

    def enqueue(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """As `run`, and never as a CUDA graph: for what is itself part of one."""
        self._prepare(shapes)
        self._check(self._context.execute_async_v3(self.gpu.stream), "does not run")

    def _prepare(self, shapes: dict[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            self._check(self._context.set_input_shape(name, shape), f"takes no {name} of {shape}")
        need = self._context.update_device_memory_size_for_shapes()
        if self._workspace is None or self._workspace.count < need:
            self._workspace = self.gpu.allocate(need)
            self._context.set_device_memory(self._workspace.address, need)

    def _check(self, done: bool, what: str) -> None:
        if not done:
            msg = f"the plan of {self.graph} {what}; compile it again: mgpt build"
            raise IncompatibleEngine(msg)


class Chain:
    """A graph that was compiled in parts, as a `Context`: each takes of what it is given what is its own.

    Args:
        contexts: of the parts, in order.
    """

    def __init__(self, contexts: Sequence[Context]) -> None:
        self.contexts = contexts

    def bind(self, addresses: dict[str, int]) -> None:
        for context in self.contexts:
            context.bind({name: addresses[name] for name in addresses.keys() & (context.inputs | context.outputs)})

    def run(self, shapes: dict[str, tuple[int, ...]]) -> None:
        for context in self.contexts:
            context.run({name: shapes[name] for name in shapes.keys() & context.inputs})

    def enqueue(self, shapes: dict[str, tuple[int, ...]]) -> None:
        for context in self.contexts:
            context.enqueue({name: shapes[name] for name in shapes.keys() & context.inputs})


def _store(cache: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, cache.serialize())
    except OSError:
        return  # a read-only home: the next process compiles again
