"""The fine-tuned checkpoint on disk: weights, and everything that goes with them, as `mgpt export` reads it."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from mgpt_edge.export.shards import INDEX, read_json
from mgpt_edge.export.vqfiles import INSIDE
from mgpt_edge.finetune.files import replace_atomically, write_json
from mgpt_edge.finetune.parts import write_parts
from mgpt_edge.runtime.files import usual_mode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.defaults import Defaults
    from mgpt_edge.export.model import Decoder
    from mgpt_edge.finetune.parallel import Processes
    from mgpt_edge.finetune.weights import Weights

BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
"""Files for other libraries that fine-tuning leaves as they are."""


def write_release(
    weights: Weights, decoder: Decoder, folder: Path, defaults: Defaults, positions: int, processes: Processes
) -> None:
    """Writes the decoder as it stands, its adapters merged, and `adapter/` in peft's layout if it has any.

    A kill leaves the weights that were there, or the new ones: the index, replaced last, says which files count.

    Args:
        weights: where the decoder came from.
        decoder: what is written.
        folder: where.
        defaults: what `mgpt.json` says.
        positions: length of the longest sequence that was trained on.
        processes: all of them come here; the first one writes.
    """
    adapters = weights.adapter_tensors(decoder)
    tensors = _with_encoder(weights, decoder)
    if not processes.first:
        for _ in tensors:  # its shares are asked for
            pass
    else:
        _write_texts(weights.checkpoint, folder, defaults, positions)
        _write_weights(tensors, folder)
        if weights.adapters:
            path = folder / "adapter" / "adapter_model.safetensors"
            replace_atomically(path, lambda draft: save_file(adapters, draft))
            weights.adapters.save_pretrained(str(path.parent))
    processes.wait()


def _with_encoder(weights: Weights, decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """The trained tensors, and the VQ encoder's where the checkpoint carries it."""
    yield from weights.trained(decoder)
    shards = weights.checkpoint.shards
    for name in shards.entries:
        if name.startswith(INSIDE):
            yield name, shards.tensor(name)


def _write_weights(tensors: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """Writes the parts under names that no earlier writing had, then replaces the index."""
    old = set(folder.glob("model-*-*.safetensors"))
    generation = max((int(path.name.split("-")[1]) for path in old), default=0) + 1
    files = write_parts(tensors, folder / f"model-{generation}")
    parts = set(files.values())
    for path in parts:
        path.chmod(usual_mode())  # safetensors lets nobody but the owner read what it writes
    size = sum(path.stat().st_size for path in parts)
    weight_map = {name: path.name for name, path in files.items()}
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    for path in old - parts:
        path.unlink()


def _write_texts(source: Checkpoint, folder: Path, defaults: Defaults, positions: int) -> None:
    document = read_json(source.folder / "config.json")
    document["max_position_embeddings"] = max(positions, document.get("max_position_embeddings") or 0)
    document["mask_image_logits"] = False  # of Chameleon: it has learnt to draw now
    write_json(folder / "config.json", document)
    write_json(folder / "mgpt.json", asdict(defaults))
    replace_atomically(folder / "tokenizer.json", lambda draft: draft.write_text(source.tokenizer_json, "utf-8"))
    for path in (*(source.folder / name for name in BESIDE), *(source.vq.files if source.vq else ())):
        if path.is_file():
            replace_atomically(folder / path.name, lambda draft, path=path: shutil.copyfile(path, draft))
