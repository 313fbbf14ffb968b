"""A bundle on disk, checked in this order: schema, sizes, hashes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mgpt_edge.runtime.bundle.manifest import FileEntry, Manifest
from mgpt_edge.runtime.errors import BundleError
from mgpt_edge.runtime.files import write_atomically
from mgpt_edge.runtime.machine import cache_folder

if TYPE_CHECKING:
    import os

MANIFEST = "manifest.json"
LARGEST_MANIFEST_BYTES = 1 << 20
CHUNK_BYTES = 1 << 22


def default_bundle() -> Path:
    """Folder of the small model that comes with the package; it is only read, so it may be read-only."""
    return Path(__file__).resolve().parents[2] / "models" / "mini" / "bundle"  # the same in source tree and wheel


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder whose manifest and files have been checked.

    Args:
        folder: of the files.
        manifest: what they are.
        seen: of each file, when it was checked: device, number, size and time in ns.
    """

    folder: Path
    manifest: Manifest
    seen: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Bundle:
        """Reads the manifest, then compares every file's size and hash with it.

        A hash that was found right is remembered by the file's path, size and time, in the user's cache
        folder where that can be written.

        Raises:
            BundleError: no bundle, a damaged one, or one of a newer schema.
        """
        bundle = cls.peek(folder)
        for name, entry in bundle.manifest.files.items():
            bundle.check_size(name, entry)
        known = _Known.load()
        for name, entry in bundle.manifest.files.items():
            path = bundle.folder / name
            if not known.holds(path, entry.sha256):
                bundle.check_hash(name, entry)
                known.add(path, entry.sha256)
            bundle.seen[name] = _state(path)
        known.save()
        return bundle

    def check_unchanged(self) -> None:
        """Compares the files with what they were when the bundle was opened: weights are mapped, not read.

        A file that was replaced by another, or removed, is no matter: what is mapped is the old one.

        Raises:
            BundleError: one was written to, or cut short.
        """
        for name, (device, number, *rest) in self.seen.items():
            try:
                now = _state(self.folder / name)
            except OSError:
                continue
            if now[:2] == (device, number) and now[2:] != tuple(rest):
                msg = f"{self.folder / name} was written to after it was loaded; load the bundle again"
                raise BundleError(msg)

    @classmethod
    def peek(cls, folder: str | os.PathLike[str]) -> Bundle:
        """Reads the manifest only."""
        folder = Path(folder)
        path = folder / MANIFEST
        try:
            if path.stat().st_size > LARGEST_MANIFEST_BYTES:
                msg = f"{path} is larger than a manifest can be ({LARGEST_MANIFEST_BYTES} bytes)"
                raise BundleError(msg)
            data = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            msg = (
                f"{folder} is no bundle: it has no {MANIFEST}; "
                f"make one with: mgpt export CHECKPOINT -o {folder.name or 'BUNDLE'}"
            )
            raise BundleError(msg) from error
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            msg = f"{path} can't be read: {error}"
            raise BundleError(msg) from error
        return cls(folder, Manifest.from_json(data))

    def verify(self) -> None:
        """Compares every file's size and hash with the manifest, whatever is remembered.

        Raises:
            BundleError: a file is missing or damaged.
        """
        for name, entry in self.manifest.files.items():
            self.check_size(name, entry)
            self.check_hash(name, entry)

    def path(self, name: str) -> Path:
        """Path of one of the bundle's files.

        Raises:
            BundleError: the manifest does not list it.
        """
        if name not in self.manifest.files:
            msg = f"{self.folder} has no {name}, which this needs; export the checkpoint again with its VQ files (--vq)"
            raise BundleError(msg)
        return self.folder / name

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest without its plans: names the bundle, since the manifest holds every file's hash."""
        data = self.manifest.to_json()
        for name in data.pop("plans", {}):
            del data["files"][name]
        text = json.dumps(data, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def check_size(self, name: str, entry: FileEntry) -> None:
        """Raises `BundleError` where a file is missing or longer or shorter than the manifest says."""
        path = self.folder / name
        if path.is_symlink() and not path.resolve().is_file():
            found = "a broken link"
        elif not path.is_file():
            found = "no such file"
        elif (size := path.stat().st_size) != entry.bytes:
            found = f"{size} bytes"
        else:
            return
        msg = f"{path}: expected {entry.bytes} bytes, got {found}; copy the bundle again or export it again"
        raise BundleError(msg)

    def check_hash(self, name: str, entry: FileEntry) -> None:
        """Raises `BundleError` where a file holds something else than the manifest says."""
        digest = sha256(self.folder / name)
        if digest != entry.sha256:
            msg = (
                f"{self.folder / name} is damaged: SHA-256 {digest[:16]}…, the manifest says {entry.sha256[:16]}…; "
                "copy the bundle again or export it again"
            )
            raise BundleError(msg)


class _Known:
    """Which files had the right hash: a JSON file of path -> [size, time in ns, hash]; without a cache folder, none."""

    def __init__(self, path: Path | None, entries: dict[str, list[object]]) -> None:
        self.path, self.entries, self.changed = path, entries, False

    @classmethod
    def load(cls) -> _Known:
        folder = cache_folder()
        path = None if folder is None else folder / "verified.json"
        try:
            entries = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            entries = {}
        return cls(path, entries if isinstance(entries, dict) else {})

    def holds(self, path: Path, digest: str) -> bool:
        return self.entries.get(str(path.resolve())) == self._entry(path, digest)

    def add(self, path: Path, digest: str) -> None:
        self.entries[str(path.resolve())] = self._entry(path, digest)
        self.changed = True

    def save(self) -> None:
        if not self.changed or self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(self.entries).encode())
        except OSError:
            return  # a read-only home: the next load hashes again

    @staticmethod
    def _entry(path: Path, digest: str) -> list[object]:
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns, digest]


def _state(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
