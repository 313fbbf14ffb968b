"""What the native decoder computes, to the bit: the specification of `csrc/cpu`, in NumPy.

Sums of integers are exact, so their order is free. Every other operation is IEEE float32, rounded to nearest, ties to
even, denormals kept, never contracted; float sums have one order (`csrc/arithmetic/order.h`), which depends neither on
what shares a pass nor on how many lanes or threads add:

- A norm's terms go to 32 strands by their index modulo 32. Each strand is added in order; then strand i takes strand
  i + 16, then i + 8, i + 4, i + 2, i + 1 (`strands`).
- Attention looks at spans of 64 absolute positions. In each, `m` is the largest score, a weight is exp(score - m), the
  weights are added in strands, and the values times their weights in two sums, of even and of odd positions, which are
  added at the end. With M the largest m, each span's sums are multiplied by exp(m - M) and added in pairs.
- With weights of 4 bits, groups of 32 inputs have scales; their sums are added in order within chunks of 16 groups,
  the chunks in pairs.
- In pairs: first and second, third and fourth, ...; then pairs of these sums; one without a partner goes up as it is.

Slow, and used by tests alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mgpt_edge.runtime.family.rotary import rotary_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mgpt_edge.runtime.bundle.manifest import Dimensions

    Floats = Any
    """An array of float32, whose type NumPy's own lose in most operations."""
    Integers = NDArray[np.int64]

STRANDS, SPAN, CHUNK = 32, 64, 16
GROUP = 32
"""Inputs that share a scale, with weights of 4 bits."""
LARGEST_BYTE, SMALLEST_SCALE, HEAD_EPS = np.float32(127), np.float32(1e-30), np.float32(1e-5)
ONE = np.float32(1)


def halves(x: Floats) -> Floats:
    """Adds [..., n], n a power of two: element i takes i + n / 2, then i + n / 4, ..."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def strands(terms: Floats) -> Floats:
    """Adds [..., n] in 32 strands."""
    sums = np.zeros((*terms.shape[:-1], STRANDS), np.float32)
    for start in range(0, terms.shape[-1], STRANDS):
        part = terms[..., start : start + STRANDS]
        sums[..., : part.shape[-1]] += part
    return halves(sums)


def pairs(values: Floats) -> Floats:
    """Adds [n, ...] in pairs, n at least 1."""
    while len(values) > 1:
        sums = values[0 : len(values) - 1 : 2] + values[1::2]
        values = np.concatenate([sums, values[len(sums) * 2 :]])
    return values[0]


def exponential(x: Floats) -> Floats:
    """e^x to 2 units in the last place for x in [-87, 88]; below, 0 (coefficients as in Cephes' expf)."""
    clamped = np.clip(x, np.float32(-87), np.float32(88))
    n = np.rint(clamped * np.float32(1.44269504088896341))
    r = clamped - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    p = np.full_like(x, 1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + np.float32(coefficient)
    p = p * (r * r) + r + ONE
    power = ((n.astype(np.int32) + 127) << 23).view(np.float32)
    return np.where(x < np.float32(-87), np.float32(0), p * power)


def quantise(x: Floats, group: int) -> tuple[Integers, Floats]:
    """Rounds [..., n] to bytes, each group of inputs by its largest magnitude.

    Returns:
        Values [..., n / group, group] and scales [..., n / group].
    """
    groups = x.reshape(*x.shape[:-1], -1, group)
    scales = np.maximum(np.abs(groups).max(-1) * (ONE / LARGEST_BYTE), SMALLEST_SCALE)
    return np.rint(groups / scales[..., None]).astype(np.int64), scales


def rms_norm(x: Floats, weight: Floats, eps: np.float32) -> Floats:
    """Normalises [..., n] by its root mean square (arXiv 1910.07467)."""
    mean = strands(x * x) / np.float32(x.shape[-1])
    return x * (ONE / np.sqrt(mean + eps))[..., None] * weight


def layer_norm(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """Normalises one head's dimensions [..., n] (arXiv 1607.06450)."""
    size = np.float32(x.shape[-1])
    centred = x - (strands(x) / size)[..., None]
    scale = ONE / np.sqrt(strands(centred * centred) / size + HEAD_EPS)
    return centred * scale[..., None] * weight + bias


def rotate(x: Floats, cosines: Floats, sines: Floats) -> Floats:
    """Turns the halves of [..., n] by one position's angles [n / 2] (RoFormer, arXiv 2104.09864)."""
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cosines - high * sines, high * cosines + low * sines], -1)


def gated(gates: Floats, ups: Floats) -> Floats:
    """SiLU of the gates, times the ups."""
    return gates / (exponential(-gates) + ONE) * ups


@dataclass(frozen=True, slots=True)
class Linear:
    """Weights of 8 or 4 bits.

    Args:
        values: [out, in], from -127 to 127 or from -8 to 7.
        scales: [out] for 8 bits, [out, in / 32] for 4.
    """

    values: Integers
    scales: Floats

    def __call__(self, x: Floats) -> Floats:
        """One row [in] -> [out]."""
        if self.scales.ndim == 1:
            values, scale = quantise(x, len(x))
            return (self.values @ values[0]).astype(np.float32) * self.scales * scale[0]
        values, scales = quantise(x, GROUP)
        products = self.values.reshape(len(self.values), -1, GROUP) * values
        exact = products.sum(-1).T.astype(np.float32)
        terms = exact * (self.scales.T * scales[:, None])  # [groups, out]
        chunks = []
        for start in range(0, len(terms), CHUNK):
            total = np.zeros(terms.shape[1], np.float32)
            for term in terms[start : start + CHUNK]:
                total = total + term
            chunks.append(total)
        return pairs(np.stack(chunks))

    @classmethod
    def unpacked(cls, packed: NDArray[np.uint8], scales: NDArray[Any]) -> Linear:
        """Weights as `decoder.safetensors` packs them (docs/bundle.md)."""
        if scales.dtype == np.float32:
            values = packed.astype(np.int64) - 128  # [out / 16, in / 4, 16, 4]
            return cls(values.transpose(0, 2, 1, 3).reshape(len(scales), -1), scales)
        both = packed.astype(np.int64)  # [out / 16, in / 8, 16, 4]
        values = np.stack([both & 15, both >> 4], 2) - 8
        out = packed.shape[0] * packed.shape[2]
        wide = (scales.astype(np.uint32) << 16).view(np.float32)  # [out / 16, in / 32, 16]
        return cls(values.transpose(0, 3, 1, 2, 4).reshape(out, -1), wide.transpose(0, 2, 1).reshape(out, -1))


@dataclass(slots=True)
class HeadCache:
    """Keys and values of one head, bytes with a scale a token."""

    keys: list[Integers]
    key_scales: list[np.float32]
    values: list[Integers]
    value_scales: list[np.float32]

    def append(self, key: Floats, value: Floats) -> None:
        for numbers, scales, x in ((self.keys, self.key_scales, key), (self.values, self.value_scales, value)):
            rounded, scale = quantise(x, len(x))
            numbers.append(rounded[0])
            scales.append(scale[0])

    def attend(self, query: Floats) -> Floats:
        """One query [dim] over all positions -> [dim]."""
        rounded, scale = quantise(query, len(query))
        products = (np.stack(self.keys) @ rounded[0]).astype(np.float32)
        scores = products * np.array(self.key_scales, np.float32) * scale[0]
        scores = scores * (ONE / np.sqrt(np.float32(len(query))))
        most, sums, mixed = [], [], []
        for start in range(0, len(scores), SPAN):
            part = scores[start : start + SPAN]
            most.append(part.max())
            weights = exponential(part - most[-1])
            sums.append(strands(weights))
            scaled = weights * np.array(self.value_scales[start : start + SPAN], np.float32)
            parities = np.zeros((2, len(query)), np.float32)
            for index, (value, weight) in enumerate(zip(self.values[start : start + SPAN], scaled, strict=True)):
                parities[index % 2] = parities[index % 2] + value.astype(np.float32) * weight
            mixed.append(parities[0] + parities[1])
        factors = exponential(np.array(most, np.float32) - max(most))
        share = ONE / pairs(np.array(sums, np.float32) * factors)
        return pairs(np.stack(mixed) * factors[:, None]) * share


class SpecifiedDecoder:
    """A decoder that computes a sequence's logits token by token.

    Args:
        dimensions: of the bundle.
        tensors: of `decoder.safetensors`, by name.
        said: its metadata.
    """

    def __init__(self, dimensions: Dimensions, tensors: dict[str, NDArray[Any]], said: dict[str, str]) -> None:
        self.d, self.tensors = dimensions, tensors
        self.linears = {
            name: Linear.unpacked(array, tensors[f"{name}.scale"]) for name, array in tensors.items() if array.ndim == 4
        }
        self.eps, self.norm_after = np.float32(said["norm_eps"]), said["norm_after"] == "true"

    def logits(self, tokens: Sequence[int]) -> Floats:
        """Logits of every token [tokens, vocabulary]."""
        d = self.d
        tables = rotary_tables(len(tokens), d.head_dim, d.rope_theta)
        caches = [[HeadCache([], [], [], []) for _ in range(d.kv_heads)] for _ in range(d.layers)]
        out = []
        for position, token in enumerate(tokens):
            x = self._embedding(token)
            angles = tables[0][position], tables[1][position]
            for layer in range(d.layers):
                x = self._attention(layer, x, caches[layer], angles)
                x = self._feed_forward(layer, x)
            out.append(self.linears["head"](rms_norm(x, self.tensors["norm"], self.eps)))
        return np.stack(out)

    def _embedding(self, token: int) -> Floats:
        row = self.tensors["embedding"][token]
        if row.dtype == np.int8:
            scaled: Floats = row.astype(np.float32) * self.tensors["embedding.scale"][token]
            return scaled
        return (row.astype(np.uint32) << 16).view(np.float32)

    def _attention(self, layer: int, x: Floats, caches: list[HeadCache], angles: tuple[Floats, Floats]) -> Floats:
        d, at = self.d, f"layers.{layer}."
        group = d.heads // d.kv_heads
        joined = self.linears[f"{at}qkv"](self._before(f"{at}attention_norm", x)).reshape(d.kv_heads, -1, d.head_dim)
        norms = {name: self.tensors[at + name].reshape(-1, d.head_dim) for name in ("query_norm", "key_norm")}
        biases = {name: self.tensors[f"{at}{name}.bias"].reshape(-1, d.head_dim) for name in norms}
        mixed = []
        for head, cache in enumerate(caches):
            key = layer_norm(joined[head, group], norms["key_norm"][head], biases["key_norm"][head])
            cache.append(rotate(key, *angles), joined[head, group + 1])
            for query in range(group):
                number = head * group + query
                q = layer_norm(joined[head, query], norms["query_norm"][number], biases["query_norm"][number])
                mixed.append(cache.attend(rotate(q, *angles)))
        return self._after(f"{at}attention_norm", x, self.linears[f"{at}out"](np.concatenate(mixed)))

    def _feed_forward(self, layer: int, x: Floats) -> Floats:
        at = f"layers.{layer}."
        both = self.linears[f"{at}gate_up"](self._before(f"{at}mlp_norm", x)).reshape(-1, 2, 16)
        hidden = gated(both[:, 0].reshape(-1), both[:, 1].reshape(-1))
        return self._after(f"{at}mlp_norm", x, self.linears[f"{at}down"](hidden))

    def _before(self, norm: str, x: Floats) -> Floats:
        return x if self.norm_after else rms_norm(x, self.tensors[norm], self.eps)

    def _after(self, norm: str, x: Floats, delta: Floats) -> Floats:
        return x + (rms_norm(delta, self.tensors[norm], self.eps) if self.norm_after else delta)
