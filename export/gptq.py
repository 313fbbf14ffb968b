"""A checkpoint's linears rounded by GPTQ, layer by layer, each on what the rounded layers before it make of sequences.

There is a file for each layer, so a killed run goes on with the next one.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mgpt_edge.export.checkpoint import EMBEDDING, HEAD
from mgpt_edge.export.golden import load_block
from mgpt_edge.export.model import causal_attention
from mgpt_edge.export.quantise.compensation import compensated
from mgpt_edge.export.rewritten import Rewritten
from mgpt_edge.export.rounding import blocks_of, embedded, image_head_precision
from mgpt_edge.export.statistics import INPUTS
from mgpt_edge.runtime.engines import engine_kinds
from mgpt_edge.runtime.errors import CheckpointError, InvalidRequest
from mgpt_edge.runtime.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import ModuleType

    from torch import nn

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.config import DecoderConfig

HIDDEN, LAST = "hidden", "head"


def round_checkpoint(
    checkpoint: Checkpoint,
    sequences: Sequence[Sequence[int]],
    folder: Path,
    engine: str,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Rounds every linear to 4 bits in the blocks of `engine` and writes the values to `folder`.

    Args:
        checkpoint: in floats.
        sequences: of tokens, that the model is to be right on.
        folder: gets a file a layer, each with int8 NAME.values [out, in] and float32 NAME.scales [out, blocks].
        engine: by its name.
        progress: told of layers done, and how many there are.

    Raises:
        InvalidRequest: an unknown engine, no sequences, or a folder of another checkpoint, engine or data.
        CheckpointError: a weight is no finite number.
    """
    if engine not in engine_kinds():
        msg = f"unknown engine {engine!r}; known: {', '.join(engine_kinds())}"
        raise InvalidRequest(msg)
    if not sequences:
        msg = "there are no sequences to round the weights by"
        raise InvalidRequest(msg)
    blocks, lengths, config = blocks_of(engine), list(map(len, sequences)), checkpoint.config
    said = json.dumps([list(sequence) for sequence in sequences])
    facts = _facts(checkpoint, engine) | {"sequences": hashlib.sha256(said.encode()).hexdigest()}
    if _finished(folder, facts):
        return
    hidden, first = _resume(folder, facts) or (_embedded(checkpoint, sequences, engine), 0)
    for layer in range(first, config.num_layers):
        progress(layer, config.num_layers)
        block = load_block(checkpoint, layer, "fp32", engine)
        if not all(parameter.isfinite().all() for parameter in block.parameters()):
            msg = f"layer {layer} has weights that are not finite numbers: the checkpoint is damaged"
            raise CheckpointError(msg)
        values, hidden = _round_block(block, config, hidden.split(lengths), blocks)
        prefix = f"model.layers.{layer}."
        _write(folder / f"{layer}.safetensors", {prefix + name: value for name, value in values.items()}, facts)
        _write(folder / f"{HIDDEN}.safetensors", {HIDDEN: hidden}, facts | {"layers": str(layer + 1)})
    _write(folder / f"{LAST}.safetensors", _round_head(checkpoint, hidden, blocks), facts)
    (folder / f"{HIDDEN}.safetensors").unlink(missing_ok=True)
    progress(config.num_layers, config.num_layers)


def rounded_checkpoint(checkpoint: Checkpoint, folder: Path, engine: str) -> Rewritten:
    """The checkpoint with the weights that `round_checkpoint` wrote for it; a bundle in int4 keeps them exactly.

    Raises:
        InvalidRequest: nothing there, unfinished, damaged, or of another checkpoint or engine.
    """
    wanted, changes = _facts(checkpoint, engine), {}
    parts = [str(layer) for layer in range(checkpoint.config.num_layers)]
    for path in (folder / f"{name}.safetensors" for name in (*parts, LAST)):
        with _opened(path, f"run mgpt gptq {checkpoint.source} -o {folder} again, it goes on") as file:
            _check(file.metadata(), wanted, folder)
            names = [name.removesuffix(".values") for name in file.keys() if name.endswith(".values")]  # noqa: SIM118
        changes |= {name: partial(_values, path, name) for name in names}
    if HEAD in changes and image_head_precision("int4", engine) != "int4":
        changes[HEAD] = partial(_but_codes, changes[HEAD], slice(*checkpoint.vocabulary.code_range))
    return Rewritten.of(checkpoint, changes)


@torch.inference_mode()
def _embedded(checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], engine: str) -> Tensor:
    tokens = torch.tensor([token for sequence in sequences for token in sequence])
    return embedded(checkpoint.tensor(EMBEDDING)[tokens], "int4", engine)


@torch.inference_mode()
def _round_block(
    block: nn.Module, config: DecoderConfig, parts: Sequence[Tensor], blocks: ModuleType
) -> tuple[dict[str, Tensor], Tensor]:
    """Rounds a block's linears in place; gives their values, and what the block then makes of `parts` [length, hidden].

    Inputs inside the block are those of its exact linears: one pass serves them all.
    """
    found: dict[str, Tensor] = {}
    for modules, moments in _moments(block, config, parts):
        for name in modules:
            linear = block.get_submodule(name)
            if not blocks.fits(linear.weight.shape[1]):
                continue
            values, scales = compensated(linear.weight, moments, blocks)
            linear.weight.data = _weight(values, scales)
            found |= {f"{name}.weight.values": values, f"{name}.weight.scales": scales}
    return found, torch.cat(list(_through(block, config, parts)))


def _moments(block: nn.Module, config: DecoderConfig, parts: Sequence[Tensor]) -> list[tuple[tuple[str, ...], Tensor]]:
    """The second moments of each input of a block, and the linears that read it."""
    sums = {name: torch.zeros(()) for name in INPUTS}

    def see(name: str, x: Tensor) -> None:
        rows = x.flatten(0, -2)
        sums[name] = sums[name] + rows.T @ rows

    with ExitStack() as hooks:
        for name, (module, *_) in INPUTS.items():
            linear = block.get_submodule(module)
            handle = linear.register_forward_pre_hook(lambda _, given, name=name: see(name, given[0]))
            hooks.callback(handle.remove)
        for _ in _through(block, config, parts):
            pass
    return [(modules, sums[name]) for name, modules in INPUTS.items()]


def _through(block: nn.Module, config: DecoderConfig, parts: Sequence[Tensor]) -> Iterator[Tensor]:
    return (block(x[None], causal_attention(config, len(x), x.device))[0] for x in parts)


@torch.inference_mode()
def _round_head(checkpoint: Checkpoint, hidden: Tensor, blocks: ModuleType) -> dict[str, Tensor]:
    """The head's values; none where it is the embedding, too."""
    if checkpoint.config.tied_embeddings or not blocks.fits(checkpoint.config.hidden_size):
        return {}
    norm = checkpoint.tensor("model.norm.weight").float()
    states = torch.nn.functional.rms_norm(hidden, norm.shape, norm, checkpoint.config.norm_eps)
    values, scales = compensated(checkpoint.tensor(HEAD), states.T @ states, blocks)
    return {f"{HEAD}.values": values, f"{HEAD}.scales": scales}


def _weight(values: Tensor, scales: Tensor) -> Tensor:
    return (values.unflatten(1, (scales.shape[1], -1)) * scales[..., None]).flatten(1)


def _values(path: Path, name: str, _: Tensor) -> Tensor:
    with _opened(path, "round the weights again: mgpt gptq") as file:
        return _weight(file.get_tensor(f"{name}.values"), file.get_tensor(f"{name}.scales"))


def _but_codes(rounded: Callable[[Tensor], Tensor], codes: slice, original: Tensor) -> Tensor:
    """A head whose rows for codes stay as they were: those have more bits."""
    head = rounded(original)
    head[codes] = original[codes].to(head.dtype)
    return head


def _facts(checkpoint: Checkpoint, engine: str) -> dict[str, str]:
    return {"checkpoint": checkpoint.fingerprint(), "block": str(blocks_of(engine).BLOCK)}


def _check(found: dict[str, str], wanted: dict[str, str], folder: Path) -> None:
    if any(found.get(name) != value for name, value in wanted.items()):
        msg = (
            f"{folder} was rounded for another checkpoint or engine (blocks of {found.get('block')} inputs, "
            f"here {wanted['block']}), or by other data; give mgpt gptq another folder with -o, or remove this one"
        )
        raise InvalidRequest(msg)


def _finished(folder: Path, facts: dict[str, str]) -> bool:
    path = folder / f"{LAST}.safetensors"
    if path.exists():
        with _opened(path, "remove it") as file:
            _check(file.metadata(), facts, folder)
    return path.exists()


def _resume(folder: Path, facts: dict[str, str]) -> tuple[Tensor, int] | None:
    """The hidden states that a stopped run had come to, and how many layers it had done."""
    path = folder / f"{HIDDEN}.safetensors"
    if not path.exists():
        return None
    with _opened(path, "remove it, and the run begins again") as file:
        found = file.metadata()
        _check(found, facts, folder)
        return file.get_tensor(HIDDEN), int(found["layers"])


def _write(path: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, safetensors.torch.save(tensors, facts))


def _opened(path: Path, help_: str) -> safe_open:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        msg = f"{path}: no rounded weights can be read from it ({error}); {help_}"
        raise InvalidRequest(msg) from error
