"""Writes a full checkpoint of random weights, to measure with where the real ones are not at hand.

python -m mgpt_edge.bench.models.random_checkpoint --shape 7b -o FOLDER
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from mgpt_edge.bench.models.names import named
from mgpt_edge.bench.models.random_tokenizer import (
    FAMILY_RESERVED,
    QWEN_GRIDS,
    QWEN_SPECIALS,
    QWEN_TEXT,
    family_tokenizer,
    second_tokenizer,
)
from mgpt_edge.export.config import DecoderConfig
from mgpt_edge.export.defaults import trained_tasks
from mgpt_edge.export.tokenizer import BOS
from mgpt_edge.export.vqfiles import vq_shapes
from mgpt_edge.export.vqgan import CHAMELEON, MOVQGAN_270M, VQConfig
from mgpt_edge.runtime.files import replace_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

FAMILY_VOCABULARY = 65536
SHARD_BYTES = 5_000_000_000
CHUNK = 1 << 22
"""Numbers drawn at a time: 16 MiB of float32, which is all the memory this needs."""

DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16"}
Sizes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Dimensions of a checkpoint; its VQ model says of which generation it is."""

    decoder: DecoderConfig
    vq: VQConfig
    target_size: int

    @property
    def tokenizer(self) -> str:
        """Text of tokenizer.json, with the published ids where the vocabulary has the published size."""
        codes, large = self.vq.codes, self.decoder.vocab_size >= FAMILY_VOCABULARY
        if self.vq.modulated:
            return second_tokenizer(codes, QWEN_GRIDS, QWEN_TEXT) if large else second_tokenizer(codes)
        return family_tokenizer(codes, FAMILY_RESERVED, FAMILY_VOCABULARY) if large else family_tokenizer(codes)


def decoder(hidden: int, layers: int, heads: int, ffn: int, vocab: int, **rest: Any) -> DecoderConfig:
    """A decoder of the family; what every member has alike is filled in."""
    alike = {"num_kv_heads": heads, "head_dim": hidden // heads, "norm_eps": 1e-5, "rope_theta": 10000.0}
    sizes = {"hidden_size": hidden, "num_layers": layers, "num_heads": heads, "intermediate_size": ffn}
    return DecoderConfig(vocab_size=vocab, **sizes, **(alike | rest))


SMALL_VQ = VQConfig(
    channels=16,
    channel_multipliers=(1, 1, 1, 1, 2),
    residual_blocks=1,
    z_channels=16,
    embed_dim=16,
    codes=64,
    groups=8,
    resolution=128,
)
SMALL_MOVQ = replace(
    SMALL_VQ, channel_multipliers=(1, 1, 1, 2), z_channels=4, embed_dim=4, attention_resolutions=(16,), modulated=True
)
SHAPES = {
    "7b": Shape(decoder=decoder(4096, 32, 32, 11008, 65536), vq=CHAMELEON, target_size=768),
    "34b": Shape(
        decoder=decoder(8192, 48, 64, 22016, 65536, num_kv_heads=8, model_parallel_size=4, swin_norm=True),
        vq=CHAMELEON,
        target_size=512,
    ),
    "375m": Shape(decoder=decoder(1024, 24, 16, 2816, 65536), vq=CHAMELEON, target_size=512),
    "probe": Shape(decoder=decoder(1024, 6, 16, 2816, 16384), vq=CHAMELEON, target_size=512),
    "tiny": Shape(decoder=decoder(64, 2, 4, 160, 512), vq=SMALL_VQ, target_size=128),
    "2.0-7b": Shape(decoder=decoder(4096, 32, 32, 11008, 171385), vq=MOVQGAN_270M, target_size=768),
    "2.0-2b": Shape(decoder=decoder(2048, 32, 32, 8192, 171385), vq=MOVQGAN_270M, target_size=768),
    "2.0-tiny": Shape(decoder=decoder(64, 2, 4, 160, 512), vq=SMALL_MOVQ, target_size=128),
}


def shape_named(name: str) -> Shape:
    """The shape of this name; raises `InvalidRequest` where there is none."""
    return named("shape", name, SHAPES)


def quiet(*_: int) -> None:
    """Takes progress reports and says nothing."""


def write_checkpoint(
    folder: Path,
    shape: Shape,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    vq: bool = True,
    shard_bytes: int = SHARD_BYTES,
    report: Callable[[int, int], None] = quiet,
) -> None:
    """Writes config.json, the tokenizer's two files, mgpt.json, the shards with their index, and the VQ files.

    Args:
        folder: made if it is not there.
        shape: what to write.
        seed: the same seed gives the same files.
        dtype: of the decoder's tensors; the VQ model is float32, as Meta's is.
        vq: whether to write vqgan.safetensors and vqgan.yaml.
        shard_bytes: largest file of decoder weights, unless one tensor alone is larger.
        report: called with bytes done and bytes in all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, second = shape.decoder, shape.vq.modulated
    _write(folder / "config.json", [json.dumps(config_json(config, dtype), indent=1).encode()])
    _write(folder / "tokenizer.json", [shape.tokenizer.encode()])
    ends = {"bos_token": None, "eos_token": QWEN_SPECIALS[0]} if second else {"bos_token": BOS, "eos_token": "</s>"}
    _write(folder / "tokenizer_config.json", [json.dumps(ends).encode()])
    tasks = trained_tasks("Lumina-mGPT-2.0-Omni" if second else "Lumina-mGPT-7B-768-Omni")
    says = {"name": folder.name, "target_size": shape.target_size, "tasks": {task: {} for task in tasks}}
    _write(folder / "mgpt.json", [json.dumps(says).encode()])
    plan = [(f, sizes, dtype) for f, sizes in _shards(config.shapes(), dtype.itemsize, shard_bytes).items()]
    if len(plan) > 1:
        _write(folder / "model.safetensors.index.json", [_index(plan, dtype.itemsize)])
    if vq:
        _write(folder / "vqgan.yaml", [yaml.safe_dump(shape.vq.to_yaml()).encode()])
        plan.append(("vqgan.safetensors", vq_shapes(shape.vq), torch.float32))
    generator = torch.Generator().manual_seed(seed)
    total, done = sum(_nbytes(sizes, kind.itemsize) for _, sizes, kind in plan), 0
    for name, sizes, kind in plan:
        _write(folder / name, _safetensors(sizes, kind, generator), lambda n, past=done: report(past + n, total))
        done += _nbytes(sizes, kind.itemsize)


def config_json(config: DecoderConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The `config.json` a Lumina-mGPT repository would have for these dimensions."""
    return {
        "architectures": ["ChameleonForConditionalGeneration"], "model_type": "chameleon",
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "dropout": config.dropout, "hidden_act": "silu", "hidden_size": config.hidden_size, "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size, "mask_image_logits": False, "max_position_embeddings": 4096,
        "mlp_bias": False, "model_parallel_size": config.model_parallel_size, "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers, "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.norm_eps, "rope_scaling": None, "rope_theta": config.rope_theta,
        "swin_norm": config.swin_norm, "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": str(dtype).removeprefix("torch."), "transformers_version": "4.43.3", "use_cache": True,
        "vocab_size": config.vocab_size,
        **({} if config.head_dim * config.num_heads == config.hidden_size else {"head_dim": config.head_dim}),
    }  # fmt: skip


def _shards(sizes: Sizes, itemsize: int, limit: int) -> dict[str, Sizes]:
    """Deals the tensors out to files, in order, none above `limit` bytes."""
    shards: list[Sizes] = [{}]
    for name, size in sizes.items():
        if shards[-1] and _nbytes(shards[-1] | {name: size}, itemsize) > limit:
            shards.append({})
        shards[-1][name] = size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _index(plan: list[tuple[str, Sizes, torch.dtype]], itemsize: int) -> bytes:
    total = sum(_nbytes(sizes, itemsize) for _, sizes, _ in plan)
    weight_map = {name: file for file, sizes, _ in plan for name in sizes}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1).encode()


def _safetensors(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file: the header, then each tensor in chunks."""
    header, end = {}, 0
    for name, size in sizes.items():
        start, end = end, end + math.prod(size) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": size, "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    buffer = torch.empty(CHUNK)  # one for all: fresh pages for every chunk cost more than the numbers in them
    for name, size in sizes.items():
        mean, deviation = _distribution(name, size)
        for start in range(0, math.prod(size), CHUNK):
            count = min(CHUNK, math.prod(size) - start)
            values = buffer[:count].normal_(mean, deviation, generator=generator).to(dtype)
            yield memoryview(values.view(torch.uint8).numpy())


def _distribution(name: str, size: tuple[int, ...]) -> tuple[float, float]:
    """Mean and deviation that keep activations near 1 and logits apart, as after training."""
    if name.endswith(".bias"):
        return 0.0, 0.1
    if len(size) == 1 or "_norm." in name:
        return 1.0, 0.1
    if name.endswith(("embed_tokens.weight", "quantize.embedding.weight")):
        return 0.0, 0.2
    gain = 2.0 if name == "lm_head.weight" else 1.0
    return 0.0, gain / math.sqrt(math.prod(size[1:]))


def _nbytes(sizes: Sizes, itemsize: int) -> int:
    return itemsize * sum(map(math.prod, sizes.values()))


def _write(path: Path, parts: Iterable[bytes | memoryview], report: Callable[[int], None] = quiet) -> None:
    """Writes a file whole or not at all."""

    def write(draft: Path) -> None:
        done = 0
        with draft.open("wb") as file:
            for part in parts:
                done += file.write(part)
                report(done)

    replace_atomically(path, write)


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the head of this file."""
    parser = argparse.ArgumentParser(prog="python -m mgpt_edge.bench.models.random_checkpoint", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-vq", action="store_true", help="leave out vqgan.safetensors and vqgan.yaml")
    options = parser.parse_args(arguments)
    started = time.perf_counter()

    def report(done: int, total: int) -> None:
        seconds = time.perf_counter() - started
        rate = done / max(seconds, 1e-9)
        left = (total - done) / rate
        line = f"{done / 1e9:7.2f} of {total / 1e9:.2f} GB, {rate / 1e9:.2f} GB/s, {left:4.0f} s left"
        sys.stderr.write(f"\r{line}" if sys.stderr.isatty() else "")

    write_checkpoint(options.output, SHAPES[options.shape], seed=options.seed, vq=not options.no_vq, report=report)
    total = sum(path.stat().st_size for path in options.output.iterdir())
    print(f"{options.output}: {total / 1e9:.2f} GB in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
