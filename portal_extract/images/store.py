"""Where stored bytes come from: local disk, plain HTTP(S) and anonymous S3, or any fsspec file system.

A store knows nothing of retries, chunks or pixels: one call is one attempt to fetch one range of one
object. It belongs to the event loop in which it was opened and is never shared between processes.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from portal_extract.errors import AccessDeniedError, ReadError
from portal_extract.images.options import ReadOptions


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes of an object.

    Attributes
    ----------
    data
        The bytes.
    start
        Position of the first of them in the object: 0 where the store does not serve ranges.
    total
        Size of the object, if known.
    etag
        Mark of this version of the object, if the store tells one.
    is_unchanged
        The object is still of the version that was named; there are no bytes.
    """

    data: bytes | bytearray
    start: int = 0
    total: int | None = None
    etag: str | None = None
    is_unchanged: bool = False

    def part(self, start: int, stop: int | None) -> memoryview:
        """Take the bytes of a range of the object; shorter where the body ends before it."""
        view = memoryview(self.data)
        return view[max(start - self.start, 0) : None if stop is None else max(stop - self.start, 0)]


class MissingObjectError(ReadError):
    """Nothing is stored at an address. Told apart from refusal: a missing chunk is the fill value."""


class AttemptError(Exception):
    """An attempt failed and may be repeated.

    Parameters
    ----------
    cause
        What went wrong.
    is_throttled
        The store asked to slow down.
    is_lasting
        Repeating will hardly help, such as an unknown host name.
    """

    def __init__(self, cause: str, *, is_throttled: bool = False, is_lasting: bool = False) -> None:
        self.cause, self.is_throttled, self.is_lasting = cause, is_throttled, is_lasting
        super().__init__(cause)


class Progress:
    """When the last byte of a request arrived; the fetcher watches it.

    Parameters
    ----------
    clock
        Tells the time in seconds.
    tell
        Called with the number of bytes that have arrived.
    """

    __slots__ = ("clock", "last_s", "tell")

    def __init__(self, clock: Callable[[], float], tell: Callable[[int], None]) -> None:
        self.clock = clock
        self.tell = tell
        self.last_s = clock()

    def advance(self, n_bytes: int) -> None:
        """Bytes have arrived."""
        self.last_s = self.clock()
        self.tell(n_bytes)


class Store(Protocol):
    """One attempt to fetch bytes.

    Attributes
    ----------
    tells_progress
        Whether arriving bytes are told, so that a request that stalls can be told from a slow one.
    tells_versions
        Whether versions of objects may be told, so that what is kept of them can be checked.
    """

    tells_progress: bool
    tells_versions: bool

    async def get(
        self,
        uri: str,
        start: int = 0,
        stop: int | None = None,
        etag: str | None = None,
        progress: Progress | None = None,
        unless: str | None = None,
    ) -> Body:
        """Fetch a range of an object.

        Parameters
        ----------
        uri
            Address of the object.
        start, stop
            First byte and byte after the last; a negative start counts from the end of the object.
        etag
            Version of the object that is wanted, if any in particular.
        progress
            Told of arriving bytes, where the store can.
        unless
            Version of the object that is known already: if it is still the one, no bytes are wanted.

        Raises
        ------
        MissingObjectError
            There is no such object.
        AccessDeniedError
            The store refuses.
        AttemptError
            The attempt failed; another may succeed.
        """
        ...

    async def close(self) -> None:
        """Give up connections."""
        ...


class LocalStore:
    """Files on a local or mounted disk."""

    tells_progress = tells_versions = False

    async def get(
        self,
        uri: str,
        start: int = 0,
        stop: int | None = None,
        etag: str | None = None,
        progress: Progress | None = None,
        unless: str | None = None,
    ) -> Body:
        """Fetch a range of a file; see :class:`Store`."""
        return self.read(uri, start, stop)

    def read(self, uri: str, start: int = 0, stop: int | None = None) -> Body:
        """Read a range of a file, in any thread; see :class:`Store`."""
        path = local_path(uri)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise MissingObjectError(f"{path} does not exist") from None
        except PermissionError as error:
            raise AccessDeniedError(f"{path} may not be read: check its permissions") from error
        except OSError as error:
            raise AttemptError(str(error)) from error
        try:
            total = os.fstat(file).st_size
            first = max(total + start, 0) if start < 0 else start
            last = total if stop is None else min(stop, total)
            data = os.pread(file, max(last - first, 0), first)
        except IsADirectoryError:
            raise MissingObjectError(f"{path} is a folder") from None
        except OSError as error:
            raise AttemptError(str(error)) from error
        finally:
            os.close(file)
        return Body(data, first, total)

    async def close(self) -> None:
        """Nothing is held open."""


def is_local(uri: str) -> bool:
    """Whether an address is a path or a ``file://`` address."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> str:
    """Path of a local address."""
    return uri.removeprefix("file://")


def load_client() -> None:
    """Load the HTTP client, which takes a while; opening a store does it otherwise."""
    importlib.import_module("portal_extract.images.http_store")


def open_store(uri: str, storage: Mapping[str, Any], reading: ReadOptions) -> Store:
    """Open the store for an address, in a running event loop.

    Parameters
    ----------
    uri
        Any address in the store.
    storage
        ``endpoint_url``, ``region`` and ``anon`` for S3, and whatever the fsspec file system takes.
    reading
        Time limits and number of connections.
    """
    if is_local(uri):
        return LocalStore()
    from portal_extract.images.http_store import HttpStore, is_plain_http

    if is_plain_http(uri, storage):
        return HttpStore(storage, reading)
    from portal_extract.images.fsspec_store import FsspecStore

    return FsspecStore(uri.split("://")[0], storage, reading)
