"""The engine: patches stream in, threads compute, results go to a consumer.

Reading (in the stream's own threads), computing (in a pool) and writing (at the end of a computation)
overlap, also from one tilt series to the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from portal_extract import kernels
from portal_extract.images.boxes import PatchBatch
from portal_extract.running.ahead import Ahead, Opener


class ViewConsumer(Protocol):
    """Takes the patches of one tilt series; called from several threads at once."""

    def consume(self, which: NDArray[np.int64], patches: NDArray[np.float32]) -> None:
        """Use patches ``(n, side, side)`` of the views ``which``; the array may be overwritten."""

    def finish(self) -> None:
        """Conclude; called once, after the last patch was consumed."""


class Stream(Protocol):
    """Patches of one tilt series; iterated over once."""

    def prepare(self) -> None:
        """Look at the files, and begin to read as soon as the streams before let it."""

    def __iter__(self) -> Iterator[PatchBatch]: ...

    def close(self) -> None:
        """Stop reading, and give everything free."""


@dataclass(frozen=True)
class Opened:
    """A stream and the consumer that takes its patches."""

    stream: Stream
    consumer: ViewConsumer

    def prepare(self) -> None:
        """Prepare the stream."""
        self.stream.prepare()

    def close(self) -> None:
        """Close the stream."""
        self.stream.close()


Failed = Callable[[int, Exception], bool]
"""Told the number of a stream that failed and why; says whether further streams are to be opened."""


def run_streams(openers: Iterable[Opener[Opened]], workers: int, failed: Failed | None = None) -> None:
    """Run streams one after the other, their computations on ``workers`` threads.

    Parameters
    ----------
    openers
        Each opens a stream and its consumer, when the stream before it has been read or, if it may be
        early, while that is read.
    workers
        Number of computing threads; at most twice as many batches wait at a time.
    failed
        Called in the calling thread for each stream that fails; the others go on to their end, and further
        ones are opened if it says so. None: the first error stops everything.

    Raises
    ------
    Exception
        Without ``failed``, the first error of a stream or consumer; with it, what ``failed`` itself raises.
        In either case after the threads have come to rest.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="compute") as pool:
        engine = _Engine(pool, workers, failed or _surface)
        try:
            with Ahead(openers) as ahead:
                for number in count():
                    if ahead.is_over or not engine.is_open:
                        break
                    engine.read(number, ahead)
            engine.settle(block=True)
        except BaseException:
            engine.stop.set()
            raise


def _surface(number: int, error: Exception) -> bool:
    raise error


@dataclass
class _Unit:
    """A stream, from its opening to the end of its last computation."""

    number: int
    consumer: ViewConsumer | None = None
    pending: set[Future[None]] = field(default_factory=set)
    error: Exception | None = None
    is_read: bool = False


class _Engine:
    """The state of :func:`run_streams`; its methods are called in one thread."""

    def __init__(self, pool: ThreadPoolExecutor, workers: int, failed: Failed) -> None:
        self._pool, self._failed = pool, failed
        self._room = threading.Semaphore(2 * workers)
        self._units: list[_Unit] = []
        self.stop = threading.Event()
        self.is_open = True
        """Whether further streams are to be opened."""

    def read(self, number: int, ahead: Ahead[Opened]) -> None:
        """Read the next stream to its end, or until it fails."""
        unit = _Unit(number)
        self._units.append(unit)
        opened = self._open(unit, ahead)
        if number == 0:
            # an extraction has asked for its first pixels by now, and a sum of particles is about to
            self._pool.submit(kernels.load)
        if opened is not None:
            ahead.look_ahead()
            self._read(unit, opened)
        unit.is_read = True
        # after a failure, know what is to become of the others before another stream is opened
        self.settle(block=unit.error is not None)
        if opened is None and self.is_open:
            ahead.look_ahead()

    def _read(self, unit: _Unit, opened: Opened) -> None:
        batches = iter(opened.stream)
        try:
            while (batch := self._next(unit, batches)) is not None:
                self._room.acquire()
                self.settle(block=False)
                unit.pending.add(self._pool.submit(self._compute, batch, unit))
        finally:
            if isinstance(batches, Generator):
                batches.close()
            opened.close()

    def settle(self, block: bool) -> None:
        """Conclude the units all of whose computations are over; wait for all units if asked."""
        while True:
            for unit in list(self._units):
                done = {future for future in unit.pending if future.done()}
                unit.pending -= done
                for future in done:
                    future.result()
                if unit.is_read and not unit.pending:
                    self._units.remove(unit)
                    self._conclude(unit)
            if not block or not self._units:
                return
            wait({f for unit in self._units for f in unit.pending}, return_when=FIRST_COMPLETED)

    def _open(self, unit: _Unit, ahead: Ahead[Opened]) -> Opened | None:
        try:
            opened = ahead.take()
        except Exception as error:
            unit.error = error
            return None
        unit.consumer = opened.consumer
        return opened

    def _next(self, unit: _Unit, batches: Iterator[PatchBatch]) -> PatchBatch | None:
        if unit.error is not None:
            return None
        try:
            return next(batches, None)
        except Exception as error:
            unit.error = error
            return None

    def _compute(self, batch: PatchBatch, unit: _Unit) -> None:
        try:
            # cut even if nobody wants it any more: the reader waits for the place that it takes
            patches = batch.cut(None)
            if unit.error is None and not self.stop.is_set() and unit.consumer is not None:
                unit.consumer.consume(batch.views, patches)
        except Exception as error:
            unit.error = unit.error or error
        finally:
            self._room.release()

    def _conclude(self, unit: _Unit) -> None:
        if unit.error is None and unit.consumer is not None:
            try:
                unit.consumer.finish()
            except Exception as error:
                unit.error = error
        if unit.error is not None:
            self.is_open = self._failed(unit.number, unit.error) and self.is_open
