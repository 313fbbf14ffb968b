"""TensorRT's compiler: an ONNX file in, the bytes of an engine out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mgpt_edge.runtime.errors import IncompatibleEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mgpt_edge.export.targets import Target

    Profile = Mapping[str, tuple[int, int, int]]
    """Name of a dimension -> its smallest, usual and largest size."""


def compile_graph(
    target: Target,
    path: Path,
    profiles: Sequence[Profile],
    *,
    attentions: int,
    progress: Callable[[str, int, int], None],
) -> memoryview:
    """Compiles one graph.

    Args:
        target: the TensorRT, and the GPUs.
        path: of the ONNX file; its data lies beside it.
        profiles: each has kernels of its own.
        attentions: how many calls of the single-token attention kernel the engine must hold, where that can be seen.
        progress: (phase, steps done, steps in all).

    Raises:
        IncompatibleEngine: TensorRT refuses the graph, ignores part of it, or has no single-token attention for it.
    """
    trt = target.trt
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(target, network, log, path)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # keeps the names of layers and kernels in the plan
    config.progress_monitor = _monitor(trt, progress)
    target.configure(config)
    for profile in profiles:
        config.add_optimization_profile(_shapes(builder, network, profile))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        msg = f"{target.title} {target.version} can't compile {path}: {log.said()}"
        raise IncompatibleEngine(msg)
    target.check_plan(path, plan, attentions)
    return memoryview(plan)


def _parse(target: Target, network: Any, log: Any, path: Path) -> None:
    """Reads the graph; what the parser warns of, it has left out or changed."""
    parser = target.trt.OnnxParser(network, log)
    log.messages.clear()  # of its start: nothing about the graph
    read = parser.parse_from_file(str(path))
    errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    if not read or errors or log.messages:
        msg = f"{target.title} {target.version} does not take all of {path}: {'; '.join(errors) or log.said()}"
        raise IncompatibleEngine(msg)


def _shapes(builder: Any, network: Any, profile: Profile) -> Any:
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        value = network.get_input(index)
        sizes = [
            profile[value.get_dimension_name(axis)] if size < 0 else (size,) * 3
            for axis, size in enumerate(value.shape)
        ]
        shapes.set_shape(value.name, *zip(*sizes, strict=True))
    return shapes


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps what is wrong, and what the parser says at a lower level of inputs that it ignores."""

        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING or "Unused Input" in message:
                self.messages.append(message)

        def said(self) -> str:
            return "; ".join(self.messages[-3:]) or "it does not say why"

    return Log()


def _monitor(trt: Any, progress: Callable[[str, int, int], None]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Phases nest; each reports its own steps."""

        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            progress(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            progress(phase, step + 1, self.steps[phase])
            return True

        def phase_finish(self, phase: str) -> None:
            progress(phase, self.steps[phase], self.steps.pop(phase))

    return Monitor()
