"""Where units run: on threads of this process, or on a dask cluster.

Both call the same task on the same engine; only the place differs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from portal_extract.errors import OutputError
from portal_extract.images.options import ReadOptions
from portal_extract.images.reader import Reader, open_reader
from portal_extract.options import RunOptions
from portal_extract.running.ahead import Opener
from portal_extract.running.engine import Opened, run_streams
from portal_extract.running.events import Note, Observer
from portal_extract.running.guard import Guard
from portal_extract.running.memory import keep_freed_memory
from portal_extract.running.tally import Tally
from portal_extract.running.units import UnitConsumer, UnitFailure, UnitResult, UnitTask

if TYPE_CHECKING:
    from distributed import Client

Done = Callable[[UnitResult], None]
"""Called in the calling thread of the scheduler's process, once for each finished unit."""


@dataclass(frozen=True)
class Place:
    """Where the units of a job run.

    Attributes
    ----------
    run
        Threads, memory and requests of each unit, and what to do about one that fails.
    n_slots
        Units that run at the same time.
    client
        Of a dask cluster; None for threads of this process.
    reader
        Of this process, for units that run in it; None for one that is opened when they begin.
    """

    run: RunOptions
    n_slots: int = 1
    client: Client | None = None
    reader: Reader | None = None

    @contextmanager
    def open_reader(self) -> Iterator[Reader]:
        """Give the reader, or open one and close it again."""
        if self.reader is not None:
            yield self.reader
            return
        with open_run_reader(self.run) as reader:
            yield reader


def n_workers(run: RunOptions) -> int:
    """Give the number of computing threads of this process."""
    return run.workers or len(os.sched_getaffinity(0))


def open_run_reader(run: RunOptions) -> AbstractContextManager[Reader]:
    """Open a reader for everything that this process reads in a run."""
    return open_reader(ReadOptions.of_run(run, run.memory_bytes, 1, n_workers(run)))


def find_place(
    run: RunOptions, client: Client | None, observer: Observer, reader: Reader | None = None
) -> Place:
    """Divide threads, memory and requests between the units that run at the same time.

    A worker process with ``t`` dask threads does ``t`` units at a time; each has its part of the process's
    computing threads (``run.workers``, by default ``t``), memory and requests.

    Parameters
    ----------
    run
        Bounds of one process, and of the requests of all processes together.
    client
        Of a dask cluster; None for threads of this process.
    observer
        Told if there are no workers yet.
    reader
        See :class:`Place`.

    Raises
    ------
    ClusterError
        No worker appears.
    """
    if client is None:
        return Place(replace(run, workers=n_workers(run)), reader=reader)
    from portal_extract.running.cluster import wait_for_threads

    threads = wait_for_threads(client, observer)
    most, slots = max(threads.values()), sum(threads.values())
    return Place(
        replace(
            run,
            workers=max(1, (run.workers or most) // most),
            memory_bytes=run.memory_bytes // most,
            requests_in_flight=max(1, min(run.requests_in_flight // most, run.total_requests // slots)),
        ),
        slots,
        client,
    )


def run_units(
    tasks: Iterable[UnitTask], place: Place, guard: Guard, observer: Observer, done: Done
) -> list[UnitFailure]:
    """Run units.

    Parameters
    ----------
    tasks
        Made one by one, shortly before they run.
    place
        Where.
    guard
        Permission to write; the caller holds the folder.
    observer
        Told of what is read and done.
    done
        Told of each finished unit.

    Returns
    -------
    The units that failed. After the first one no further unit is begun, unless the run is to skip them; those
    at work are finished.

    Raises
    ------
    OutputError
        Results cannot be written; this is not skipped.
    ClusterError
        The cluster is lost.
    """
    if place.client is not None:
        from portal_extract.running.cluster import run_on_cluster

        return run_on_cluster(tasks, place, guard, observer, done)
    failures: list[UnitFailure] = []

    def failed(task: UnitTask, error: Exception) -> bool:
        failures.append(failure_of(task.label, task.particles, error, observer))
        return place.run.on_error == "skip"

    run_on_threads(tasks, place, observer, done, failed)
    return failures


def failure_of(label: str, particles: tuple[int, ...], error: Exception, observer: Observer) -> UnitFailure:
    """Say that a unit failed; raise what must stop the run in any case.

    Raises
    ------
    OutputError
        If that is what happened: where one result cannot be written, none can.
    """
    if isinstance(error, OutputError):
        raise error
    failure = UnitFailure(label, particles, error)
    observer(Note(f"{label}: {len(particles)} particles failed: {failure.cause}", "warning"))
    return failure


def run_on_threads(
    tasks: Iterable[UnitTask],
    place: Place,
    observer: Observer,
    done: Done,
    failed: Callable[[UnitTask, Exception], bool] | None = None,
) -> None:
    """Run units one after the other on the threads of this process; reading runs ahead, also to the next one.

    Parameters
    ----------
    tasks, place, observer, done
        As in :func:`run_units`.
    failed
        Told of each unit that failed; says whether further units are to be begun. None: the first error
        stops everything.

    Raises
    ------
    Exception
        Without ``failed``, the first error of a unit.
    """
    workers = n_workers(place.run)
    running: dict[int, UnitTask] = {}

    def openers(reader: Reader) -> Iterator[Opener[Opened]]:
        for number, task in enumerate(tasks):
            running[number] = task
            yield Opener(partial(open_unit, number, task, reader), task.may_open_early)

    def open_unit(number: int, task: UnitTask, reader: Reader) -> Opened:
        def finished(result: UnitResult) -> None:
            done(result)
            del running[number]

        tally = Tally(observer)
        stream, consumer = task.open(place.run, workers, tally, reader)
        return Opened(stream, _Reporting(task, consumer, tally, finished))

    def unit_failed(number: int, error: Exception) -> bool:
        if failed is None:
            raise error
        return failed(running.pop(number), error)

    with place.open_reader() as reader:
        run_streams(openers(reader), workers, unit_failed)


class _Reporting:
    """A consumer that reports its unit as done, and tells errors of writing from others."""

    def __init__(self, task: UnitTask, consumer: UnitConsumer, tally: Tally, done: Done) -> None:
        self._task, self._consumer, self._tally, self._done = task, consumer, tally, done

    def consume(self, which: NDArray[np.int64], patches: NDArray[np.float32]) -> None:
        try:
            self._consumer.consume(which, patches)
        except OSError as error:
            raise self._not_written(error) from error

    def finish(self) -> None:
        try:
            self._consumer.finish()
        except OSError as error:
            raise self._not_written(error) from error
        self._done(result_of(self._task, self._consumer, self._tally))

    def _not_written(self, error: OSError) -> OutputError:
        where = f"{self._task.label}: {error.filename}" if error.filename else self._task.label
        return OutputError(f"{where}: results cannot be written: {error.strerror or error}")


def result_of(task: UnitTask, consumer: UnitConsumer, tally: Tally) -> UnitResult:
    """Sum up a unit."""
    return UnitResult(
        label=task.label,
        particles=task.particles,
        bad={task.particles[local]: reason for local, reason in consumer.bad.items()},
        n_views=tally.n_views,
        bytes_read=tally.bytes_read,
        n_requests=tally.n_requests,
    )


def run_unit(task: UnitTask, run: RunOptions, guard: Guard) -> UnitResult:
    """Run one unit in this process, on its own; what a worker of a cluster is sent."""
    keep_freed_memory()
    results: list[UnitResult] = []
    with guard.held():
        run_on_threads([task], Place(run), Tally(), results.append)
    return results[0]
