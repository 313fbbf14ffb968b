"""The specification of the sampler, in NumPy. The native kernels must give the same token, bit for bit.

**Noise.** ``gumbel(seed, position, id)`` is float32 and depends on nothing else.

1. Word: Philox-4x32-10 with key ``(seed mod 2^32, seed div 2^32)`` and counter ``(id >> 2, position, 0, 0)``; the
   word of the id is output number ``id & 3``. ``id`` is the vocabulary id; ``position`` is the token's absolute index
   in the conditional row.
2. ``unit(x) = (x + 0.5) 2^-32``, rounded once to float32: ``(float(x >> 16) * 65536 + (float(x & 65535) + 0.5)) *
   2^-32``. ``u = unit(x)`` and ``v = unit(~x)``, which is 1 - u without cancellation. Both lie in [2^-33, 1].
3. ``E = -log1p(-u)``: split ``v = 2^e (1 + f)`` with the mantissa in [sqrt(1/2), sqrt(2)), by integer operations on
   the bits: ``s = bits(v) - 0x3F3504F3 (mod 2^32)``, ``e = int32(s) >> 23``, ``1 + f = float((s & 0x7FFFFF) +
   0x3F3504F3)``. Where e = 0, ``f = -u`` instead: there u has the digits that v lost. ``E = -log_of_parts(e, f)``.
4. ``gumbel = -log(E)``, by the same split and the same ``log_of_parts``.

``log_of_parts(e, f)`` is ``log(2^e (1 + f))``, each operation rounded to float32 in this order and never fused: P by
Horner's rule with the coefficients below, from the highest; ``q = f*f``; ``t = (q*f)*P``; ``t = t + e*LN2_LOW``; ``t
= t - 0.5*q``; the result is ``e*LN2_HIGH + (f + t)``. NumPy's own logarithm is not used: it differs between machines.

**Sampling.** For the ids of ``[low, high)``, all arithmetic in float32, each operation rounded:

1. Guided logit: the conditional logit ``c`` where there is no unconditional row or the guidance ``s`` is 1; the
   unconditional ``u`` where ``s`` is 0; else ``u + s*(c - u)``. -0.0 becomes +0.0.
2. NaN in either row is an error, also where the id is excluded. An id is excluded where ``c``, ``u`` or the guided
   logit is -inf. Where an id that is not excluded has no guided logit (inf - inf), that is the same error. +inf is
   larger than every number.
3. Nothing left is an error. With temperature 0 the token is the largest guided logit, of equals the lowest id.
4. Top-k: ids below the k-th largest guided logit drop out; ties at the k-th stay.
5. ``score = guided / temperature + gumbel(seed, position, id)``; the token is the largest score, of equals the lowest
   id.

Step 5 draws from softmax(guided / temperature) over the top-k: the Gumbel-max trick. A temperature so small that
quotients overflow makes them equal. Guidance and temperature are rounded to float32 first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.runtime.errors import NumericalError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Words = NDArray[np.uint32]
    Floats = NDArray[np.float32]

SQRT_HALF_BITS = np.uint32(0x3F3504F3)
LN2_HIGH = np.float32(float.fromhex("0x1.62e4p-1"))
LN2_LOW = np.float32(float.fromhex("0x1.7f7d1cp-20"))
LOG1P_COEFFICIENTS = tuple(
    np.float32(float.fromhex(digits))
    for digits in (
        "0x1.555554p-2",
        "-0x1.000226p-2",
        "0x1.99a008p-3",
        "-0x1.547244p-3",
        "0x1.22da1cp-3",
        "-0x1.0d8542p-3",
        "0x1.055b6cp-3",
        "-0x1.38b582p-4",
    )
)
"""P of ``log1p(f) = f - f^2/2 + f^3 P(f)``, lowest first: a relative minimax fit on [sqrt(1/2) - 1, sqrt(2) - 1]."""


def philox4x32(counter: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike], key: tuple[int, int]) -> list[Words]:
    """The four output words of Philox-4x32-10 (Salmon et al., SC 2011) for counters that broadcast."""
    mask = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    key0, key1 = key
    for _ in range(10):
        product0 = c0 * np.uint64(0xD2511F53)
        product1 = c2 * np.uint64(0xCD9E8D57)
        c0 = (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(key0)
        c1 = product1 & mask
        c2 = (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(key1)
        c3 = product0 & mask
        key0 = (key0 + 0x9E3779B9) & 0xFFFFFFFF
        key1 = (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return [np.asarray(word).astype(np.uint32) for word in (c0, c1, c2, c3)]


def noise_words(seed: int, position: ArrayLike, ids: ArrayLike) -> Words:
    """The random word of every vocabulary id (step 1 of the noise)."""
    ids = np.asarray(ids, np.uint32)
    block = philox4x32((ids >> np.uint32(2), position, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))
    word: Words = np.choose(ids & np.uint32(3), block)
    return word


def gumbel_of_words(words: ArrayLike) -> Floats:
    """Steps 2 to 4 of the noise: float32 of the shape of ``words`` (uint32), finite for every word."""
    words = np.asarray(words, np.uint32)
    u = _unit(words)
    exponent, fraction = _log_parts(_unit(~words))
    exponential = -_log_of_parts(exponent, np.where(exponent == 0, -u, fraction))
    return -_log_of_parts(*_log_parts(exponential))


def gumbel(seed: int, position: ArrayLike, ids: ArrayLike) -> Floats:
    """Standard Gumbel noise of every id at a position.

    Args:
        seed: 0 <= seed < 2^64.
        position: index of the token in the conditional row, 0 <= position < 2^32; an array broadcasts with `ids`.
        ids: vocabulary ids, below 2^31.

    Returns:
        float32 of the shape that ``position`` and ``ids`` broadcast to.
    """
    return gumbel_of_words(noise_words(seed, position, ids))


def sample(
    cond: Floats,
    uncond: Floats | None,
    *,
    first_id: int,
    low: int,
    high: int,
    guidance: float,
    top_k: int,
    temperature: float,
    seed: int,
    position: int,
) -> int:
    """Draw one token. Arguments as `mgpt_edge.runtime.sampling.sampler.sample`, which also checks them.

    Returns:
        The vocabulary id of the token.

    Raises:
        NumericalError: for NaN in the interval, or when every id is excluded.
    """
    inside = slice(low - first_id, high - first_id)
    ids = np.arange(low, high, dtype=np.uint32)
    c = cond[inside]
    s, t = np.float32(guidance), np.float32(temperature)
    with np.errstate(all="ignore"):
        if uncond is None:
            u, guided = c, c
        else:
            u = uncond[inside]
            guided = c if s == 1 else u if s == 0 else u + s * (c - u)
        guided = guided + np.float32(0)
        given = ~((c == -np.inf) | (u == -np.inf))
        if (np.isnan(c) | np.isnan(u) | (np.isnan(guided) & given)).any():
            message = f"the logits of ids [{low}, {high}) hold NaN"
            raise NumericalError(message)
        allowed = given & (guided > -np.inf)
        if not allowed.any():
            message = f"every id of [{low}, {high}) is excluded (-inf): nothing is left to sample"
            raise NumericalError(message)
        ids, guided = ids[allowed], guided[allowed]
        if t == 0:
            return int(ids[np.argmax(guided)])
        if top_k < len(ids):
            kept = guided >= np.partition(guided, len(ids) - top_k)[len(ids) - top_k]
            ids, guided = ids[kept], guided[kept]
        score = guided / t + gumbel(seed, position, ids)
    return int(ids[np.argmax(score)])


def _unit(words: Words) -> Floats:
    high = (words >> np.uint32(16)).astype(np.float32) * np.float32(65536)
    low = (words & np.uint32(0xFFFF)).astype(np.float32) + np.float32(0.5)
    unit: Floats = (high + low) * np.float32(2.0**-32)
    return unit


def _log_parts(x: Floats) -> tuple[NDArray[np.int32], Floats]:
    shifted = np.atleast_1d(x).view(np.uint32).reshape(np.shape(x)) - SQRT_HALF_BITS
    mantissa = np.atleast_1d((shifted & np.uint32(0x7FFFFF)) + SQRT_HALF_BITS).view(np.float32).reshape(np.shape(x))
    return shifted.astype(np.int32) >> np.int32(23), mantissa - np.float32(1)


def _log_of_parts(exponent: NDArray[np.int32], f: Floats) -> Floats:
    e = exponent.astype(np.float32)
    p = np.full_like(f, LOG1P_COEFFICIENTS[-1])
    for coefficient in LOG1P_COEFFICIENTS[-2::-1]:
        p = p * f + coefficient
    square = f * f
    tail = square * f * p
    tail = tail + e * LN2_LOW
    tail = tail - np.float32(0.5) * square
    log: Floats = e * LN2_HIGH + (f + tail)
    return log
