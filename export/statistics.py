"""What a checkpoint's linears are given on real sequences: measured layer by layer, so one layer is in memory."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mgpt_edge.export.golden import load_block
from mgpt_edge.export.model import causal_attention
from mgpt_edge.export.rounding import rounded
from mgpt_edge.runtime.errors import CheckpointError, InvalidRequest
from mgpt_edge.runtime.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import nn

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.config import DecoderConfig

    Progress = Callable[[int, int], None]
    """(layers done, layers in all)"""

INPUTS = {
    "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mixed": ("self_attn.o_proj",),
    "mlp": ("mlp.gate_proj", "mlp.up_proj"),
    "gated": ("mlp.down_proj",),
}
"""What is read by a block's linears -> those that read it. Beside them there is the head's `head`."""
HIDDEN = "hidden"
SCHEMA = "2"
PROBED = 4
"""Sequences that the harm of rounding is measured on."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of each input, called `LAYER.NAME` with a name of `INPUTS`, or `head`.

    Attributes:
        checkpoint: fingerprint of what they belong to.
        tokens: measured.
        largest: magnitudes, float32 [channels].
        square: mean squares, float32 [channels].
        harm: what a block's output, or the logits, lose if the input's readers alone are rounded to 4 bits: the
            change's mean square, relative to theirs.
    """

    checkpoint: str
    tokens: int
    largest: dict[str, Tensor] = field(default_factory=dict)
    square: dict[str, Tensor] = field(default_factory=dict)
    harm: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, checkpoint: Checkpoint) -> Statistics:
        """Reads what `collect` wrote for this checkpoint.

        Raises:
            InvalidRequest: no such file, an unfinished or a damaged one, or of another checkpoint.
        """
        tensors, facts = _read(path)
        if facts["checkpoint"] != checkpoint.fingerprint():
            msg = f"{path} was measured on another checkpoint; measure this one: mgpt calibrate {checkpoint.source}"
            raise InvalidRequest(msg)
        if facts.get("schema") != SCHEMA:
            msg = f"{path} was written by another mgpt-edge; measure again: mgpt calibrate {checkpoint.source}"
            raise InvalidRequest(msg)
        return _statistics(tensors, facts)

    def largest_of(self, weight: str) -> float:
        """Magnitude of what the linear with this weight was given."""
        if weight == "lm_head.weight":
            return float(self.largest["head"].max())
        _, _, layer, module = weight.removesuffix(".weight").split(".", 3)
        name = next(name for name, modules in INPUTS.items() if module in modules)
        return float(self.largest[f"{layer}.{name}"].max())


def collect(
    checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], path: Path, progress: Progress = lambda *_: None
) -> Statistics:
    """Runs sequences through the checkpoint in float32 and writes the statistics to `path`.

    After each layer all that is needed to go on lies in `path` with `.partial` behind it: a kill loses one layer.

    Raises:
        InvalidRequest: no sequences.
        CheckpointError: a weight makes something infinite.
    """
    if not sequences:
        msg = "there are no sequences to calibrate on"
        raise InvalidRequest(msg)
    lengths = [len(sequence) for sequence in sequences]
    said = json.dumps([checkpoint.fingerprint(), [list(sequence) for sequence in sequences]])
    facts = {
        "checkpoint": checkpoint.fingerprint(),
        "tokens": str(sum(lengths)),
        "schema": SCHEMA,
        "sequences": hashlib.sha256(said.encode()).hexdigest(),
    }
    partial = path.with_name(f"{path.name}.partial")
    tensors, first = _resume(partial, facts) or ({HIDDEN: _embedded(checkpoint, sequences)}, 0)
    layers = checkpoint.config.num_layers
    for layer in range(first, layers):
        progress(layer, layers)
        block = load_block(checkpoint, layer, "fp32", "cpu")
        parts = tensors[HIDDEN].split(lengths)
        hidden, found = _through(block, checkpoint.config, parts)
        _check(found | {HIDDEN: hidden}, layer)
        found |= _harm(block, checkpoint.config, parts[:PROBED], hidden)
        tensors |= {HIDDEN: hidden} | {f"{layer}.{name}": value for name, value in found.items()}
        _write(partial, tensors, facts | {"layers": str(layer + 1)})
    norm = checkpoint.tensor("model.norm.weight").float()
    hidden = tensors.pop(HIDDEN)
    head = _Input()
    states = torch.nn.functional.rms_norm(hidden, norm.shape, norm, checkpoint.config.norm_eps)
    head.see(states)
    tensors |= {f"head.{name}": value for name, value in head.found().items()}
    weight, states = checkpoint.tensor("lm_head.weight").float(), states[: sum(lengths[:PROBED])]
    tensors["head.harm"] = _change(states @ rounded(weight, "int4", "native").T, states @ weight.T)
    _write(path, tensors, facts)
    partial.unlink(missing_ok=True)
    progress(layers, layers)
    return _statistics(tensors, facts)


class _Input:
    """Statistics of one input so far."""

    def __init__(self) -> None:
        self.largest, self.sum, self.tokens = torch.zeros(()), torch.zeros(()), 0

    def see(self, x: Tensor) -> None:
        x = x.flatten(0, -2)
        self.largest = torch.maximum(self.largest, x.abs().amax(0))
        self.sum = self.sum + x.square().sum(0)
        self.tokens += len(x)

    def found(self) -> dict[str, Tensor]:
        return {"largest": self.largest, "square": self.sum / self.tokens}


@torch.inference_mode()
def _embedded(checkpoint: Checkpoint, sequences: Sequence[Sequence[int]]) -> Tensor:
    tokens = torch.tensor([token for sequence in sequences for token in sequence])
    return checkpoint.tensor("model.embed_tokens.weight")[tokens].float()


@torch.inference_mode()
def _through(block: nn.Module, config: DecoderConfig, parts: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """What a block makes of sequences [length, hidden], end to end, and what its linears were given."""
    inputs = {name: _Input() for name in INPUTS}
    with ExitStack() as hooks:
        for name, (module, *_) in INPUTS.items():
            see = inputs[name].see
            handle = block.get_submodule(module).register_forward_pre_hook(lambda _, x, see=see: see(x[0]))
            hooks.callback(handle.remove)
        hidden = [block(x[None], causal_attention(config, len(x), x.device))[0] for x in parts]
    found = {f"{name}.{kind}": value for name, one in inputs.items() for kind, value in one.found().items()}
    return torch.cat(hidden), found


@torch.inference_mode()
def _harm(block: nn.Module, config: DecoderConfig, parts: Sequence[Tensor], hidden: Tensor) -> dict[str, Tensor]:
    """`Statistics.harm` of a block's inputs, on some sequences; `hidden` begins with what the block makes of these."""
    found = {}
    for name, modules in INPUTS.items():
        linears = [block.get_submodule(module) for module in modules]
        exact = [linear.weight.data for linear in linears]
        for linear, weight in zip(linears, exact, strict=True):
            linear.weight.data = rounded(weight, "int4", "native")
        changed = torch.cat([block(x[None], causal_attention(config, len(x), x.device))[0] for x in parts])
        for linear, weight in zip(linears, exact, strict=True):
            linear.weight.data = weight
        found[f"{name}.harm"] = _change(changed, hidden[: len(changed)])
    return found


def _change(changed: Tensor, exact: Tensor) -> Tensor:
    return (changed - exact).square().mean() / exact.square().mean()


def _check(tensors: dict[str, Tensor], layer: int) -> None:
    bad = [name for name, value in tensors.items() if not value.isfinite().all()]
    if bad:
        msg = f"layer {layer} gives numbers that are not finite ({bad[0]}): a weight of the checkpoint is damaged"
        raise CheckpointError(msg)


def _resume(partial: Path, facts: dict[str, str]) -> tuple[dict[str, Tensor], int] | None:
    """What a run with these facts had when it was stopped."""
    if not partial.exists():
        return None
    tensors, found = _read(partial)
    layers = int(found.pop("layers", 0))
    return (tensors, layers) if found == facts else None


def _write(path: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    write_atomically(path, safetensors.torch.save(contiguous, facts))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:
        msg = f"{path}: no statistics can be read from it ({error}); make them: mgpt calibrate CHECKPOINT"
        raise InvalidRequest(msg) from error


def _statistics(tensors: dict[str, Tensor], facts: dict[str, str]) -> Statistics:
    kinds = (
        {name.removesuffix(kind): value for name, value in tensors.items() if name.endswith(kind)}
        for kind in (".largest", ".square", ".harm")
    )
    return Statistics(facts["checkpoint"], int(facts["tokens"]), *kinds)
