"""What every engine offers to the decode loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mgpt_edge.runtime.sampling.sampler import Sampler

Head = Literal["image", "text"]


@dataclass(frozen=True, slots=True)
class Segment:
    """New tokens of one sequence of a cache, and of how many of the last ones logits are wanted."""

    sequence: int
    tokens: Sequence[int]
    last: int = 1


@dataclass(frozen=True, slots=True)
class Drawing:
    """Codes of a stream's picture that its engine draws by itself, a pass each.

    Args:
        sequence: the conditional one; with guidance the next one, too, holds the picture.
        tokens: of the picture so far, from begin-of-image.
        pending: the last so many of them, which the sequences don't hold yet.
        forced: [size] int32, the only token that may stand at an index of the picture, or -1.
        until: index to draw up to, exclusive; the last of them is not fed.
        sampler: draws the codes.
    """

    sequence: int
    tokens: Sequence[int]
    pending: int
    forced: NDArray[np.int32]
    until: int
    sampler: Sampler

    @property
    def guided(self) -> bool:
        return self.sampler.guidance != 1

    @property
    def sequences(self) -> range:
        """Those that the picture's tokens are fed to."""
        return range(self.sequence, self.sequence + 1 + self.guided)


class Drawer(Protocol):
    """Goes on with a picture in the sequences it belongs to."""

    def draw(self, drawing: Drawing) -> list[int]:
        """What stands in the picture at the indices from `len(drawing.tokens)` to `drawing.until`.

        Raises:
            NumericalError: as the sampler; the sequences hold no more than before.
        """


class Sequences(Protocol):
    """Cached sequences of one or several streams: of stream s, 2s is conditional and 2s + 1 unconditional."""

    streams: int

    @property
    def drawer(self) -> Drawer | None:
        """What draws codes without the host, where the engine can."""

    def length(self, sequence: int) -> int:
        """Positions of a sequence whose K/V are valid."""

    def forward(self, feeds: Sequence[Segment], head: Head) -> list[NDArray[np.float32]]:
        """One pass over new tokens of some sequences; the others are left as they are.

        Returns:
            For each of `feeds` logits [last, ids], over the image codes or the whole vocabulary. The memory is
            used again by the next pass.
        """

    def rollback(self, sequence: int, length: int) -> None:
        """Forgets what was cached of a sequence beyond `length`."""

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """The first `length` positions of sequence `source` replace those of `target`."""


class Engine(Protocol):
    """A bundle, loaded."""

    most_streams: int
    """Streams that can share a pass."""
    most_tokens: int
    """Tokens that a sequence can hold, whatever the memory."""
    threads: int
    """Of every pass on the CPU."""

    def open(self, capacities: tuple[int, int], streams: int = 1) -> Sequences:
        """Allocates the caches of streams that share passes, in tokens a conditional and an unconditional sequence.

        Raises:
            OutOfMemory: the machine has less.
        """

    def prepare(self, *, draws: bool, reads: bool) -> None:
        """Opens what an answer needs that draws pictures or is given some: what fails, fails before the first pass.

        Raises:
            BundleError: the bundle has no VQ decoder, or no encoder; or a file changed since it was loaded.
            IncompatibleEngine: one can't be opened.
        """

    def free_bytes(self) -> int:
        """Memory that caches and pictures can have, where this engine keeps them."""

    def decode_pixels(self, codes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Image codes [h, w] -> pixels [H, W, 3]."""

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Pixels [H, W, 3] -> image codes [h, w]."""
