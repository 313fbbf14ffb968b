"""How far long work is, on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def layers_done(*, quiet: bool) -> Callable[[int, int], None]:
    """Says how far a run over a checkpoint's layers is."""
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    return lambda layer, layers: console.print(f"layer {layer} of {layers}", end="\r")
