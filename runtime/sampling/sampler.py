"""Draw one token from one position's logits; `specification` says what it computes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mgpt_edge.runtime import _native
from mgpt_edge.runtime.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SEED_END = 2**64
_LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


@dataclass(frozen=True, slots=True)
class Sampler:
    """The settings of one picture, checked once; a call draws one token.

    Args:
        guidance: scale of classifier-free guidance, ``u + guidance * (c - u)``; 1 is the conditional logits, 0 the
            unconditional ones.
        top_k: ids kept, at least 1; ties at the last stay.
        temperature: at least 0; 0 takes the largest logit.
        seed: 0 <= seed < 2^64.

    Raises:
        InvalidRequest: for a setting of another type or outside its range.
    """

    guidance: float
    top_k: int
    temperature: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("guidance", "temperature"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                msg = f"{name} must be a number, got {number!r}"
                raise InvalidRequest(msg)
            if not (math.isfinite(number) and abs(number) <= _LARGEST_FLOAT32):
                msg = f"{name} must be finite in float32, got {number!r}"
                raise InvalidRequest(msg)
        for name in ("top_k", "seed"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int):
                msg = f"{name} must be an integer, got {number!r}"
                raise InvalidRequest(msg)
        if self.temperature < 0:
            msg = f"temperature must be at least 0, got {self.temperature!r}"
            raise InvalidRequest(msg)
        if not 1 <= self.top_k < 2**63:
            msg = f"top_k must be at least 1 and below 2^63, got {self.top_k}"
            raise InvalidRequest(msg)
        if not 0 <= self.seed < SEED_END:
            msg = f"seed must be in [0, 2^64), got {self.seed}"
            raise InvalidRequest(msg)

    def __call__(
        self,
        cond: NDArray[np.float32],
        uncond: NDArray[np.float32] | None,
        first_id: int,
        low: int,
        high: int,
        position: int,
    ) -> int:
        """Draw the token at `position`; arguments and errors as `sample`."""
        return _native.sample(
            cond, uncond, first_id, low, high, self.guidance, self.top_k, self.temperature, self.seed, position
        )


def sample(
    cond: NDArray[np.float32],
    uncond: NDArray[np.float32] | None,
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
    """Draw one token: a pure function of its arguments, the same on every machine.

    Args:
        cond: conditional logits, float32, C-contiguous, 1-D.
        uncond: unconditional logits of the same ids, or None, which needs guidance 1.
        first_id: vocabulary id of element 0 of both.
        low: first id that may be drawn.
        high: end of the ids that may be drawn (exclusive); ``[low, high)`` lies within the logits and is not empty.
        guidance: finite; see `Sampler`.
        top_k: at least 1.
        temperature: finite, at least 0.
        seed: 0 <= seed < 2^64.
        position: index of the token in the conditional sequence, 0 <= position < 2^32.

    Returns:
        The vocabulary id.

    Raises:
        InvalidRequest: for a number out of range, or logits of different lengths.
        NumericalError: for NaN in the interval, or when every id of it is excluded by -inf.
        TypeError: for logits of another dtype, shape or layout.
    """
    return Sampler(guidance, top_k, temperature, seed)(cond, uncond, first_id, low, high, position)
