"""Bytes in spite of faults: bounded retries, second copies of stalled requests, a limit that adapts."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any

from portal_extract.errors import ChunkReadError
from portal_extract.images.options import ReadOptions
from portal_extract.images.store import AttemptError, Body, Progress, Store
from portal_extract.running.events import BytesRead, Observer, ignore

Attempt = Callable[..., Coroutine[Any, Any, Body]]
"""Makes one attempt to fetch something; takes the ``progress`` to tell."""

LASTING_ATTEMPTS = 3
SLOWEST_BYTES_PER_S = 8192.0
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
        turn = self.turn()
        try:
            await turn
        except asyncio.CancelledError:
            self.give_up(turn)
            raise

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def turn(self, *, is_urgent: bool = False) -> asyncio.Future[None]:
        """Line up; the future is done when the request may be made, and then :meth:`leave` is due.

        Parameters
        ----------
        is_urgent
            Go before all others that wait.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if is_urgent:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        self._admit()
        return turn

    def give_up(self, turn: asyncio.Future[None]) -> None:
        """Leave the line, or the place that has just been given."""
        if turn.done() and not turn.cancelled():
            self.leave()
        else:
            turn.cancel()

    def leave(self) -> None:
        """End a request; the next in line is admitted."""
        self._active -= 1
        self._admit()

    def _admit(self) -> None:
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
    limit
        Requests in flight, shared with other fetchers; None for a limit of one's own.

    Attributes
    ----------
    versions
        Versions (ETags) of the MRC files opened, by address.
    """

    def __init__(
        self,
        store: Store,
        reading: ReadOptions,
        observer: Observer = ignore,
        limit: RequestLimit | None = None,
    ) -> None:
        self.store = store
        self._reading = reading
        self._observer = observer
        self._hedges = 0
        self.versions: dict[str, str] = {}
        self.limit = limit or RequestLimit(reading.requests_in_flight)

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
        """Fetch a range of an object.

        Parameters
        ----------
        uri, start, stop, etag, unless
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
        patience = Patience(loop.time, reading.deadline_s)
        shown = None if stop is None or start < 0 else (start, stop)
        make_attempt = partial(self.store.get, uri, start, stop, etag, unless=unless)
        attempt = 0
        while True:
            attempt += 1
            try:
                async with self.limit, patience:
                    body = await self._hedged(make_attempt, patience)
                _check_length(body, start, stop, may_be_shorter)
            except AttemptError as error:
                self._observer(BytesRead(0, 1, int(attempt > 1)))
                if error.is_throttled:
                    self.limit.slow_down(loop.time())
                last = min(LASTING_ATTEMPTS if error.is_lasting else reading.attempts, reading.attempts)
                if attempt >= last:
                    raise ChunkReadError(uri, attempt, error.cause, shown) from error
                pause_s = self._pause_s(attempt)
                if not patience.allows(pause_s):
                    cause = f"{error.cause} (given up after {reading.deadline_s:g} s)"
                    raise ChunkReadError(uri, attempt, cause, shown) from error
            else:
                self.limit.speed_up()
                self._observer(BytesRead(len(body.data), 1, int(attempt > 1)))
                return body
            await asyncio.sleep(pause_s)

    def _pause_s(self, attempt: int) -> float:
        longest = min(self._reading.backoff_limit_s, self._reading.backoff_s * 2.0 ** (attempt - 1))
        return longest * random.uniform(0.6, 1.4)

    async def _hedged(self, attempt: Attempt, patience: Patience) -> Body:
        """Make an attempt, and a second one beside it if the first stalls; the first to end wins."""
        loop = asyncio.get_running_loop()
        progress = Progress(loop.time, patience.extend)
        first = loop.create_task(attempt(progress=progress))
        wait_s = self._reading.hedge_after_s
        if wait_s is None or not self.store.tells_progress:
            return await first

        second: asyncio.Task[Body] | None = None
        turn: asyncio.Future[None] | None = None
        try:
            while True:
                copies = [task for task in (first, second) if task is not None]
                awaited: set[asyncio.Future[Any]] = {*copies}
                if turn is not None and second is None:
                    awaited.add(turn)
                left_s = max(progress.last_s + wait_s - loop.time(), 0.01) if turn is None else None
                await asyncio.wait(awaited, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                won = [task for task in copies if task.done() and task.exception() is None]
                if won:
                    return won[0].result()
                if all(task.done() for task in copies):
                    return first.result()
                stalls = loop.time() - progress.last_s >= wait_s
                if turn is None:
                    turn = self._second_turn() if stalls else None
                elif second is None and turn.done():
                    if stalls:
                        other = Progress(loop.time, patience.extend)
                        second = loop.create_task(attempt(progress=other))
                    else:
                        self._give_up(turn)
                        turn = None
        finally:
            await _cancel([task for task in (first, second) if task is not None])
            if turn is not None:
                self._give_up(turn)

    def _second_turn(self) -> asyncio.Future[None] | None:
        """Line up for a second copy of a request, before requests that have not begun; few may."""
        if self._hedges >= max(1, self.limit.allowed // 4):
            return None
        self._hedges += 1
        return self.limit.turn(is_urgent=True)

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        self._hedges -= 1
        self.limit.give_up(turn)


class Patience:
    """Limits the time spent on one object, waiting for one's turn not counted.

    Entered for each attempt. Bytes that arrive extend it, so that a slow line is no error
    while it is alive.

    Parameters
    ----------
    clock
        Tells the time in seconds.
    deadline_s
        Time allowed beside that for the bytes at the slowest rate that counts as alive.
    """

    def __init__(self, clock: Callable[[], float], deadline_s: float) -> None:
        self._clock = clock
        self._left_s = deadline_s
        self._timer: asyncio.Timeout | None = None
        self._began_s = 0.0

    def allows(self, pause_s: float) -> bool:
        """Spend time on a pause, if there is enough of it."""
        self._left_s -= pause_s
        return self._left_s > 0

    def extend(self, n_bytes: int) -> None:
        """Allow more time for bytes that have arrived."""
        more_s = n_bytes / SLOWEST_BYTES_PER_S
        self._left_s += more_s
        if self._timer is not None and not self._timer.expired():
            self._timer.reschedule((self._timer.when() or self._clock()) + more_s)

    async def __aenter__(self) -> None:
        self._began_s = self._clock()
        self._timer = asyncio.timeout(self._left_s)
        await self._timer.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        timer, self._timer = self._timer, None
        self._left_s -= self._clock() - self._began_s
        assert timer is not None
        try:
            await timer.__aexit__(kind, error, trace)
        except TimeoutError:
            self._left_s = 0.0
            raise AttemptError("no complete answer in time") from None


async def _cancel(tasks: list[asyncio.Task[Body]]) -> None:
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # taken note of
    unfinished = [task for task in tasks if not task.done()]
    for task in unfinished:
        task.cancel()
    if unfinished:
        await asyncio.gather(*unfinished, return_exceptions=True)


def _check_length(body: Body, start: int, stop: int | None, may_be_shorter: bool) -> None:
    if start < 0 or stop is None or body.is_unchanged:
        return
    if len(body.part(start, stop)) == stop - start:
        return
    end = body.start + len(body.data)
    if not may_be_shorter or body.total not in (None, end):
        raise AttemptError(f"the object ends after {end} bytes", is_lasting=True)
