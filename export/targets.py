"""The two TensorRTs that compile a bundle: what differs between them stands here, and here only."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from mgpt_edge.runtime.engines import compiler_of, engine_kinds
from mgpt_edge.runtime.engines.gpu.device import Gpu
from mgpt_edge.runtime.errors import IncompatibleEngine, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Target(ABC):
    """A TensorRT, and the GPUs that it shall compile for.

    Attributes:
        title: of the product.
        trt: its module.
        sms: compute capabilities without the point, in order, each once.
    """

    short_of_memory: str

    def __init__(self, engine: str, sms: Sequence[int]) -> None:
        compiler = compiler_of(engine)
        self.title, self.trt = compiler.title, compiler.load()
        self.sms = self._choose(engine, sms)

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @abstractmethod
    def _choose(self, engine: str, sms: Sequence[int]) -> list[int]:
        """The GPUs for `sms`, if this version compiles bundles of `engine` for them."""

    @abstractmethod
    def configure(self, config: Any) -> None:
        """Tells a builder's configuration of the GPUs."""

    @abstractmethod
    def check_plan(self, path: Path, plan: Any, attentions: int) -> None:
        """Refuses a plan of the graph at `path` that lacks `attentions` fast kernels."""


class Rtx(Target):
    """TensorRT for RTX: compiles without a GPU, one plan for several architectures."""

    short_of_memory = "compile it on a machine with more memory, no GPU is needed, and copy the bundle"

    DECODE_KERNEL = re.compile(rb"function=\{ name=_gemv_mha_v\d+ ")
    """A call of the single-token attention in a plan: the kernels stand in it as source, once for all GPUs."""

    def _choose(self, engine: str, sms: Sequence[int]) -> list[int]:  # noqa: ARG002
        known = sorted(int(name[2:]) for name in self.trt.ComputeCapability.__members__ if name.startswith("SM"))
        unknown = [sm for sm in sms if sm not in known]
        if unknown or not sms:
            msg = (
                f"TensorRT for RTX {self.version} compiles for SM {', '.join(map(str, known))}, "
                f"not for {', '.join(map(str, unknown)) or 'none'}: say which, as in --sm 86,89,120; 86 is Ampere "
                "(RTX 30), 89 Ada (RTX 40), 120 Blackwell (RTX 50)"
            )
            raise InvalidRequest(msg)
        return sorted(set(sms))

    def configure(self, config: Any) -> None:
        config.num_compute_capabilities = len(self.sms)
        for index, sm in enumerate(self.sms):
            config.set_compute_capability(getattr(self.trt.ComputeCapability, f"SM{sm}"), index)

    def check_plan(self, path: Path, plan: Any, attentions: int) -> None:
        """Only where there is a GPU can a plan be opened and its layers listed; but the calls stand in it as text."""
        found = len(self.DECODE_KERNEL.findall(memoryview(plan)))
        if found < attentions:
            msg = (
                f"TensorRT for RTX {self.version} gave {path} {found} single-token attention kernels for {attentions} "
                "layers: each token would be slow; nothing was kept. Version 1.7.1 is known to give one for each"
            )
            raise IncompatibleEngine(msg)


class Machine(Target):
    """TensorRT of a Jetson or a data centre: compiles for the GPU of the machine that it runs on.

    It never ran: the tests put a module of their own in its place.
    """

    short_of_memory = "end what else runs on this machine, or export with --precision int4"

    def _choose(self, engine: str, sms: Sequence[int]) -> list[int]:
        if sms:
            msg = f"TensorRT compiles for the GPU of this machine: leave --sm {','.join(map(str, sms))} out"
            raise InvalidRequest(msg)
        found = tuple(int(part) for part in self.version.split(".")[:2])
        mine = [kind for kind in engine_kinds().values() if kind.compiler and not kind.compiler.for_rtx]
        since = {kind.compiler.since: kind.name for kind in mine if kind.compiler}
        fitting = next((since[least] for least in sorted(since, reverse=True) if found >= least), None)
        if fitting is None:
            msg = f"TensorRT {self.version} is too old for any export; JetPack 6 has 10.3, and later ones do too"
            raise IncompatibleEngine(msg)
        if fitting != engine:
            msg = (
                f"TensorRT {self.version} does not read bundles of engine {engine!r}; for it: "
                f"mgpt export CHECKPOINT --engine {fitting} -o BUNDLE"
            )
            raise IncompatibleEngine(msg)
        return [Gpu().sm]

    def configure(self, config: Any) -> None:
        """There is one GPU, and it is known."""

    def check_plan(self, path: Path, plan: Any, attentions: int) -> None:
        """What its kernels are called is not known here."""


def target_of(engine: str) -> type[Target]:
    """Returns what compiles an engine's bundles.

    Raises:
        IncompatibleEngine: nothing does.
    """
    return Rtx if compiler_of(engine).for_rtx else Machine
