"""One tilt series that is being read: its store, and what is known of its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portal_extract.errors import UnsupportedError
from portal_extract.images.blosc import FrameTable
from portal_extract.images.cache import BlockCache
from portal_extract.images.fetcher import Fetcher
from portal_extract.images.layout import ArrayLayout
from portal_extract.images.loader import UnitLoader
from portal_extract.images.opening import open_layouts_with
from portal_extract.images.options import ReadOptions
from portal_extract.images.probing import typical_table
from portal_extract.images.reader import Reader, open_reader
from portal_extract.images.source import LocalSource, finish
from portal_extract.images.store import is_local
from portal_extract.model import ImageStack
from portal_extract.planning.regions import Regions
from portal_extract.running.events import Observer


class Session:
    """The store of one tilt series, and what is known of its files.

    Parameters
    ----------
    stack
        The tilt series.
    reading
        Memory, requests, time limits.
    observer
        Told of the bytes read.
    reader
        Where the store lives.

    Raises
    ------
    UnsupportedError
        Files of one tilt series in stores of different kinds, or a cache for a store that tells no versions.
    """

    def __init__(self, stack: ImageStack, reading: ReadOptions, observer: Observer, reader: Reader) -> None:
        kinds = sorted({"" if is_local(uri) else uri.split("://")[0] for uri in stack.uris})
        if len(kinds) != 1:
            names = ", ".join(kind or "local" for kind in kinds)
            raise UnsupportedError([f"the images of one tilt series are in several kinds of store ({names})"])
        self.reader = reader
        self._stack = stack
        self._local = is_local(stack.uris[0])

        async def connect() -> Fetcher:
            store = await reader.store(stack.uris[0], stack.storage)
            return Fetcher(store, reading, observer, reader.limit)

        self._fetcher = reader.run(connect())
        if reading.cache_dir and not self._local and not self._fetcher.store.tells_versions:
            raise UnsupportedError(
                [
                    f"{stack.uris[0]}: the cache needs to know when an object changes, which this kind of "
                    "store does not tell; leave out --cache-dir"
                ]
            )
        if self._local:
            self.loader = UnitLoader(LocalSource(observer), reading, _at_once, is_waiting=False)
        else:
            cache = BlockCache(reading.cache_dir, reading.cache_bytes) if reading.cache_dir else None
            self.loader = UnitLoader(
                self._fetcher,
                reading,
                reader.decode,
                is_waiting=True,
                cache=cache,
                versions=self._fetcher.versions,
            )

    def open(self, tilts: NDArray[np.int64]) -> dict[str, ArrayLayout]:
        """Read the layouts of the files of some tilt images, and of the first."""
        uris = [self._stack.uris[0], *(self._stack.uris[tilt] for tilt in np.unique(tilts).tolist())]
        known = self.reader.known(uris[0], self._stack.storage)
        return self.reader.run(open_layouts_with(self._fetcher, uris, known))

    def typical_table(self, regions: Regions) -> FrameTable | None:
        """Read the table of a Blosc chunk that some regions touch."""
        coroutine = typical_table(self.loader, regions)
        table: FrameTable | None = finish(coroutine) if self._local else self.reader.run(coroutine)
        return table

    def close(self) -> None:
        """Keep the cache within its bound."""
        if self.loader.cache is not None and not self.reader.is_gone:
            self.loader.cache.trim()


@contextmanager
def open_session(stack: ImageStack, reading: ReadOptions, observer: Observer) -> Iterator[Session]:
    """Open a session with a reader of its own, and close both.

    Parameters
    ----------
    stack
        The tilt series.
    reading
        Memory, requests, time limits.
    observer
        Told of the bytes read.

    Raises
    ------
    UsageError
        The options make no sense.
    UnsupportedError
        Files of one tilt series in stores of different kinds.
    """
    with open_reader(reading) as reader:
        session = Session(stack, reading, observer, reader)
        try:
            yield session
        finally:
            session.close()


async def _at_once(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)
