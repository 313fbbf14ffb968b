"""What every engine offers to the decode loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

Head = Literal["image", "text"]


class Rows(Protocol):
    """The cached rows of one stream: row 0 is conditional, row 1 unconditional."""

    @property
    def lengths(self) -> tuple[int, int]:
        """Positions whose K/V are valid, a number a row."""

    def forward(self, tokens: tuple[Sequence[int], Sequence[int]], head: Head) -> NDArray[np.float32]:
        """One pass over new tokens of both rows; a row without tokens is left as it is.

        Returns:
            Logits [2, ids] of each row's last token, over the image codes or the whole vocabulary. The
            memory is used again by the next pass; the row of an idle one holds nothing of use.
        """

    def forward_every(
        self, tokens: tuple[Sequence[int], Sequence[int]], last: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """One pass as `forward`, with the image logits of the last `last` tokens of each row that has any.

        Returns:
            Conditional and unconditional logits [last, codes], the latter None for an idle row. The memory is
            the caller's.
        """

    def rollback(self, lengths: tuple[int, int]) -> None:
        """Forgets what was cached beyond `lengths`."""


class Engine(Protocol):
    """A bundle's graphs, loaded."""

    def open(self, capacities: tuple[int, int]) -> Rows:
        """Allocates the cache of one stream, in tokens a row.

        Raises:
            OutOfMemory: the machine has less.
        """

    def decode_pixels(self, codes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Image codes [h, w] -> pixels [H, W, 3]."""

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Pixels [H, W, 3] -> image codes [h, w]."""
