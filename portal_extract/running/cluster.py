"""Units on a dask cluster: a few at a time are handed to the scheduler, counts come back."""

from __future__ import annotations

import queue
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from portal_extract.errors import ClusterError
from portal_extract.running.events import BytesRead, Note, Observer, StageAdvanced
from portal_extract.running.guard import Guard
from portal_extract.running.schedulers import Done, Place, failure_of, run_unit
from portal_extract.running.units import UnitFailure, UnitResult, UnitTask

if TYPE_CHECKING:
    from distributed import Client, Future

_LOOK_EVERY_S = 5.0
_RESULT_WITHIN_S = 60.0
_AGAIN = "what is finished is kept: run the same command again to go on"


def wait_for_threads(client: Client, observer: Observer, patience_s: float = 3600.0) -> Mapping[str, int]:
    """Give the number of dask threads of each worker; wait for the first worker.

    Raises
    ------
    ClusterError
        There is none after that time, or no scheduler.
    """
    deadline, told = time.monotonic() + patience_s, False
    while not (threads := _threads(client)):
        if time.monotonic() > deadline:
            raise ClusterError(
                f"no dask worker came within {patience_s:g} s: look at the queue and the logs of the jobs"
            )
        if not told:
            observer(Note("waiting for the first dask worker"))
            told = True
        time.sleep(0.2)
    return threads


def units_at_the_scheduler(n_slots: int) -> int:
    """Count the units handed out at a time: what can run, and some for those who finish first."""
    return n_slots + n_slots // 4 + 1


def run_on_cluster(
    tasks: Iterable[UnitTask], place: Place, guard: Guard, observer: Observer, done: Done
) -> list[UnitFailure]:
    """Run units on the workers of a dask cluster; see :func:`portal_extract.running.schedulers.run_units`.

    Few units more than can run are with the scheduler at a time. The requests in flight of all of them
    together stay within ``total_requests``, whatever number of workers comes and goes. When workers die again
    and again, dask blames every unit that they had; these are tried once more at the end, one by one.
    """
    if place.client is None:
        raise ValueError("a place without a client is no cluster")
    units = _Units(place.client, place, guard, observer)
    source, failures = iter(tasks), list[UnitFailure]()
    suspects: list[UnitTask] = []
    try:
        while True:
            if not failures or place.run.on_error == "skip":
                for task in islice(source, units.room()):
                    units.submit(task)
                if suspects and not units.n_submitted:
                    units.submit(suspects.pop(), is_last_chance=True)
            if not units.n_submitted:
                return failures
            task, outcome = units.next()
            if isinstance(outcome, UnitResult):
                observer(BytesRead(outcome.bytes_read, outcome.n_requests))
                observer(StageAdvanced("extract", outcome.n_views))
                done(outcome)
            elif outcome is None:
                suspects.append(task)
            else:
                failures.append(failure_of(task.label, task.particles, outcome, observer))
    finally:
        units.cancel()


@dataclass(frozen=True)
class _Submitted:
    """A unit that is with the scheduler, and its share of the requests in flight."""

    task: UnitTask
    share: int
    is_last_chance: bool


class _Units:
    """The units that are with the scheduler."""

    def __init__(self, client: Client, place: Place, guard: Guard, observer: Observer) -> None:
        self._client, self._place, self._guard, self._observer = client, place, guard, observer
        self._submitted: dict[Future[UnitResult], _Submitted] = {}
        self._ready: deque[tuple[_Submitted, UnitResult | Exception]] = deque()
        self._over: queue.SimpleQueue[Future[UnitResult]] = queue.SimpleQueue()
        self._n_slots, self._looked_s, self._told = place.n_slots, time.monotonic(), False

    @property
    def n_submitted(self) -> int:
        """Number of units that were handed out and not yet given back."""
        return len(self._submitted) + len(self._ready)

    def room(self) -> int:
        """Give the number of units that may be handed out now."""
        self._look()
        free = self._place.run.total_requests - sum(unit.share for unit in self._submitted.values())
        most = min(units_at_the_scheduler(self._n_slots) - len(self._submitted), free // self._share())
        return max(most, 0 if self._submitted else 1)

    def submit(self, task: UnitTask, *, is_last_chance: bool = False) -> None:
        """Hand a unit to the scheduler."""
        share = self._share()
        future: Future[UnitResult] = self._client.submit(
            run_unit,
            task,
            replace(self._place.run, requests_in_flight=share),
            self._guard,
            key=f"unit-{uuid.uuid4().hex}",
            pure=False,
        )
        self._submitted[future] = _Submitted(task, share, is_last_chance)
        future.add_done_callback(self._over.put)  # type: ignore[no-untyped-call]

    def next(self) -> tuple[UnitTask, UnitResult | Exception | None]:
        """Wait for a unit; give what came of it, None if its workers died and it may not be to blame.

        Raises
        ------
        ClusterError
            The scheduler is lost.
        """
        while not self._ready:
            try:
                futures = [self._over.get(timeout=_LOOK_EVERY_S)]
            except queue.Empty:
                self._look()
                continue
            with suppress(queue.Empty):
                while True:
                    futures.append(self._over.get_nowait())
            units = [self._submitted.pop(future) for future in futures]
            self._ready.extend(zip(units, self._outcomes(futures, units), strict=True))
        unit, outcome = self._ready.popleft()
        is_suspect = isinstance(outcome, ClusterError) and not unit.is_last_chance
        return unit.task, None if is_suspect else outcome

    def cancel(self) -> None:
        """Take back the units that are with the scheduler; those at work end by themselves."""
        futures = list(self._submitted)
        if futures and self._client.status == "running":
            try:
                self._client.cancel(futures, force=True)  # type: ignore[no-untyped-call]
            except (OSError, TimeoutError, RuntimeError):
                return

    def _outcomes(
        self, futures: Sequence[Future[UnitResult]], units: Sequence[_Submitted]
    ) -> Sequence[UnitResult | Exception]:
        """Fetch results, all of them in one request if that goes well."""
        if len(futures) > 1 and all(future.status == "finished" for future in futures):
            with suppress(Exception):
                results: Sequence[UnitResult] = self._client.gather(futures)  # type: ignore[no-untyped-call]
                return results
        return [_outcome(future, unit.task.label) for future, unit in zip(futures, units, strict=True)]

    def _share(self) -> int:
        """Give the requests in flight of one unit."""
        run, n_units = self._place.run, units_at_the_scheduler(self._n_slots)
        return max(1, min(run.requests_in_flight, run.total_requests // n_units))

    def _look(self) -> None:
        """See, now and then, how many workers there are."""
        if time.monotonic() - self._looked_s < _LOOK_EVERY_S:
            return
        self._n_slots = sum(_threads(self._client).values())
        if self._n_slots == 0 and not self._told:
            self._observer(Note("no dask worker is left: waiting for another one", "warning"))
        self._told = self._n_slots == 0
        self._looked_s = time.monotonic()


def _threads(client: Client) -> Mapping[str, int]:
    try:
        threads: Mapping[str, int] = client.nthreads()  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, RuntimeError, ValueError, AttributeError) as error:
        raise ClusterError(f"the dask scheduler does not answer ({error}): {_AGAIN}") from error
    return threads


def _outcome(future: Future[UnitResult], label: str) -> UnitResult | Exception:
    from distributed import KilledWorker

    try:
        return future.result(timeout=_RESULT_WITHIN_S)
    except KilledWorker as error:
        return ClusterError(
            f"{label}: {error.allowed_failures + 1} dask workers died one after the other while they worked "
            "on it: look at their logs; if the system killed them, lower --memory or give the jobs more"
        )
    except (CancelledError, TimeoutError, OSError) as error:
        if future.status == "error" and not isinstance(error, CancelledError):
            return error
        raise ClusterError(f"the connection to the dask scheduler was lost: {_AGAIN}") from error
    except Exception as error:
        return error
