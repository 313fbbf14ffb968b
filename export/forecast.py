"""What a bundle of a checkpoint says of itself, once written or before."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING

from mgpt_edge.export.engines import best_engine
from mgpt_edge.export.lower import native
from mgpt_edge.export.lower.linears import PRECISIONS
from mgpt_edge.export.quantise import int4
from mgpt_edge.export.vqfiles import usual_config
from mgpt_edge.runtime import manifest as m
from mgpt_edge.runtime.layout import ImageLayout, buckets

if TYPE_CHECKING:
    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.config import DecoderConfig

PACKAGES = ("mgpt-edge", "torch", "onnx", "onnxruntime", "onnxscript")
UNKNOWN_TARGET = 512
WORDS, CAPACITY_STEP = 256, 64
BYTES_PER_WEIGHT = {"fp32": 4.0, "int8": 1.0, "int4": 0.5 + 4 / int4.BLOCK}


def describe(
    checkpoint: Checkpoint,
    precision: str,
    files: dict[str, m.FileEntry],
    *,
    engine: str,
    target_size: int,
    width_invariant: bool,
) -> m.Manifest:
    """The manifest of a bundle made of `files`."""
    config, defaults = checkpoint.config, checkpoint.defaults
    vq = checkpoint.vq_config or usual_config(checkpoint.vocabulary.codes)
    tasks = {task: m.Defaults(**defaults.sampling(task)) for task in defaults.tasks}
    return m.Manifest(
        schema=m.SCHEMA,
        name=defaults.name,
        engine=engine,
        precision=precision,
        width_invariant=width_invariant,
        vocabulary=checkpoint.vocabulary,
        dimensions=dimensions(config),
        pictures=m.Pictures(
            stride=vq.stride,
            channels=max(vq.widths[:2]),  # the second level is enlarged to full resolution before it is narrowed
            target_size=target_size,
            sizes=defaults.sizes,
        ),
        defaults=m.Defaults(
            guidance=defaults.guidance,
            top_k=defaults.top_k,
            text_top_k=defaults.text_top_k,
            temperature=defaults.temperature,
        ),
        tasks=tasks,
        files=files,
        created={
            "checkpoint": checkpoint.fingerprint(),
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **{name: version(name) for name in PACKAGES},
        },
    )


def dimensions(config: DecoderConfig) -> m.Dimensions:
    """What of a decoder's configuration stands in a manifest."""
    return m.Dimensions(
        layers=config.num_layers,
        hidden_size=config.hidden_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rope_theta=config.rope_theta,
    )


def row_capacity(checkpoint: Checkpoint, target_size: int) -> int:
    """Positions of a cache whose size stands in the graph: words, a picture, and one that is read where a task does."""
    defaults, vocabulary = checkpoint.defaults, checkpoint.vocabulary
    stride = (checkpoint.vq_config or usual_config(vocabulary.codes)).stride
    sizes = defaults.sizes or buckets(target_size)
    longest = max(len(ImageLayout(width, height, vocabulary, stride)) for width, height in sizes)
    pictures = 1 if set(defaults.tasks) <= {"text-to-image"} else 2
    return math.ceil((WORDS + pictures * longest) / CAPACITY_STEP) * CAPACITY_STEP


def forecasts(checkpoint: Checkpoint) -> dict[str, m.Manifest]:
    """Precision -> the manifest its bundle would have, with the sizes of its files computed, not written."""
    target = checkpoint.defaults.target_size or UNKNOWN_TARGET
    return {
        precision: describe(
            checkpoint,
            precision,
            _files(checkpoint, precision),
            engine=best_engine(precision),
            target_size=target,
            width_invariant=False,
        )
        for precision in PRECISIONS
    }


def _files(checkpoint: Checkpoint, precision: str) -> dict[str, m.FileEntry]:
    if best_engine(precision) == "native":
        sizes = {native.FILE: native.decoder_bytes(checkpoint, precision)}
    else:
        sizes = _graph_sizes(checkpoint, precision)
    if checkpoint.vq is not None:
        each = 2 if precision in m.HALF_VQ else 4
        for half in ("encoder", "decoder"):
            shapes = checkpoint.vq.shapes.items()
            sizes[f"vq_{half}.data"] = sum(math.prod(shape) * each for name, shape in shapes if name.startswith(half))
    return {name: m.FileEntry(bytes=size, sha256="") for name, size in sizes.items()}


def _graph_sizes(checkpoint: Checkpoint, precision: str) -> dict[str, int]:
    config = checkpoint.config
    layers = sum(
        _bytes(shape, precision) for name, shape in config.shapes().items() if name.startswith("model.layers.")
    )
    return {
        "decoder.data": checkpoint.tensor_bytes("model.embed_tokens.weight") + layers,
        "head_image.data": _bytes((checkpoint.vocabulary.codes, config.hidden_size), precision),
    }


def _bytes(shape: tuple[int, ...], precision: str) -> int:
    """Bytes of a weight: matrices are packed, the small rest stays float32."""
    if len(shape) < 2 or min(shape) < int4.BLOCK:
        return math.prod(shape) * 4
    scales = shape[0] * 4 if precision == "int8" else 0
    return int(math.prod(shape) * BYTES_PER_WEIGHT[precision]) + scales
