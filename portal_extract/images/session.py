"""The event loop, the decoding threads and the store of one stream; made where they are used."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

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
from portal_extract.images.source import LocalSource, finish
from portal_extract.images.store import is_local, open_store
from portal_extract.model import ImageStack
from portal_extract.planning.regions import Regions
from portal_extract.running.events import Observer

T = TypeVar("T")

DECODE_NAME = "portal-extract-decode"


class Background:
    """An event loop in a thread of its own, and the decoding threads."""

    def __init__(self, reading: ReadOptions) -> None:
        self.pool = ThreadPoolExecutor(reading.threads, thread_name_prefix=DECODE_NAME)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="portal-extract-read", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    @property
    def is_gone(self) -> bool:
        """Whether the loop must not be waited for.

        Because the interpreter is shutting down and its threads stand still, or because a forgotten
        stream is being collected as garbage in one of its own threads.
        """
        current = threading.current_thread()
        return sys.is_finalizing() or current is self._thread or current.name.startswith(DECODE_NAME)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop to its end."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def decode(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a decoding thread."""
        return await self.loop.run_in_executor(self.pool, work, *arguments)

    def close(self) -> None:
        """Stop the loop and the threads."""
        if self.is_gone:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.pool.shutdown(wait=False, cancel_futures=True)
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.pool.shutdown(wait=True, cancel_futures=True)


class Session:
    """The store of one stream, and what is known of its files.

    Parameters
    ----------
    stack
        The tilt series.
    reading
        Memory, requests, time limits.
    observer
        Told of the bytes read.
    background
        Where the store lives.
    """

    def __init__(
        self, stack: ImageStack, reading: ReadOptions, observer: Observer, background: Background
    ) -> None:
        self.background = background
        self._stack = stack
        self._local = is_local(stack.uris[0])

        async def connect() -> Fetcher:
            return Fetcher(open_store(stack.uris[0], stack.storage, reading), reading, observer)

        self._fetcher = background.run(connect())
        if self._local:
            self.loader = UnitLoader(LocalSource(observer), reading, _at_once, is_waiting=False)
        else:
            cache = BlockCache(reading.cache_dir, reading.cache_bytes) if reading.cache_dir else None
            self.loader = UnitLoader(
                self._fetcher,
                reading,
                background.decode,
                is_waiting=True,
                cache=cache,
                versions=self._fetcher.versions,
            )

    def open(self, tilts: NDArray[np.int64]) -> dict[str, ArrayLayout]:
        """Read the layouts of the files of some tilt images, and of the first."""
        uris = [self._stack.uris[0], *(self._stack.uris[tilt] for tilt in np.unique(tilts).tolist())]
        return self.background.run(open_layouts_with(self._fetcher, uris))

    def typical_table(self, regions: Regions) -> FrameTable | None:
        """Read the table of a Blosc chunk that some regions touch."""
        coroutine = typical_table(self.loader, regions)
        table: FrameTable | None = finish(coroutine) if self._local else self.background.run(coroutine)
        return table

    def close(self) -> None:
        """Close the store, and keep the cache within its bound."""
        if self.background.is_gone:
            return
        if self.loader.cache is not None:
            self.loader.cache.trim()
        self.background.run(self._fetcher.store.close())


@contextmanager
def open_session(stack: ImageStack, reading: ReadOptions, observer: Observer) -> Iterator[Session]:
    """Open a session, and close it with all its threads and connections.

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
    reading.check()
    kinds = sorted({"" if is_local(uri) else uri.split("://")[0] for uri in stack.uris})
    if len(kinds) != 1:
        names = ", ".join(kind or "local" for kind in kinds)
        raise UnsupportedError([f"the images of one tilt series are in several kinds of store ({names})"])
    background = Background(reading)
    try:
        session = Session(stack, reading, observer, background)
        try:
            yield session
        finally:
            session.close()
    finally:
        background.close()


async def _at_once(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)
