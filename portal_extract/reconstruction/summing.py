"""From parts to sums: on threads of this process with checkpoints, or on a dask cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from portal_extract.errors import PortalExtractError
from portal_extract.extraction.views import positions_px
from portal_extract.model import Floats, Ints
from portal_extract.reconstruction.accumulate import Accumulator
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.reconstruction.parts import Part, StackImages
from portal_extract.reconstruction.sums import PREFIX, Sums, SumsFile, find_sums, write_sums
from portal_extract.reconstruction.tasks import SumConsumer, SumTask
from portal_extract.running.ahead import Opener
from portal_extract.running.engine import Opened, run_streams
from portal_extract.running.events import Note, Observer, StageAdvanced
from portal_extract.running.guard import Guard
from portal_extract.running.schedulers import Place, failure_of, n_workers, run_units
from portal_extract.running.units import UnitFailure, UnitResult

_SHARES_PER_SLOT = 3
CHECKPOINT = f"{PREFIX}checkpoint"
#: a checkpoint may cost this part of the time
_CHECKPOINT_SHARE = 0.1


@dataclass(frozen=True)
class Summed:
    """What was summed up.

    Attributes
    ----------
    halves
        An accumulator for each half set.
    results
        What is in them.
    failures
        What is not, if failures are to be skipped.
    """

    halves: list[Accumulator]
    results: list[UnitResult]
    failures: list[UnitFailure]


@dataclass(frozen=True)
class Summing:
    """Sums up parts; what an interrupted run of the same stamp left in the folder is not done again.

    Attributes
    ----------
    parts
        One for each tilt series.
    options
        Of the reconstruction.
    n_halves
        Number of half sets.
    map_pixel_angst
        Pixel size of the map.
    folder
        For partial sums.
    stamp
        Identifies the run.
    checkpoint_seconds
        Between two checkpoints, at least; 0 for one after each tilt series.
    """

    parts: tuple[Part, ...]
    options: ReconstructOptions
    n_halves: int
    map_pixel_angst: float
    folder: Path
    stamp: str
    checkpoint_seconds: float

    def run(self, place: Place, guard: Guard, observer: Observer) -> Summed:
        """Sum up what is not in a file yet.

        Raises
        ------
        PortalExtractError
            The first error, unless errors are to be skipped; what was in files by then stays there.
        """
        finished = find_sums(self.folder, self.stamp)
        if finished:
            results = [result for sums in finished for result in sums.results]
            n = sum(len(result.particles) for result in results)
            observer(Note(f"{n} particles are in the sums of an earlier run, which goes on"))
            observer(StageAdvanced("extract", sum(result.n_views for result in results)))
        if place.client is not None:
            return self._on_cluster(finished, place, guard, observer)
        return self._on_threads(finished, place, observer)

    def keep(self, summed: Summed) -> None:
        """Put everything on disk, for a run that adds what is missing."""
        path = self.folder / CHECKPOINT
        write_sums(path, Sums(self.stamp, summed.halves, tuple(summed.results)))
        for old in self.folder.glob(f"{PREFIX}*"):
            if old != path:
                old.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove partial sums."""
        for path in self.folder.glob(f"{PREFIX}*"):
            path.unlink(missing_ok=True)

    def _on_threads(self, finished: Sequence[SumsFile], place: Place, observer: Observer) -> Summed:
        workers, failures = n_workers(place.run), list[UnitFailure]()
        while True:
            done = self._add(finished, failures)
            todo = remaining_parts(self.parts, done)
            if not todo:
                return done
            task = SumTask(todo, self.options, self.n_halves, self.map_pixel_angst)
            checkpoints = _Checkpoints(self, done)
            with place.open_reader() as reader:
                stream, consumer = task.open_with(
                    done.halves, place.run, workers, observer, reader, checkpoints
                )
                try:
                    run_streams([Opener(partial(Opened, stream, consumer))], workers)
                except PortalExtractError as error:
                    if place.run.on_error != "skip" or consumer.failed_part is None:
                        raise
                    failures.append(self._skip(consumer, todo, error, observer))
                else:
                    return done
            # some of the part that failed is in the sums: go back to what is on disk
            finished = find_sums(self.folder, self.stamp)

    def _skip(
        self, consumer: SumConsumer, todo: Sequence[Part], error: Exception, observer: Observer
    ) -> UnitFailure:
        part = todo[consumer.failed_part or 0]
        return failure_of(part.name, part.particles, error, observer)

    def _on_cluster(
        self, finished: Sequence[SumsFile], place: Place, guard: Guard, observer: Observer
    ) -> Summed:
        todo = remaining_parts(self.parts, self._known(finished, ()))
        shares = cut_shares(todo, place.n_slots)
        failures = run_units([self._task(share) for share in shares], place, guard, observer, _nothing)
        if failures and place.run.on_error == "skip":
            # a share fails as a whole: each of its tilt series gets a chance of its own
            failed = {particle for failure in failures for particle in failure.particles}
            again = [(p,) for share in shares for p in share if p.particles[0] in failed]
            failures = run_units([self._task(share) for share in again], place, guard, observer, _nothing)
        elif failures:
            raise failures[0].error
        return self._add(find_sums(self.folder, self.stamp), failures)

    def _task(self, share: tuple[Part, ...]) -> SumTask:
        path = self.folder.absolute() / f"{PREFIX}{share[0].particles[0]:08d}-{len(share)}"
        return SumTask(share, self.options, self.n_halves, self.map_pixel_angst, str(path), self.stamp)

    def _known(self, files: Sequence[SumsFile], failures: Sequence[UnitFailure]) -> Summed:
        return Summed([], [result for sums in files for result in sums.results], list(failures))

    def _add(self, files: Sequence[SumsFile], failures: Sequence[UnitFailure]) -> Summed:
        """Add partial sums, in the order of their first particle."""
        halves = [Accumulator.empty(self.options.box_size) for _ in range(self.n_halves)]
        for sums in files:
            sums.add_to(halves)
        known = self._known(files, failures)
        return Summed(halves, known.results, known.failures)


def _nothing(result: UnitResult) -> None:
    """Take no note: the file of a unit's sums says that it is done."""


class _Checkpoints:
    """Puts the sums on disk now and then."""

    def __init__(self, summing: Summing, done: Summed) -> None:
        self._summing, self._done = summing, done
        self._last, self._cost = time.monotonic(), 0.0

    def __call__(self, result: UnitResult) -> None:
        """Take note of a part that is in the sums."""
        done, summing = self._done, self._summing
        done.results.append(result)
        start, pause = time.monotonic(), summing.checkpoint_seconds
        if pause > 0 and start - self._last < max(pause, self._cost / _CHECKPOINT_SHARE):
            return
        summing.keep(done)
        self._last = time.monotonic()
        self._cost = self._last - start


def remaining_parts(parts: Sequence[Part], done: Summed) -> tuple[Part, ...]:
    """Parts without the particles that are summed up or given up."""
    known: set[int] = set()
    known.update(*(result.particles for result in done.results))
    known.update(*(failure.particles for failure in done.failures))
    todo = []
    for part in parts:
        keep = np.array([i not in known for i in part.particles], dtype=bool)
        if keep.all():
            todo.append(part)
        elif keep.any():
            todo.append(take(part, np.flatnonzero(keep)))
    return tuple(todo)


def take(part: Part, which: Ints) -> Part:
    """Pick particles of a part."""
    stacks = part.stacks
    return Part(
        particles=tuple(part.particles[i] for i in which),
        project=part.project.part(0, which),
        stored=None if part.stored is None else tuple(part.stored[i] for i in which),
        stacks=None
        if stacks is None
        else StackImages(tuple(stacks.paths[i] for i in which), stacks.premultiplied[which]),
    )


def cut_shares(parts: Sequence[Part], n_slots: int) -> list[tuple[Part, ...]]:
    """Cut parts into shares for places that work at the same time, a few for each.

    Only a tilt series that would keep one place busy after all others have ended is cut, along its tilt axis:
    its pieces read some of the same pixels.

    Parameters
    ----------
    parts
        One for each tilt series.
    n_slots
        How many places there are.

    Returns
    -------
    Shares of one or more parts each.
    """
    total = sum(len(part.particles) for part in parts)
    fair, most = (max(1, -(-total // (n * n_slots))) for n in (1, _SHARES_PER_SLOT))
    pieces: list[Part] = []
    for part in parts:
        n_pieces = -(-len(part.particles) // fair)
        order = np.argsort(_along_axis(part), kind="stable")
        cuts = [np.sort(some) for some in np.array_split(order, n_pieces)]
        pieces += [part] if n_pieces == 1 else [take(part, some) for some in cuts]
    shares: list[tuple[Part, ...]] = []
    held: list[Part] = []
    n_held = 0
    for piece in pieces:
        if held and n_held + len(piece.particles) > most:
            shares.append(tuple(held))
            held, n_held = [], 0
        held.append(piece)
        n_held += len(piece.particles)
    return [*shares, tuple(held)] if held else shares


def _along_axis(part: Part) -> Floats:
    """Coordinate of particles along the tilt axis (y of the tomogram)."""
    every = np.arange(len(part.particles), dtype=np.int64)
    points: Floats = positions_px(part.project, every, apply_offsets=False)[:, 1]
    return points
