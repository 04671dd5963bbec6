"""Summing up particles: what a process does with the parts that it is given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from portal_extract.images.boxes import PatchBatch
from portal_extract.images.reader import Reader
from portal_extract.images.stream import PatchStream, open_patches
from portal_extract.model import Ints
from portal_extract.options import RunOptions
from portal_extract.reconstruction.accumulate import Accumulator
from portal_extract.reconstruction.budget import Budget, plan_memory
from portal_extract.reconstruction.inserter import OrderedInserter
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.reconstruction.parts import Part
from portal_extract.reconstruction.slices import SliceMaker, make_slice_maker
from portal_extract.reconstruction.stacks import stack_batches
from portal_extract.reconstruction.sums import Sums, write_sums
from portal_extract.running.ahead import Ahead, Opener
from portal_extract.running.events import Observer, StageAdvanced
from portal_extract.running.tally import Tally
from portal_extract.running.units import UnitResult

PartDone = Callable[[UnitResult], None]
"""Called when a part, and all those before it, is in the sums and nothing else is."""


@dataclass(frozen=True)
class SumTask:
    """Sum up some parts, one after the other.

    Attributes
    ----------
    parts
        What is summed.
    options
        Of the reconstruction.
    n_halves
        Half sets of the whole project.
    map_pixel_angst
        Pixel size of the map.
    path, stamp
        File that receives the sums, and what identifies the run; no file if empty.
    """

    parts: tuple[Part, ...]
    options: ReconstructOptions
    n_halves: int
    map_pixel_angst: float
    path: str = ""
    stamp: str = ""

    @property
    def particles(self) -> tuple[int, ...]:
        """Indices of the particles in the whole project."""
        return tuple(i for part in self.parts for i in part.particles)

    @property
    def label(self) -> str:
        """Name of the first tilt series."""
        return self.parts[0].name

    @property
    def may_open_early(self) -> bool:
        """No: the sums of a task take their memory when it is opened."""
        return False

    def open(
        self, run: RunOptions, workers: int, observer: Observer, reader: Reader
    ) -> tuple[SumStream, SumConsumer]:
        """Make the stream of patches of all parts, and the consumer that takes them, with sums of its own."""
        halves = [Accumulator.empty(self.options.box_size) for _ in range(self.n_halves)]
        return self.open_with(halves, run, workers, observer, reader)

    def open_with(
        self,
        halves: Sequence[Accumulator],
        run: RunOptions,
        workers: int,
        observer: Observer,
        reader: Reader,
        part_done: PartDone | None = None,
    ) -> tuple[SumStream, SumConsumer]:
        """Add to sums that are given."""
        n_tilts = max(part.project.tilt_series[0].n_tilts for part in self.parts)
        budget = plan_memory(self.options, self.n_halves, n_tilts, run, workers)
        inserter = OrderedInserter(halves, budget.n_slabs, budget.room)
        consumer = SumConsumer(self, inserter, observer, part_done)
        return SumStream(consumer, budget, reader), consumer


@dataclass(frozen=True)
class SumStream:
    """The patches of a task; see :meth:`SumConsumer.stream`."""

    consumer: SumConsumer
    budget: Budget
    reader: Reader

    def prepare(self) -> None:
        """Do nothing: parts are prepared one by one."""

    def __iter__(self) -> Iterator[PatchBatch]:
        return self.consumer.stream(self.budget, self.reader)

    def close(self) -> None:
        """Do nothing: the iterator closes what is open."""


@dataclass(frozen=True)
class _OpenPart:
    """A part that is read."""

    maker: SliceMaker
    tally: Tally
    patches: PatchStream | None
    batches: Iterator[PatchBatch]

    def prepare(self) -> None:
        if self.patches is not None:
            self.patches.prepare()

    def close(self) -> None:
        if self.patches is not None:
            self.patches.close()


@dataclass
class _Expected:
    """A batch that is on its way."""

    number: int
    part: int
    maker: SliceMaker
    views: Ints


@dataclass
class _Bad:
    """Images that were left out because they are not finite, for each particle of the task."""

    views: dict[int, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class SumConsumer:
    """Turns the patches of a task into slices, and inserts them in the order in which they were announced.

    Parameters
    ----------
    task
        What is summed.
    inserter
        Takes the slices.
    observer
        Told of the number of views done.
    part_done
        See :data:`PartDone`; None for nothing.
    """

    def __init__(
        self, task: SumTask, inserter: OrderedInserter, observer: Observer, part_done: PartDone | None
    ) -> None:
        self._task, self._inserter, self._observer, self._part_done = task, inserter, observer, part_done
        self._expected: dict[int, _Expected] = {}
        self._starts = np.concatenate([[0], np.cumsum([len(part.particles) for part in task.parts])])
        self._bad = _Bad()
        self.results: list[UnitResult] = []
        """What came of each part that is in the sums."""
        self.failed_part: int | None = None
        """Which part failed first."""

    @property
    def bad(self) -> Mapping[int, str]:
        """Particles (0-based within the task) with images that are no good, and what was done."""
        return {particle: _told(n) for particle, n in sorted(self._bad.views.items())}

    def stream(self, budget: Budget, reader: Reader) -> Iterator[PatchBatch]:
        """Patches of one part after the other; their views are counted through all parts."""
        complete, index, start = False, 0, 0
        try:
            first = 0
            with Ahead(self._openers(budget, reader)) as ahead:
                for index in range(len(self._task.parts)):
                    start = self._inserter.n_numbered
                    opened = ahead.take()
                    ahead.look_ahead()
                    try:
                        for batch in opened.batches:
                            number = self._inserter.next_number()
                            if self._inserter.has_failed:
                                return
                            views = batch.views + first
                            self._expected[int(views[0])] = _Expected(
                                number, index, opened.maker, batch.views
                            )
                            yield PatchBatch(views, partial(self._cut, index, batch))
                    finally:
                        opened.close()
                    n_views = len(opened.maker.views)
                    first += n_views
                    self._inserter.when_done(partial(self._conclude, index, opened.tally, n_views))
            complete = True
        except Exception:
            # the parts before this one are on their way: they may still be put on disk
            self._inserter.wait_for(start)
            self._fail(index)
            raise
        finally:
            if not complete:
                self._inserter.fail()

    def _openers(self, budget: Budget, reader: Reader) -> Iterator[Opener[_OpenPart]]:
        for part in self._task.parts:
            yield Opener(partial(self._open, part, budget, reader), not self._task.options.whiten)

    def _open(self, part: Part, budget: Budget, reader: Reader) -> _OpenPart:
        task, tally = self._task, Tally(self._observer)
        maker = make_slice_maker(
            part, task.options, task.n_halves, task.map_pixel_angst, budget.reading, tally
        )
        views = maker.views
        if part.stacks is not None:
            batches = stack_batches(part.stacks, views, budget.batch_views, tally)
            return _OpenPart(maker, tally, None, batches)
        patches = open_patches(views.series.image_stack, views.boxes, budget.reading, tally, reader)
        return _OpenPart(maker, tally, patches, iter(patches))

    def _cut(self, part: int, batch: PatchBatch, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
        try:
            return batch.cut(out)
        except BaseException:
            self._fail(part)
            raise

    def consume(self, which: Ints, patches: NDArray[np.float32]) -> None:
        """Make slices of patches, bring them, and insert what can be inserted."""
        expected = self._expected.pop(int(which[0]))
        try:
            batch, bad = expected.maker.make(expected.views, patches)
            if len(bad):
                self._note(expected, bad)
            del patches
            self._inserter.add(expected.number, batch)
        except BaseException:
            self._fail(expected.part)
            raise
        self._observer(StageAdvanced("extract", len(which)))

    def finish(self) -> None:
        """Write the sums if the task names a file."""
        if self._task.path:
            write_sums(self._task.path, Sums(self._task.stamp, self._inserter.halves, tuple(self.results)))

    def _fail(self, part: int) -> None:
        if not self._inserter.has_failed and self.failed_part is None:
            self.failed_part = part
        self._inserter.fail()

    def _note(self, expected: _Expected, bad: Ints) -> None:
        views = expected.maker.views
        with self._bad.lock:
            for local in views.kept[views.particle[bad]] + self._starts[expected.part]:
                self._bad.views[int(local)] = self._bad.views.get(int(local), 0) + 1

    def _conclude(self, index: int, tally: Tally, n_views: int) -> None:
        part = self._task.parts[index]
        start, stop = self._starts[index], self._starts[index + 1]
        with self._bad.lock:
            bad = {
                part.particles[i - start]: _told(n) for i, n in self._bad.views.items() if start <= i < stop
            }
        result = UnitResult(part.name, part.particles, bad, n_views, tally.bytes_read, tally.n_requests)
        self.results.append(result)
        if self._part_done is not None:
            self._part_done(result)


def _told(n: int) -> str:
    return f"{n} image{'s' if n > 1 else ''} with values that are not finite left out"
