"""Stored blocks and tables kept on a local disk, so that a second extraction fetches only what is new.

A block is kept under the address of its object, the version of the object (its ETag) and its place in it:
an object that has changed is fetched again. Tables, and chunks that decode only as a whole, are kept with the
version they are of; whoever takes them asks the store whether it is still the one. Each file carries a
checksum; it appears whole or not at all, so that processes may share a folder. What was used longest ago is
dropped first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from portal_extract.errors import OutputError

_MAGIC = b"PXBLOCK1"
_DIGEST_BYTES = 16
_FRONT_BYTES = len(_MAGIC) + _DIGEST_BYTES
_KEPT = 0.9
_LOOK_AFTER = 0.05


class BlockCache:
    """Stored blocks on a local disk.

    Parameters
    ----------
    folder
        Where; made if it does not exist. Nothing else should be kept in it.
    max_bytes
        Most bytes kept; checked from time to time and at the end, so that it may be exceeded by a
        twentieth for a while.

    Raises
    ------
    OutputError
        The folder cannot be made or written.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int) -> None:
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        self._unchecked_bytes = 0
        self._lock = threading.Lock()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            raise OutputError(f"the cache folder {folder} cannot be written: {error.strerror}") from error

    def get(self, uri: str, etag: str, start: int, stop: int) -> bytes | None:
        """Look bytes of an object up.

        Parameters
        ----------
        uri, etag
            The object and its version.
        start, stop
            First byte and the byte after the last.

        Returns
        -------
        bytes or None
            None if they are not there; damaged ones are removed.
        """
        return self._read(self._path(uri, etag, start, stop), stop - start)

    def _read(self, path: Path, n_bytes: int | None) -> bytes | None:
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        content = data[_FRONT_BYTES:]
        if n_bytes in (None, len(content)) and data[:_FRONT_BYTES] == _front(content):
            return content
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def put(self, uri: str, etag: str, start: int, content: bytes | memoryview) -> None:
        """Keep bytes of an object; see :meth:`get`. A full or failing disk is no error."""
        self._write(self._path(uri, etag, start, start + len(content)), content)

    def _write(self, path: Path, content: bytes | memoryview) -> None:
        temporary = None
        try:
            path.parent.mkdir(exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            with open(handle, "wb") as file:
                file.write(_front(content))
                file.write(content)
            os.replace(temporary, path)
        except OSError:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            return
        with self._lock:
            self._unchecked_bytes += len(content) + _FRONT_BYTES
            is_due = self._unchecked_bytes > _LOOK_AFTER * self._max_bytes
            if is_due:
                self._unchecked_bytes = 0
        if is_due:
            self.trim()

    def recall(self, uri: str, start: int) -> tuple[str, bytes] | None:
        """Look up what was kept of an object together with its version.

        Parameters
        ----------
        uri, start
            The object, and the first byte in it; negative from its end.

        Returns
        -------
        tuple or None
            Version of the object, and the bytes; None if they are not there.
        """
        content = self._read(self._versioned_path(uri, start), None)
        if content is None:
            return None
        etag, _, kept = content.partition(b"\n")
        return etag.decode(), kept

    def keep(self, uri: str, start: int, etag: str, content: bytes | memoryview) -> None:
        """Keep bytes of an object, in the place of those of another version; see :meth:`recall`."""
        self._write(self._versioned_path(uri, start), b"".join((etag.encode(), b"\n", content)))

    def forget(self, uri: str, start: int) -> None:
        """Drop what :meth:`keep` has kept."""
        with contextlib.suppress(OSError):
            self._versioned_path(uri, start).unlink()

    def holds(self, uri: str, etag: str, start: int, stop: int) -> bool:
        """Whether :meth:`get` will find something, as far as that can be told without reading it."""
        try:
            return self._path(uri, etag, start, stop).stat().st_size == _FRONT_BYTES + stop - start
        except OSError:
            return False

    def remembers(self, uri: str, start: int) -> bool:
        """Whether :meth:`recall` will find something, as far as that can be told without reading it."""
        return self._versioned_path(uri, start).exists()

    def trim(self) -> None:
        """Drop what was used longest ago if there is too much; one process at a time."""
        try:
            lock = open(self._folder / ".lock", "w")  # noqa: SIM115 - held in the block below
        except OSError:
            return
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return  # another process is at it
            found = sorted(self._files())
            total = sum(size for _, size, _ in found)
            if total <= self._max_bytes:
                return
            for _, size, path in found:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                total -= size
                if total <= _KEPT * self._max_bytes:
                    return

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Time of last use, size and path of all blocks."""
        for folder in os.scandir(self._folder):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for entry in os.scandir(folder.path):
                with contextlib.suppress(OSError):
                    about = entry.stat()
                    yield about.st_mtime, about.st_size, entry.path

    def _path(self, uri: str, etag: str, start: int, stop: int) -> Path:
        return self._named(f"{uri}\n{etag}\n{start}-{stop}")

    def _versioned_path(self, uri: str, start: int) -> Path:
        return self._named(f"{uri}\n{start}")

    def _named(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._folder / name[:2] / name[2:]


def _front(content: bytes | memoryview) -> bytes:
    return _MAGIC + hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
