"""What one guided image token costs: our engines, what others use, and the least that memory allows.

mgpt bench peers [--shape 375m] [--context 600] [--rounds 15] [--threads N] [--json]

Random weights, two rows behind the same context, one new token each, the same threads; all sides take turns in one
process, round by round. Medians, and the median of each round's ratio to the native engine. Where an engine of ours
takes several streams, a pass of four pictures' rows is timed too. A peer that is not installed, or fails, is named
with the reason, and the others go on. llama.cpp and onnxruntime-genai have no Chameleon: they run a plain LLaMA of the
same dimensions, with the image codes as its whole vocabulary.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from mgpt_edge.bench.measuring.sides import Case, Side, measure, ours
from mgpt_edge.bench.models.random_checkpoint import shape_named, write_checkpoint
from mgpt_edge.bench.models.roofline import Decode, Precision
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.runtime import machine


@dataclass(frozen=True, slots=True)
class Peer:
    """A side that others wrote.

    Attributes:
        module: of this room, whose `step` sets it up.
        setting: which of the module's sides it is.
        precision: of its weights and cache.
        description: how it is set up.
        passes: in a step.
    """

    module: str
    setting: str
    precision: Precision
    description: str
    passes: int = 1


_FAMILY = "the family's way: transformers' inner Chameleon, a pass a row, growing cache, the whole head, eager PyTorch"
_STATIC = "transformers' Chameleon, both rows in one pass, static cache, the head's rows of image codes, eager PyTorch"
_LLAMA = "a plain LLaMA in llama.cpp, two sequences in one batch, float16 K/V, weights repacked where it can"
_GENAI = (
    "a plain LLaMA by onnxruntime-genai's own builder with its defaults, batch of two, float32 K/V; a batch can't be "
    "rewound, so that its context grows by a token a step"
)
PEERS = {
    "family's loop, float32": Peer("transformers_steps", "growing float32", Precision(32, 4), _FAMILY, 2),
    "family's loop, bfloat16": Peer("transformers_steps", "growing bfloat16", Precision(16, 2), _FAMILY, 2),
    "static cache, float32": Peer("transformers_steps", "static float32", Precision(32, 4), _STATIC),
    "static cache, bfloat16": Peer("transformers_steps", "static bfloat16", Precision(16, 2), _STATIC),
    "llama.cpp, F16": Peer("llamacpp", "F16", Precision(16, 2), _LLAMA),
    "llama.cpp, Q8_0": Peer("llamacpp", "Q8_0", Precision(8.5, 2), _LLAMA),
    "llama.cpp, Q4_0": Peer("llamacpp", "Q4_0", Precision(4.5, 2), _LLAMA),
    "genai, fp32": Peer("genai", "fp32", Precision(32, 4), _GENAI),
    "genai, int8": Peer("genai", "int8", Precision(9, 4), _GENAI),
    "genai, int4": Peer("genai", "int4", Precision(5, 4), _GENAI),
}
INSTALL = {
    "transformers_steps": "pip install 'mgpt-edge[bench]'",
    "llamacpp": "pip install llama-cpp-python gguf",
    "genai": "pip install onnxruntime-genai",
}


def peers(
    shape: Annotated[str, typer.Option(help="One of the random checkpoints' shapes.")] = "375m",
    context: Annotated[int, typer.Option(min=1, help="Tokens that both rows hold already.")] = 600,
    rounds: Annotated[int, typer.Option(min=1)] = 15,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure a guided step of every side."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_checkpoint(folder / "checkpoint", shape_named(shape), vq=False)
        checkpoint = Checkpoint.open(folder / "checkpoint")
        cores = threads or machine.usable_cores()
        case = Case(checkpoint=checkpoint, folder=folder, context=context, threads=cores)
        others = {name: _set_up(case, peer) for name, peer in PEERS.items()}
        missing = {name: why for name, why in others.items() if isinstance(why, str)}
        present = {name: side for name, side in others.items() if isinstance(side, Side)}
        facts = measure(case, dict(ours(case)) | present, rounds)
    if as_json:
        print(json.dumps({"shape": shape, "context": context, "threads": case.threads, **facts, "missing": missing}))
        return
    print(f"{shape}, two rows, context {context}, {case.threads} threads; memory reads {facts['read_gb_s']:.1f} GB/s")
    for name, side in facts["sides"].items():
        print(f"{name:28} {side['ms']:8.2f} ms  {side['times_native']:6.2f} x native")
    for name, why in missing.items():
        print(f"{name:28} not measured: {why}")
    for description, names in groupby(facts["sides"], lambda name: facts["sides"][name]["description"]):
        print(f"{'; '.join(names)}: {description}")
    print(f"least time for the int8 bytes {facts['least_ms']:.2f} ms: {facts['native_share']:.0%} of the native step")


def _set_up(case: Case, peer: Peer) -> Side | str:
    """The side once it has drawn a code; where it does not, why."""
    needed = Decode(case.checkpoint.config, case.checkpoint.vocabulary.codes, peer.precision).held_bytes(case.context)
    free = machine.available_bytes()
    if needed > free:
        return f"it needs {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free"
    try:
        step = import_module(f"mgpt_edge.bench.rivals.{peer.module}").step(case, peer.setting)
        step()
    except ImportError as error:
        return f"{error.name or error} is not installed: {INSTALL[peer.module]}"
    except Exception as error:  # noqa: BLE001  others' code may raise anything, and the other sides go on
        return f"{type(error).__name__}: {error}"
    return Side(step=step, precision=peer.precision, description=peer.description, passes=peer.passes, peer=True)
