"""What a bundle of a checkpoint says of itself, once written or before."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING

from mgpt_edge.export.engines import best_engine
from mgpt_edge.export.lower.lowering import lowering_of
from mgpt_edge.export.quantise.precision import precisions
from mgpt_edge.export.vqfiles import usual_config
from mgpt_edge.runtime.bundle import manifest as m
from mgpt_edge.runtime.engines import engine_kind
from mgpt_edge.runtime.family.layout import ImageLayout, buckets

if TYPE_CHECKING:
    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.config import DecoderConfig

PACKAGES = ("mgpt-edge", "torch", "onnx", "onnxruntime", "onnxscript")
UNKNOWN_TARGET = 512
WORDS, CAPACITY_STEP = 256, 64


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
        arithmetic=engine_kind(engine).arithmetic,
        half_vq=half_vq(precision),
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


def half_vq(precision: str) -> bool:
    """Returns whether the VQ model's weights are stored as float16 beside a precision: a thirtieth of a 7B's bytes."""
    return precisions()[precision].bits < 8


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


def sequence_capacity(checkpoint: Checkpoint, target_size: int) -> int:
    """Positions of a cache whose size stands in the graph: words, a picture, and one that is read where a task does."""
    defaults, vocabulary = checkpoint.defaults, checkpoint.vocabulary
    stride = (checkpoint.vq_config or usual_config(vocabulary.codes)).stride
    sizes = defaults.sizes or buckets(target_size)
    longest = max(len(ImageLayout(width, height, vocabulary, stride)) for width, height in sizes)
    pictures = 1 if set(defaults.tasks) <= {"text-to-image"} else 2
    return math.ceil((WORDS + pictures * longest) / CAPACITY_STEP) * CAPACITY_STEP


def forecasts(checkpoint: Checkpoint) -> dict[str, m.Manifest]:
    """Precision -> the manifest its bundle would have on the best engine for it, where that is known before it is
    written; the sizes of its files are computed.
    """
    target = checkpoint.defaults.target_size or UNKNOWN_TARGET
    found: dict[str, m.Manifest] = {}
    for precision in precisions():
        engine = best_engine(precision)
        sizes = lowering_of(engine).sizes(checkpoint, precision)
        if sizes is not None:
            files = {
                name: m.FileEntry(bytes=size, sha256="") for name, size in (sizes | _vq(checkpoint, precision)).items()
            }
            found[precision] = describe(
                checkpoint, precision, files, engine=engine, target_size=target, width_invariant=False
            )
    return found


def _vq(checkpoint: Checkpoint, precision: str) -> dict[str, int]:
    if checkpoint.vq is None:
        return {}
    each, shapes = 2 if half_vq(precision) else 4, checkpoint.vq.shapes.items()
    return {
        f"vq_{half}.data": sum(math.prod(shape) * each for name, shape in shapes if name.startswith(half))
        for half in ("encoder", "decoder")
    }
