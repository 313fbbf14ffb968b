"""TensorRT for RTX's compiler: an ONNX file in, the bytes of one engine for several GPUs out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mgpt_edge.runtime.errors import IncompatibleEngine, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    Profile = Mapping[str, tuple[int, int, int]]
    """Name of a dimension -> its smallest, usual and largest size."""

DECODE_KERNEL = re.compile(rb"function=\{ name=_gemv_mha_v\d+ ")
"""A call of the single-token attention in a plan: the kernels stand in it as source, once for all GPUs."""


def version() -> str:
    return str(_tensorrt().__version__)


def check_sms(sms: Sequence[int]) -> list[int]:
    """The compute capabilities in order, each once.

    Raises:
        InvalidRequest: one that TensorRT for RTX can't compile for.
        IncompatibleEngine: TensorRT for RTX is not installed.
    """
    known = sorted(int(name[2:]) for name in _tensorrt().ComputeCapability.__members__ if name.startswith("SM"))
    unknown = [sm for sm in sms if sm not in known]
    if unknown or not sms:
        msg = (
            f"TensorRT for RTX {version()} compiles for SM {', '.join(map(str, known))}, "
            f"not for {', '.join(map(str, unknown)) or 'none'}; 86 is Ampere (RTX 30), 89 Ada (RTX 40), "
            "120 Blackwell (RTX 50)"
        )
        raise InvalidRequest(msg)
    return sorted(set(sms))


def compile_graph(
    path: Path,
    sms: Sequence[int],
    profiles: Sequence[Profile],
    *,
    attentions: int,
    progress: Callable[[str, int, int], None],
) -> memoryview:
    """Compiles one graph.

    Args:
        path: of the ONNX file; its data lies beside it.
        sms: as `check_sms` gives them.
        profiles: each has kernels of its own.
        attentions: how many calls of the single-token attention kernel the engine must hold.
        progress: (phase, steps done, steps in all).

    Raises:
        IncompatibleEngine: TensorRT refuses the graph, ignores part of it, or has no single-token attention for it.
    """
    trt = _tensorrt()
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, log, path)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # keeps the names of layers and kernels in the plan
    config.progress_monitor = _monitor(trt, progress)
    config.num_compute_capabilities = len(sms)
    for index, sm in enumerate(sms):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
    for profile in profiles:
        config.add_optimization_profile(_shapes(builder, network, profile))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        msg = f"TensorRT for RTX {version()} can't compile {path}: {log.said()}"
        raise IncompatibleEngine(msg)
    _check_attention(path, plan, attentions)
    return memoryview(plan)


def _parse(trt: Any, network: Any, log: Any, path: Path) -> None:
    """Reads the graph; what the parser warns of, it has left out or changed."""
    parser = trt.OnnxParser(network, log)
    read = parser.parse_from_file(str(path))
    errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    if not read or errors or log.messages:
        msg = f"TensorRT for RTX {version()} does not take all of {path}: {'; '.join(errors) or log.said()}"
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


def _check_attention(path: Path, plan: Any, wanted: int) -> None:
    """Only where there is a GPU can a plan be opened and its layers be listed; but the calls stand in it as text."""
    found = len(DECODE_KERNEL.findall(memoryview(plan)))
    if found < wanted:
        msg = (
            f"TensorRT for RTX {version()} gave {path} {found} single-token attention kernels for {wanted} layers: "
            "each token would be slow; nothing was kept. Version 1.7.1 is known to give one for each"
        )
        raise IncompatibleEngine(msg)


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


def _tensorrt() -> Any:
    try:
        import tensorrt_rtx
    except ImportError as error:
        msg = f"TensorRT for RTX can't be imported ({error}); install it: pip install 'mgpt-edge[rtx]'"
        raise IncompatibleEngine(msg) from error
    return tensorrt_rtx
