"""Bytes in spite of faults: bounded retries, second copies of stalled requests, a limit that adapts."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Any

from portal_extract.errors import ChunkReadError
from portal_extract.images.options import ReadOptions
from portal_extract.images.store import AttemptError, Body, Progress, Store
from portal_extract.running.events import BytesRead, Observer, ignore

LASTING_ATTEMPTS = 3
_SLOWER, _SLOWER_EVERY_S = 0.7, 1.0


class RequestLimit:
    """How many requests may be in flight: fewer when the store asks to slow down, slowly more again.

    Parameters
    ----------
    most
        Upper bound.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._allowed = float(most)
        self._active = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._slowed_s = -1e9

    @property
    def allowed(self) -> int:
        """Requests allowed now."""
        return max(1, int(self._allowed))

    async def __aenter__(self) -> None:
        if self._active < self.allowed and not self._waiting:
            self._active += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._active -= 1
        while self._waiting and self._active < self.allowed:
            turn = self._waiting.popleft()
            if not turn.done():
                self._active += 1
                turn.set_result(None)

    def slow_down(self, now_s: float) -> None:
        """Allow fewer requests, at most once a second."""
        if now_s - self._slowed_s >= _SLOWER_EVERY_S:
            self._slowed_s = now_s
            self._allowed = max(1.0, self._allowed * _SLOWER)

    def speed_up(self) -> None:
        """Allow a little more after a success."""
        self._allowed = min(float(self._most), self._allowed + 1.0 / self._allowed)


class Fetcher:
    """Fetches ranges of objects from a store, with patience that ends.

    Parameters
    ----------
    store
        Makes single attempts.
    reading
        Attempts, time limits, requests in flight.
    observer
        Told of the bytes that arrive.

    Attributes
    ----------
    versions
        Versions (ETags) of the MRC files opened, by address.
    """

    def __init__(self, store: Store, reading: ReadOptions, observer: Observer = ignore) -> None:
        self.store = store
        self._reading = reading
        self._observer = observer
        self.versions: dict[str, str] = {}
        self.limit = RequestLimit(reading.requests_in_flight)

    async def get(
        self,
        uri: str,
        start: int = 0,
        stop: int | None = None,
        etag: str | None = None,
        *,
        may_be_shorter: bool = False,
    ) -> Body:
        """Fetch a range of an object.

        Parameters
        ----------
        uri, start, stop, etag
            See :class:`portal_extract.images.store.Store`.
        may_be_shorter
            The object may end before ``stop``.

        Raises
        ------
        MissingObjectError, AccessDeniedError
            At once.
        ChunkReadError
            After the last attempt.
        """
        reading, loop = self._reading, asyncio.get_running_loop()
        attempt, cause = 0, "no answer in time"
        shown = None if stop is None or start < 0 else (start, stop)
        try:
            async with asyncio.timeout(reading.deadline_s):
                while True:
                    attempt += 1
                    try:
                        async with self.limit:
                            body = await self._hedged(uri, start, stop, etag)
                        _check_length(body, start, stop, may_be_shorter)
                    except AttemptError as error:
                        cause = error.cause
                        self._observer(BytesRead(0, 1, int(attempt > 1)))
                        if error.is_throttled:
                            self.limit.slow_down(loop.time())
                        last = LASTING_ATTEMPTS if error.is_lasting else reading.attempts
                        if attempt >= min(last, reading.attempts):
                            raise ChunkReadError(uri, attempt, cause, shown) from error
                    else:
                        self.limit.speed_up()
                        self._observer(BytesRead(len(body.data), 1, int(attempt > 1)))
                        return body
                    await asyncio.sleep(self._pause_s(attempt))
        except TimeoutError as error:
            raise ChunkReadError(
                uri, attempt, f"{cause} (given up after {reading.deadline_s:g} s)", shown
            ) from error

    def _pause_s(self, attempt: int) -> float:
        longest = min(self._reading.backoff_limit_s, self._reading.backoff_s * 2.0 ** (attempt - 1))
        return longest * random.uniform(0.6, 1.4)

    async def _hedged(self, uri: str, start: int, stop: int | None, etag: str | None) -> Body:
        patience = self._reading.hedge_after_s
        if patience is None:
            return await self.store.get(uri, start, stop, etag)
        loop = asyncio.get_running_loop()
        progress = Progress(loop.time)
        tasks: set[asyncio.Task[Body]] = {loop.create_task(self.store.get(uri, start, stop, etag, progress))}
        try:
            while True:
                wait_s = None if len(tasks) > 1 else max(progress.last_s + patience - loop.time(), 0.001)
                done, pending = await asyncio.wait(tasks, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                won = [task for task in done if task.exception() is None]
                if won:
                    return won[0].result()
                if done:
                    if not pending:
                        return done.pop().result()
                    tasks = pending
                elif loop.time() - progress.last_s >= patience:
                    tasks.add(loop.create_task(self.store.get(uri, start, stop, etag)))
        finally:
            await _cancel(tasks)


async def _cancel(tasks: set[asyncio.Task[Any]]) -> None:
    unfinished = [task for task in tasks if not task.done()]
    for task in unfinished:
        task.cancel()
    if unfinished:
        await asyncio.gather(*unfinished, return_exceptions=True)


def _check_length(body: Body, start: int, stop: int | None, may_be_shorter: bool) -> None:
    if start < 0 or stop is None:
        return
    if len(body.part(start, stop)) == stop - start:
        return
    end = body.start + len(body.data)
    if not may_be_shorter or body.total not in (None, end):
        raise AttemptError(f"the object ends after {end} bytes", is_lasting=True)
