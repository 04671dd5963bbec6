"""Where units run: on threads of this process, or on a dask cluster.

Both call the same task on the same engine; only the place differs.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from portal_extract.images.boxes import PatchBatch
from portal_extract.options import RunOptions
from portal_extract.running.engine import ViewConsumer, run_streams
from portal_extract.running.events import BytesRead, Observer, StageAdvanced
from portal_extract.running.tally import Tally
from portal_extract.running.units import UnitConsumer, UnitResult, UnitTask

if TYPE_CHECKING:
    from distributed import Client

Done = Callable[[UnitResult], None]
"""Called in the calling thread of the scheduler's process, once for each finished unit."""


def n_workers(run: RunOptions) -> int:
    """Give the number of computing threads of this process."""
    return run.workers or len(os.sched_getaffinity(0))


def run_on_threads(tasks: Sequence[UnitTask], run: RunOptions, observer: Observer, done: Done) -> None:
    """Run units one after the other on the threads of this process; reading runs ahead.

    Raises
    ------
    PortalExtractError
        The first error of a unit.
    """
    workers = n_workers(run)

    def opener(task: UnitTask) -> Callable[[], tuple[Iterator[PatchBatch], ViewConsumer]]:
        def open_unit() -> tuple[Iterator[PatchBatch], ViewConsumer]:
            tally = Tally(observer)
            stream, consumer = task.open(run, workers, tally)
            return stream, _Reporting(task, consumer, tally, done)

        return open_unit

    run_streams([opener(task) for task in tasks], workers)


class _Reporting:
    """A consumer that reports its unit as done."""

    def __init__(self, task: UnitTask, consumer: UnitConsumer, tally: Tally, done: Done) -> None:
        self._task, self._consumer, self._tally, self._done = task, consumer, tally, done
        self.consume = consumer.consume

    def finish(self) -> None:
        self._consumer.finish()
        self._done(result_of(self._task, self._consumer, self._tally))


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


def run_unit(task: UnitTask, run: RunOptions) -> UnitResult:
    """Run one unit in this process, on its own; what a worker of a cluster is sent."""
    results: list[UnitResult] = []
    run_on_threads([task], run, Tally(), results.append)
    return results[0]


def run_on_dask(
    tasks: Sequence[UnitTask], run: RunOptions, observer: Observer, done: Done, client: Client
) -> None:
    """Run units on the workers of a dask cluster.

    The requests in flight of all workers together stay within ``run.requests_in_flight`` for each worker
    process that the budget has room for, at least one each.

    Raises
    ------
    PortalExtractError
        The first error of a unit, after the units that run have been cancelled.
    """
    from distributed import as_completed

    workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    threads = max((w["nthreads"] for w in workers.values()), default=1)
    local = replace(
        run,
        workers=run.workers or threads,
        requests_in_flight=max(1, run.requests_in_flight // max(1, len(workers))),
    )
    futures = [
        client.submit(
            run_unit, task, local, key=f"{task.label}-{task.particles[0]}-{uuid.uuid4().hex[:8]}", pure=False
        )
        for task in tasks
    ]
    try:
        for future in as_completed(futures):  # type: ignore[no-untyped-call]
            result: UnitResult = future.result()
            observer(BytesRead(result.bytes_read, result.n_requests))
            observer(StageAdvanced("extract", result.n_views))
            done(result)
    finally:
        client.cancel(futures)  # type: ignore[no-untyped-call]
