"""Every error this package raises on purpose, and the exit code `mgpt` gives for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image


class MgptError(Exception):
    """Base of all errors that a caller can cause or must handle; the message names what helps."""

    exit_code = 1


class InvalidRequest(MgptError, ValueError):
    """A prompt, size, seed or setting that cannot be used."""

    exit_code = 2


class CheckpointError(MgptError):
    """A PyTorch checkpoint that is missing, damaged or of another family."""

    exit_code = 3


class BundleError(MgptError):
    """A compiled bundle that is missing, damaged, newer than this package, or not writable."""

    exit_code = 4


class IncompatibleEngine(MgptError):
    """No engine here can run the bundle, or more than one ONNX Runtime is installed."""

    exit_code = 5


class OutOfMemory(MgptError, MemoryError):
    """The request needs more memory than the machine has."""

    exit_code = 6


class NumericalError(MgptError, ArithmeticError):
    """The model gave NaN, or left no token to choose from."""

    exit_code = 7


class IncompleteAnswer(MgptError):
    """The model's answer broke off within a picture, or announced one that can't be.

    Attributes:
        tokens: of the open picture, from begin-of-image.
        image: its finished rows on black, where there are any.
        answer: an `Answer`, all of it so far, the partial picture last; None where the caller streams.
    """

    exit_code = 8

    def __init__(self, message: str, tokens: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.tokens = tuple(tokens)
        self.image: Image.Image | None = None
        self.answer: Any = None


class Interrupted(MgptError):
    """Ctrl-C, after what was finished has been saved."""

    exit_code = 130


class CompatibilityWarning(UserWarning):
    """Something was ignored or may differ, and the result is still usable."""
