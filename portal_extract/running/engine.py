"""The engine: patches stream in, threads compute, results go to a consumer.

Reading (in the stream's own threads), computing (in a pool) and writing (at the end of a computation)
overlap, also from one tilt series to the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from portal_extract.images.boxes import PatchBatch


class ViewConsumer(Protocol):
    """Takes the patches of one tilt series; called from several threads at once."""

    def consume(self, which: NDArray[np.int64], patches: NDArray[np.float32]) -> None:
        """Use patches ``(n, side, side)`` of the views ``which``.

        The array may be overwritten, and must not be kept: it serves the next batch.
        """

    def finish(self) -> None:
        """Conclude; called once, after the last patch was consumed."""


Opener = Callable[[], tuple[Iterator[PatchBatch], ViewConsumer]]


def run_streams(openers: Iterable[Opener], workers: int) -> None:
    """Run streams one after the other, their computations on ``workers`` threads.

    Parameters
    ----------
    openers
        Each opens a stream and its consumer; called when the stream before it has been read.
    workers
        Number of computing threads; at most twice as many batches wait at a time.

    Raises
    ------
    Exception
        The first error of a stream or consumer, after the threads have come to rest.
    """
    room = threading.Semaphore(2 * workers)
    failed = threading.Event()
    with ThreadPoolExecutor(workers, thread_name_prefix="compute") as pool:
        pending: set[Future[None]] = set()
        finishing: list[tuple[ViewConsumer, set[Future[None]]]] = []
        try:
            for opener in openers:
                stream, consumer = opener()
                mine: set[Future[None]] = set()
                buffers = _Buffers()
                try:
                    for batch in stream:
                        room.acquire()
                        if failed.is_set():
                            room.release()
                            break
                        future = pool.submit(_compute, batch, consumer, buffers, room, failed)
                        mine.add(future)
                finally:
                    close = getattr(stream, "close", None)
                    if close is not None:
                        close()
                pending |= mine
                finishing.append((consumer, mine))
                pending, finishing = _settle(pending, finishing, block=False)
            _settle(pending, finishing, block=True)
        except BaseException:
            failed.set()
            raise


class _Buffers(threading.local):
    """The patch array of each thread, used again for every batch of a stream.

    Fresh memory would cost more than the copy into it.
    """

    def __init__(self) -> None:
        self._array: NDArray[np.float32] | None = None

    def cut(self, batch: PatchBatch) -> NDArray[np.float32]:
        n = len(batch.views)
        if self._array is None or len(self._array) < n:
            self._array = batch.cut(None)
            return self._array
        return batch.cut(self._array[:n])


def _compute(
    batch: PatchBatch,
    consumer: ViewConsumer,
    buffers: _Buffers,
    room: threading.Semaphore,
    failed: threading.Event,
) -> None:
    try:
        patches = buffers.cut(batch)
        if not failed.is_set():
            consumer.consume(batch.views, patches)
    except BaseException:
        failed.set()
        raise
    finally:
        room.release()


def _settle(
    pending: set[Future[None]],
    finishing: list[tuple[ViewConsumer, set[Future[None]]]],
    block: bool,
) -> tuple[set[Future[None]], list[tuple[ViewConsumer, set[Future[None]]]]]:
    """Raise the errors of finished computations and finish the consumers that have all their patches."""
    if block:
        wait(pending, return_when=FIRST_EXCEPTION)
    done = {future for future in pending if future.done()}
    for future in done:
        future.result()
    rest = []
    for consumer, futures in finishing:
        if all(future.done() for future in futures):
            consumer.finish()
        else:
            rest.append((consumer, futures))
    return pending - done, rest
