"""Where the loader gets its bytes: a fetcher with patience, or local files, in the same words."""

from __future__ import annotations

from typing import Any, Protocol

from portal_extract.errors import ChunkReadError
from portal_extract.images.store import AttemptError, Body, LocalStore
from portal_extract.running.events import BytesRead, Observer


class ByteSource(Protocol):
    """Fetches ranges of objects, as :class:`portal_extract.images.fetcher.Fetcher` does."""

    async def get(
        self,
        uri: str,
        start: int = 0,
        stop: int | None = None,
        etag: str | None = None,
        *,
        may_be_shorter: bool = False,
        unless: str | None = None,
    ) -> Body:
        """Fetch a range of an object."""
        ...


class LocalSource:
    """Ranges of local files, read at once in the calling thread: its coroutines never wait.

    Parameters
    ----------
    observer
        Told of the bytes read.
    """

    def __init__(self, observer: Observer) -> None:
        self._store = LocalStore()
        self._observer = observer

    async def get(
        self,
        uri: str,
        start: int = 0,
        stop: int | None = None,
        etag: str | None = None,
        *,
        may_be_shorter: bool = False,
        unless: str | None = None,
    ) -> Body:
        """Read a range of a file; see :class:`ByteSource`."""
        try:
            body = self._store.read(uri, start, stop)
        except AttemptError as error:
            raise ChunkReadError(uri, 1, error.cause) from error
        if stop is not None and start >= 0 and len(body.data) < stop - start and not may_be_shorter:
            raise ChunkReadError(uri, 1, f"the file ends after {body.total} bytes", (start, stop))
        self._observer(BytesRead(len(body.data)))
        return body


def finish(coroutine: Any) -> Any:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("a coroutine on local data tried to wait")
