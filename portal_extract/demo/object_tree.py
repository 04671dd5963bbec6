"""A folder tree as the buckets and objects of a store: ``root/BUCKET/key``."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import struct
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StoredObject:
    """An object: where its bytes are, and what a store tells about it.

    Attributes
    ----------
    path
        File with the bytes.
    size
        Bytes.
    modified_s
        Time of the last change, seconds since 1970.
    etag
        Entity tag with its quotes.
    """

    path: Path
    size: int
    modified_s: float
    etag: str


class ObjectTree:
    """Objects below a folder.

    Parameters
    ----------
    root
        Folder whose folders are the buckets.
    packed_suffixes
        Files with these endings followed by ``.gz`` are shown unpacked and without the ``.gz``; they are
        unpacked into a temporary folder when they are first asked for.
    """

    def __init__(self, root: Path, packed_suffixes: tuple[str, ...] = (".mrc",)) -> None:
        self.root = root.resolve()
        self.packed_suffixes = packed_suffixes
        self._lock = threading.Lock()
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None

    def buckets(self) -> list[str]:
        """Names of all buckets."""
        return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())

    def has_bucket(self, bucket: str) -> bool:
        """Whether there is such a bucket."""
        return bool(bucket) and _plain(bucket) and (self.root / bucket).is_dir()

    def find(self, bucket: str, key: str) -> StoredObject | None:
        """Look an object up; None if there is none (a folder is no object)."""
        if not all(_plain(part) for part in key.split("/")):
            return None
        path = self.root / bucket / key
        if path.is_file():
            return _describe(path, path)
        packed = path.with_name(path.name + ".gz")
        if path.name.endswith(self.packed_suffixes) and packed.is_file():
            return _describe(path, self._unpack(packed))
        return None

    def keys(self, bucket: str, prefix: str, deep: bool = True) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Walk over keys with a prefix, in no order.

        Parameters
        ----------
        bucket
            Name of an existing bucket.
        prefix
            What the keys begin with.
        deep
            Whether to enter folders below the last ``/`` of the prefix; a folder that is not entered
            yields one key that ends with ``/``.
        """
        folder = prefix.rpartition("/")[0]
        if folder and not all(_plain(part) for part in folder.split("/")):
            return
        start = self.root / bucket / folder
        if start.is_dir():
            yield from self._walk(start, f"{folder}/" if folder else "", prefix, deep)

    def listed_size(self, entry: os.DirEntry[str]) -> int:
        """Size of an object in a listing; a packed one is not unpacked for that."""
        if not self._is_packed(entry.name):
            return entry.stat().st_size
        with open(entry.path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            return int(struct.unpack("<I", file.read(4))[0])

    def listed_etag(self, entry: os.DirEntry[str]) -> str:
        """Entity tag of an object in a listing."""
        shown = entry.path.removesuffix(".gz") if self._is_packed(entry.name) else entry.path
        return _etag(Path(shown), self.listed_size(entry), entry.stat().st_mtime_ns)

    def close(self) -> None:
        """Remove what was unpacked."""
        with self._lock:
            if self._unpacked is not None:
                self._unpacked.cleanup()
                self._unpacked = None

    def _walk(
        self, folder: Path, start: str, prefix: str, deep: bool
    ) -> Iterator[tuple[str, os.DirEntry[str]]]:
        for entry in os.scandir(folder):
            if entry.is_dir():
                key = f"{start}{entry.name}/"
                if deep and (key.startswith(prefix) or prefix.startswith(key)):
                    yield from self._walk(Path(entry.path), key, prefix, deep)
                elif not deep and key.startswith(prefix):
                    yield key, entry
            else:
                name = entry.name.removesuffix(".gz") if self._is_packed(entry.name) else entry.name
                if f"{start}{name}".startswith(prefix):
                    yield f"{start}{name}", entry

    def _is_packed(self, name: str) -> bool:
        return name.endswith(tuple(f"{suffix}.gz" for suffix in self.packed_suffixes))

    def _unpack(self, packed: Path) -> Path:
        with self._lock:
            if self._unpacked is None:
                self._unpacked = tempfile.TemporaryDirectory(prefix="embedded-portal-")
            name = hashlib.sha256(str(packed).encode()).hexdigest()
            path = Path(self._unpacked.name) / name
            if not path.exists():
                partial = path.with_suffix(".partial")
                with gzip.open(packed, "rb") as source, open(partial, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                shutil.copystat(packed, partial)
                os.replace(partial, path)
        return path


def _plain(name: str) -> bool:
    """Whether a path component cannot leave its folder."""
    return name not in ("", ".", "..") and "\0" not in name


def _describe(shown: Path, path: Path) -> StoredObject:
    stat = path.stat()
    return StoredObject(path, stat.st_size, stat.st_mtime, _etag(shown, stat.st_size, stat.st_mtime_ns))


def _etag(shown: Path, size: int, modified_ns: int) -> str:
    digest = hashlib.md5(f"{shown}|{size}|{modified_ns}".encode(), usedforsecurity=False)
    return f'"{digest.hexdigest()}"'
