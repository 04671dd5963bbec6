"""Stored blocks kept on a local disk, so that a second extraction fetches only what is new.

A block is kept under the address of its object, the version of the object (its ETag) and its place in it:
an object that has changed is fetched again. Each file carries a checksum; it appears whole or not at all,
so that processes may share a folder. What was used longest ago is dropped first.
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
        path = self._path(uri, etag, start, stop)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        content = data[_FRONT_BYTES:]
        if len(content) == stop - start and data[:_FRONT_BYTES] == _front(content):
            return content
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def put(self, uri: str, etag: str, start: int, content: bytes | memoryview) -> None:
        """Keep bytes of an object; see :meth:`get`. A full or failing disk is no error."""
        path = self._path(uri, etag, start, start + len(content))
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
        name = hashlib.sha256(f"{uri}\n{etag}\n{start}-{stop}".encode()).hexdigest()
        return self._folder / name[:2] / name[2:]


def _front(content: bytes | memoryview) -> bytes:
    return _MAGIC + hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
