"""Insertion in a fixed order by many threads, whichever of them brings its slices first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from portal_extract.reconstruction.accumulate import Accumulator, Slices, insert_slab, planes

Batch = tuple[Slices, ...]
"""Slices of some views, those of each half set apart."""

_POLL_S = 0.5


@dataclass(frozen=True)
class _Work:
    """What a thread has taken: entries for one slab, or a callback for which all slabs rest."""

    slab: int
    first: int
    entries: tuple[Batch, ...] = ()
    callback: Callable[[], None] | None = None


class OrderedInserter:
    """Adds numbered batches to accumulators in the order of their numbers.

    The accumulators are cut into slabs of planes. Each slab takes the batches in order; different slabs may
    be at different batches, each worked on by one thread at a time. The sums are therefore the same bits for
    any number of threads and slabs, and in whatever order batches arrive. Threads that bring a batch do the
    work; there are no others. Batches are inserted several at a time, because the sums of a slab then stay in
    the cache: only those before a callback (:meth:`when_done`) are sure to be in the sums.

    Parameters
    ----------
    halves
        One accumulator for each half set; changed in place.
    n_slabs
        About four for each thread, because planes of low frequency hold more than the others.
    room
        Most batches that are numbered and not yet inserted everywhere.
    """

    def __init__(self, halves: Sequence[Accumulator], n_slabs: int, room: int) -> None:
        self.halves = halves
        self._slabs = planes(halves[0].box, n_slabs)
        self._room = room
        self._at = [0] * len(self._slabs)
        self._busy = [False] * len(self._slabs)
        self._entries: dict[int, Batch | Callable[[], None]] = {}
        self._numbered = 0
        self._has_failed = False
        self._changed = threading.Condition()

    @property
    def has_failed(self) -> bool:
        """Whether a batch will never come, so that those after it will not be inserted."""
        return self._has_failed

    def next_number(self) -> int:
        """Give a batch its number; wait, in the calling thread, until there is room for it.

        A batch that has a number must be brought to :meth:`add`, or :meth:`fail` must be called. The batches
        before it must be on their way.
        """
        with self._changed:
            while not self._has_failed and self._numbered - min(self._at) >= self._room:
                # with a time limit, so that an interrupt from the keyboard is noticed
                self._changed.wait(_POLL_S)
            self._numbered += 1
            return self._numbered - 1

    @property
    def n_numbered(self) -> int:
        """How many batches and callbacks have a number."""
        return self._numbered

    def wait_for(self, number: int) -> None:
        """Wait until everything before a number is done, or until something has failed."""
        with self._changed:
            while not self._has_failed and min(self._at) < number:
                self._changed.wait(_POLL_S)

    def add(self, number: int, batch: Batch) -> None:
        """Bring a batch, and insert what can be inserted; may raise what a callback raises."""
        with self._changed:
            self._entries[number] = batch
        self._work()

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call back when everything numbered so far is in the sums, and nothing else.

        The callback runs in whichever thread gets there; later batches wait for it.
        """
        with self._changed:
            self._entries[self._numbered] = callback
            self._numbered += 1
        self._work()

    def fail(self) -> None:
        """Give up: a batch will not come."""
        with self._changed:
            self._has_failed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while (work := self._take()) is not None:
            try:
                if work.callback is not None:
                    work.callback()
                for batch in work.entries:
                    for half, slices in zip(self.halves, batch, strict=True):
                        insert_slab(half, slices, self._slabs[work.slab])
            except BaseException:
                self.fail()
                raise
            self._give_back(work)

    def _take(self) -> _Work | None:
        with self._changed:
            if self._has_failed:
                return None
            for slab in sorted(range(len(self._slabs)), key=self._at.__getitem__):
                first = self._at[slab]
                entry = self._entries.get(first)
                if entry is None or self._busy[slab]:
                    continue
                if callable(entry):
                    if any(self._busy) or min(self._at) < first:
                        continue
                    self._busy = [True] * len(self._slabs)
                    return _Work(slab, first, callback=entry)
                run = self._run_from(first)
                if run:
                    self._busy[slab] = True
                    return _Work(slab, first, run)
            return None

    def _run_from(self, first: int) -> tuple[Batch, ...]:
        """Batches that have come, one after the other; none if it is worth while to wait for more."""
        found: list[Batch] = []
        while isinstance(entry := self._entries.get(first + len(found)), tuple):
            found.append(entry)
        return tuple(found) if entry is not None or len(found) >= self._room // 2 else ()

    def _give_back(self, work: _Work) -> None:
        with self._changed:
            if work.callback is not None:
                self._at = [work.first + 1] * len(self._slabs)
                self._busy = [False] * len(self._slabs)
            else:
                self._at[work.slab] = work.first + len(work.entries)
                self._busy[work.slab] = False
            for number in [n for n in self._entries if n < min(self._at)]:
                del self._entries[number]
            self._changed.notify_all()
