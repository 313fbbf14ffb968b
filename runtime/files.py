"""Files that are written whole or not at all, for every room: a draft beside the file, then a rename."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DRAFT = ".mgpt-{}.tmp"
"""Names of drafts, short: a file's own name may be as long as the file system allows."""
_swept: set[Path] = set()


class Occupied(FileExistsError):
    """A folder that is to be made holds something already, or is being filled."""


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, also where power is cut."""
    replace_atomically(path, lambda draft: draft.write_bytes(data))


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a draft's path and puts the draft in the place of `path` when it is done.

    A file that is replaced keeps its permissions, a new one has those that the umask leaves; a link stays a link to the
    file that is replaced.
    """
    path = Path(os.path.realpath(path))
    sweep(path.parent)
    with _draft(path.parent) as draft:
        mode = path.stat().st_mode & 0o7777 if path.exists() else usual_mode()
        write(draft)
        draft.chmod(mode)  # some libraries let nobody but the owner read what they write
        _sync(draft)
        draft.replace(path)
        _sync(path.parent)


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """An empty file that is locked while it is a draft, so that others know it from what a kill left."""
    path = folder / DRAFT.format(secrets.token_hex(6))
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    finally:
        os.close(handle)
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes drafts of processes that are gone; once a folder and process."""
    if folder in _swept:
        return
    _swept.add(folder)
    for draft in folder.glob(DRAFT.format("*")):
        with suppress(OSError), draft.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink()


def usual_mode() -> int:
    """Returns the permissions that the umask leaves a new file."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        mask = int(next(line.split()[1] for line in status.splitlines() if line.startswith("Umask:")), 8)
    except (OSError, StopIteration):
        mask = os.umask(0)
        os.umask(mask)
    return 0o666 & ~mask


def _sync(path: Path) -> None:
    """Brings a file, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # some file systems sync no folders
            os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` at the end, or vanishes.

    An empty folder that is there already, such as a mounted volume, is filled in place: its files appear at the end.

    Raises:
        Occupied: `folder` exists and holds something, or another process is filling it.
        OSError: it can't be written.
    """
    inside = folder.is_dir()
    kept = inside and any(not path.name.startswith(".mgpt-") for path in folder.iterdir())
    if kept or (folder.exists() and not inside):
        msg = f"{folder} exists already"
        raise Occupied(msg)
    folder.parent.mkdir(parents=True, exist_ok=True)
    parent = folder if inside else folder.parent
    stem = ".mgpt-parts-" if inside else f".mgpt-parts-{folder.name[:150]}-"
    _sweep_folders(parent, stem, folder)
    draft = parent / f"{stem}{secrets.token_hex(4)}"
    draft.mkdir()
    handle = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield draft
        for path in draft.iterdir():
            _sync(path)
        if inside:
            for path in sorted(draft.iterdir(), key=lambda path: (path.name == "manifest.json", path.name)):
                path.replace(folder / path.name)
        else:
            draft.rename(folder)
        _sync(parent)
    finally:
        os.close(handle)
        shutil.rmtree(draft, ignore_errors=True)


def _sweep_folders(parent: Path, stem: str, folder: Path) -> None:
    """Removes what killed processes left; one that is alive is named."""
    for draft in parent.glob(f"{stem}{'?' * 8}"):
        handle = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"another process is writing {folder} now"
            raise Occupied(msg) from error
        except OSError:
            continue
        else:
            shutil.rmtree(draft, ignore_errors=True)
        finally:
            os.close(handle)
