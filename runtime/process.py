"""What becomes of engines when the process forks, and when the interpreter ends."""

from __future__ import annotations

import atexit
import os
import threading
from typing import Protocol
from weakref import WeakSet

from mgpt_edge.runtime import _native

LONGEST_WAIT = 60.0  # seconds for a run of ONNX Runtime to end before the interpreter does without waiting


class Guarded(Protocol):
    """What a fork or the interpreter's end would break: a lock, and native state behind it."""

    lock: threading.Lock

    def forked(self) -> None:
        """Gives up, in a forked child, what only the parent's threads could use; the lock is new already."""


_guarded: WeakSet[Guarded] = WeakSet()
_lost: list[object] = []
"""Native state of a parent process: not used again, and never freed, since that would wait for threads that are not."""


def guard(thing: Guarded) -> None:
    """Tells `thing` of forks, and holds its lock when the interpreter ends."""
    _guarded.add(thing)


def lose(thing: object) -> None:
    """Keeps a parent's native state from being freed in a child."""
    _lost.append(thing)


def _in_child() -> None:
    """The child has one thread: no lock is held by another, whatever it says."""
    for thing in list(_guarded):
        thing.lock = threading.Lock()
        thing.forked()


def _at_exit() -> None:
    """Daemon threads that compute now finish and wait; Python would end them within native code, and abort."""
    for thing in list(_guarded):
        thing.lock.acquire(timeout=LONGEST_WAIT)
    _native.end()


os.register_at_fork(after_in_child=_in_child)
atexit.register(_at_exit)
