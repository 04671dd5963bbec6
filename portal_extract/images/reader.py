"""The moving parts that all streams of a run share: event loop, decoding threads, connections, requests.

One reader serves one process. It is made where it is used, and never pickled.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from portal_extract.errors import ReadError
from portal_extract.images.fetcher import RequestLimit
from portal_extract.images.opening import Known
from portal_extract.images.options import ReadOptions
from portal_extract.images.store import Store, is_local, open_store

T = TypeVar("T")

DECODE_NAME = "portal-extract-decode"
READ_NAME = "portal-extract-read"


class Turns:
    """Lets the next stream fetch when the one before it has made its last request, and there is memory.

    So the line is never idle between two tilt series. Lives in the reader's event loop.
    """

    def __init__(self) -> None:
        self._line: deque[Turn] = deque()
        self._held: dict[Turn, int] = {}
        self._changed = asyncio.Event()

    def line_up(self, most_bytes: int) -> Turn:
        """Take a place in the line.

        Parameters
        ----------
        most_bytes
            What this stream and those before it that still hold memory may hold together.
        """
        turn = Turn(self, most_bytes)
        self._line.append(turn)
        return turn

    async def _enter(self, turn: Turn, n_bytes: int) -> None:
        while self._line[0] is not turn or not self._has_room(turn, n_bytes):
            self._changed.clear()
            await self._changed.wait()
        self._held[turn] = n_bytes

    def _has_room(self, turn: Turn, n_bytes: int) -> bool:
        others = sum(held for other, held in self._held.items() if other is not turn)
        return others == 0 or others + n_bytes <= turn.most_bytes

    def _pass_on(self, turn: Turn) -> None:
        if turn in self._line:
            self._line.remove(turn)
        self._changed.set()

    def _leave(self, turn: Turn) -> None:
        self._held.pop(turn, None)
        self._pass_on(turn)


class Turn:
    """The place of a stream in the line; see :meth:`Turns.line_up`."""

    def __init__(self, turns: Turns, most_bytes: int) -> None:
        self._turns = turns
        self.most_bytes = most_bytes

    async def enter(self, n_bytes: int) -> None:
        """Wait until one may fetch and hold so much memory."""
        await self._turns._enter(self, n_bytes)

    def pass_on(self) -> None:
        """Have the next one begin; the memory stays one's own."""
        self._turns._pass_on(self)

    def leave(self) -> None:
        """Give the memory back, and one's place in the line."""
        self._turns._leave(self)


class Reader:
    """An event loop in a thread of its own, decoding threads, and the stores that are open.

    Parameters
    ----------
    reading
        Requests in flight, time limits, number of threads.

    Attributes
    ----------
    reading
        As above.
    loop, pool
        The event loop, and the decoding threads.
    limit
        How many requests may be in flight, of all streams together.
    turns
        Which stream may fetch.
    """

    def __init__(self, reading: ReadOptions) -> None:
        self.reading = reading
        self._stores: dict[str, Store] = {}
        self._known: dict[str, Known] = {}
        self._lock = threading.Lock()
        self._is_closing = False
        self.limit = RequestLimit(reading.requests_in_flight)
        self.turns = Turns()
        self.pool = ThreadPoolExecutor(reading.threads, thread_name_prefix=DECODE_NAME)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=READ_NAME, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self._cancel_all())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    async def _cancel_all(self) -> None:
        """End what is still under way, so that nobody waits for it for ever; then close the stores."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for store in self._stores.values():
            await store.close()

    @property
    def is_gone(self) -> bool:
        """Whether the loop must not be waited for.

        Because it is closed, because the interpreter is shutting down and its threads stand still, or because
        a forgotten stream is being collected as garbage in one of its own threads.
        """
        current = threading.current_thread()
        is_own = current is self._thread or current.name.startswith(DECODE_NAME)
        return is_own or sys.is_finalizing() or self._is_closing

    def run(self, coroutine: Coroutine[Any, Any, T], meanwhile: Callable[[], object] | None = None) -> T:
        """Run a coroutine in the loop to its end.

        Parameters
        ----------
        coroutine
            Run in the loop.
        meanwhile
            Called in this thread when the coroutine has been handed over.

        Raises
        ------
        ReadError
            The reader is closed.
        """
        with self._lock:
            if self._is_closing:
                coroutine.close()
                raise ReadError("reading was ended before it could begin")
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            if meanwhile is not None:
                meanwhile()
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call(self, work: Callable[[], object]) -> None:
        """Call a function in the loop, soon; nothing happens where the reader is closed."""
        with suppress(RuntimeError):  # it is closed
            self.loop.call_soon_threadsafe(work)

    async def decode(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a decoding thread."""
        return await self.loop.run_in_executor(self.pool, work, *arguments)

    def line_up(self, most_bytes: int) -> Turn:
        """Take a place in the line of streams, in any thread; see :meth:`Turns.line_up`."""

        async def line_up() -> Turn:
            return self.turns.line_up(most_bytes)

        return self.run(line_up())

    async def store(self, uri: str, storage: Mapping[str, Any]) -> Store:
        """Find the store for an address, with its open connections, or open it."""
        key = _store_key(uri, storage)
        if key not in self._stores:
            self._stores[key] = open_store(uri, storage, self.reading)
        return self._stores[key]

    def known(self, uri: str, storage: Mapping[str, Any]) -> Known:
        """Give what has been found out of the arrays in the store for an address; it is added to."""
        return self._known.setdefault(_store_key(uri, storage), {})

    def close(self) -> None:
        """Stop the loop and the threads, and close all connections."""
        is_gone = self.is_gone
        with self._lock:
            # whatever was begun comes before the end, and is cancelled then
            self._is_closing = True
            self.call(self.loop.stop)
        if is_gone:
            self.pool.shutdown(wait=False, cancel_futures=True)
            return
        self._thread.join()
        self.pool.shutdown(wait=True, cancel_futures=True)


def _store_key(uri: str, storage: Mapping[str, Any]) -> str:
    kind = "" if is_local(uri) else uri.split("://")[0]
    return repr((kind, sorted(storage.items(), key=repr)))


@contextmanager
def open_reader(reading: ReadOptions) -> Iterator[Reader]:
    """Open a reader, and close it with all its threads and connections.

    Parameters
    ----------
    reading
        Requests in flight, time limits, number of threads.

    Raises
    ------
    UsageError
        The options make no sense.
    """
    reading.check()
    reader = Reader(reading)
    try:
        yield reader
    finally:
        reader.close()
