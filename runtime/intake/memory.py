"""Memory known before the first token: what a bundle and a picture need, and what the machine has."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mgpt_edge.runtime.engines import engine_kind
from mgpt_edge.runtime.errors import OutOfMemory
from mgpt_edge.runtime.family.layout import GRID_PIXELS, ImageLayout
from mgpt_edge.runtime.machine import mebibytes

if TYPE_CHECKING:
    from mgpt_edge.runtime.bundle.manifest import Manifest

PROCESS_BYTES = 60 << 20  # Python, NumPy, tokenizers and ONNX Runtime before a bundle is loaded, measured
USUAL_PROMPT_TOKENS = 64
VQ_BYTES_PER_PIXEL_CHANNEL = 25  # measured: the family's VQ decoder at 256x256 and 512x512


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes by what they are for."""

    weights_bytes: int
    cache_bytes: int
    workspace_bytes: int
    vq_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes + self.workspace_bytes + self.vq_bytes + PROCESS_BYTES

    def to_json(self) -> dict[str, int]:
        return {**asdict(self), "process_bytes": PROCESS_BYTES, "total_bytes": self.total_bytes}


def estimate(
    manifest: Manifest, layout: ImageLayout, capacities: tuple[int, int], prompt: int, *, reads: bool = False
) -> Estimate:
    """What an answer with pictures takes.

    Args:
        manifest: of the bundle.
        layout: of a picture.
        capacities: tokens of the conditional and the unconditional sequence.
        prompt: tokens of the longest prompt.
        reads: whether pictures go in, too.
    """
    d = manifest.dimensions
    tables = max(capacities) * d.head_dim * 4
    graphs = ("vq_decoder", "vq_encoder") if reads else "vq_decoder"
    vq = sum(entry.bytes for name, entry in manifest.files.items() if name.startswith(graphs))
    vq *= 1 + 2 * manifest.half_vq  # as stored, and widened
    return Estimate(
        weights_bytes=manifest.weight_bytes,
        cache_bytes=_token_bytes(manifest) * (sum(capacities) + 2) + tables,
        workspace_bytes=(prompt + 8) * d.hidden_size * 4 * 24 + 2 * manifest.vocabulary.codes * 4,
        vq_bytes=vq + layout.width * layout.height * manifest.pictures.channels * VQ_BYTES_PER_PIXEL_CHANNEL,
    )


def check(
    manifest: Manifest, layout: ImageLayout, capacities: tuple[int, int], prompt: int, *, free: int, reads: bool = False
) -> None:
    """Compares what an answer needs beyond the loaded weights with the bytes that are free.

    Raises:
        OutOfMemory: it does not fit; names both numbers and what would fit.
    """
    more = _beyond_weights(estimate(manifest, layout, capacities, prompt, reads=reads))
    if more > free:
        msg = (
            f"a picture of {layout.width}x{layout.height}, with {sum(capacities)} tokens in the cache, needs "
            f"{mebibytes(more)} beyond the weights, {mebibytes(free)} are free; a smaller one or a shorter context "
            "needs less, see: mgpt estimate"
        )
        raise OutOfMemory(msg)


def tokens_that_fit(manifest: Manifest, layout: ImageLayout, prompt: int, sequences: int, *, free: int) -> int:
    """Tokens that so many sequences can hold beyond the prompt, in the bytes that are free."""
    fixed = _beyond_weights(estimate(manifest, layout, (prompt, 0), prompt, reads=True))
    return max(free - fixed, 0) // (_token_bytes(manifest) * sequences + manifest.dimensions.head_dim * 4)


def streams_that_fit(
    manifest: Manifest, layout: ImageLayout, capacities: tuple[int, int], prompt: int, wanted: int, *, free: int
) -> int:
    """How many of the wanted streams' caches fit into half of what is left of the free bytes beside one answer's."""
    left = free - _beyond_weights(estimate(manifest, layout, capacities, prompt, reads=True))
    each = _token_bytes(manifest) * max(sum(capacities), 1)
    return max(1, min(wanted, 1 + left // 2 // each))


def _token_bytes(manifest: Manifest) -> int:
    """Keys and values of one token, as the bundle's engine caches them."""
    d, kind = manifest.dimensions, engine_kind(manifest.engine)
    return d.layers * d.kv_heads * 2 * (d.head_dim * kind.element_bytes + kind.scale_bytes)


def _beyond_weights(need: Estimate) -> int:
    return need.total_bytes - need.weights_bytes - PROCESS_BYTES


def forecast(manifest: Manifest, size: tuple[int, int]) -> Estimate:
    """`estimate` for a picture of `size` (width, height) with a prompt of usual length, guided."""
    layout = ImageLayout(*size, manifest.vocabulary, manifest.pictures.stride)
    return estimate(manifest, layout, (USUAL_PROMPT_TOKENS + len(layout), len(layout)), USUAL_PROMPT_TOKENS)


def what_would_fit(manifests: list[Manifest], size: tuple[int, int], free_bytes: int) -> str:
    """The first of the precisions in `manifests`, else the largest square, that fits into `free_bytes`."""
    for manifest in manifests[1:]:
        if forecast(manifest, size).total_bytes <= free_bytes:
            return f"{manifest.precision} would: mgpt export … --precision {manifest.precision}"
    for side in range(min(size) - GRID_PIXELS, 0, -GRID_PIXELS):
        for manifest in manifests:
            if forecast(manifest, (side, side)).total_bytes <= free_bytes:
                return f"{side}x{side} in {manifest.precision} would"
    least = min(forecast(manifest, (GRID_PIXELS, GRID_PIXELS)).total_bytes for manifest in manifests)
    return f"nothing would: {mebibytes(least)} is the least this model takes"
