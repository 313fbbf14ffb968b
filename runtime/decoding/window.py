"""How many codes to guess ahead: as many as pay, by what passes cost here and how often guesses were right."""

from __future__ import annotations

from dataclasses import dataclass, field

from mgpt_edge.runtime.intake.request import LARGEST_WINDOW

WIDTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Windows to choose from; wider ones gained nothing (measured, docs/decisions.md)."""
MEMORY = 0.9  # of the moving averages
HOPELESS = 0.8  # of the best rate: no wider window is tried
TRIALS = 3  # passes of each width before its cost is trusted


@dataclass(slots=True)
class Costs:
    """Seconds of a pass by its number of guesses, learnt while running and shared by an engine's streams."""

    seconds: dict[int, float] = field(default_factory=dict)
    trials: dict[int, int] = field(default_factory=dict)

    def note(self, guesses: int, seconds: float) -> None:
        """The least time of a few, then a slow average: the first passes of a shape warm up."""
        tried = self.trials.get(guesses, 0)
        self.trials[guesses] = tried + 1
        known = self.seconds.get(guesses, seconds)
        self.seconds[guesses] = (
            min(known, seconds) if tried < TRIALS else MEMORY * known + (1 - MEMORY) * min(seconds, 2 * known)
        )

    def known(self, guesses: int) -> bool:
        return self.trials.get(guesses, 0) >= TRIALS


class Window:
    """A fixed number of guesses, or one that adapts.

    Args:
        fixed: always as many; None adapts.
        costs: of passes.
    """

    def __init__(self, fixed: int | None, costs: Costs) -> None:
        self.fixed = fixed
        self.costs = costs
        self.tried = [1.0] * LARGEST_WINDOW  # passes with more than so many guesses, fading
        self.hit = [0.7**depth for depth in range(1, LARGEST_WINDOW + 1)]  # of them, with so many right and one more

    def choose(self) -> int:
        """Guesses for the next pass."""
        if self.fixed is not None:
            return self.fixed
        best, highest = 0, 0.0
        for width in WIDTHS:
            if not self.costs.known(width):
                return width
            rate = self.tokens(width) / self.costs.seconds[width]
            if rate > highest:
                best, highest = width, rate
            elif rate < HOPELESS * highest:
                break  # wider ones cost more yet, and each further guess is right less often
        return best

    def tokens(self, width: int) -> float:
        """Tokens that a pass with so many guesses is expected to give."""
        return 1 + sum(self.hit[depth] / self.tried[depth] for depth in range(width))

    def cost(self, guesses: int, seconds: float) -> None:
        """A pass took so long."""
        self.costs.note(guesses, seconds)

    def learn(self, guesses: int, right: int) -> None:
        """Of a pass' guesses the first `right` were drawn."""
        for depth in range(min(guesses, LARGEST_WINDOW)):
            self.tried[depth] = MEMORY * self.tried[depth] + 1
            self.hit[depth] = MEMORY * self.hit[depth] + (right > depth)
