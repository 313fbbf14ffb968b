"""What pipes and schedulers do to a command: streams that close or fill up, and signals that end it."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Terminated(BaseException):
    """A signal that ends the process, after what is under way has cleaned up behind it.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Output:
    """A stream to whose reader nothing is owed: once it is gone, what is written is dropped, and the work goes on.

    Args:
        stream: in whose place this stands.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failed: OSError | None = None  # other than a reader that left

    def write(self, text: str) -> int:
        return self._try(lambda: self.stream.write(text), len(text))

    def flush(self) -> None:
        self._try(self.stream.flush, None)

    def _try(self, act: Any, otherwise: Any) -> Any:
        try:
            return act()
        except BrokenPipeError:
            pass
        except OSError as error:
            self.failed = error
        # What is buffered, and what comes, goes nowhere: Python would try again at its end.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        return otherwise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def streams() -> Iterator[None]:
    """Puts an `Output` in the place of each standard stream that there is."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (None if stream is None else Output(stream) for stream in before)  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def lost_output() -> OSError | None:
    """Returns why what was printed is not all there, such as a full disk; None where it is, or nobody reads it."""
    if sys.stdout is None:
        return None
    sys.stdout.flush()
    return getattr(sys.stdout, "failed", None)


@contextmanager
def signals() -> Iterator[None]:
    """Makes exceptions of the signals that end a process, as far as nobody handles or ignores them already."""

    def end(number: int, _: FrameType | None) -> None:
        raise Terminated(number)

    ending = [kind for kind in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(kind) is signal.SIG_DFL]
    for kind in ending:
        signal.signal(kind, end)
    try:
        yield
    finally:
        for kind in ending:
            signal.signal(kind, signal.SIG_DFL)


def end_by(number: int) -> None:
    """Ends the process by a signal, so that whoever sent it sees that it was heeded."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
