"""Boxes of a tilt series in, float32 patches out, read ahead in the background."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from portal_extract.images.boxes import Boxes, PatchBatch
from portal_extract.images.engine import TileEngine
from portal_extract.images.mapped import can_be_mapped, mapped_batches
from portal_extract.images.options import ReadOptions
from portal_extract.images.reader import Reader, Turn, open_reader
from portal_extract.images.session import Session
from portal_extract.model import ImageStack
from portal_extract.planning.plan import plan_group
from portal_extract.planning.regions import Regions, group_regions
from portal_extract.running.events import Observer, ignore


@dataclass(frozen=True)
class Rectangles:
    """Rectangles of one size in a tilt series.

    Attributes
    ----------
    stack
        The tilt series.
    tilt
        ``(V,)`` tilt image of each rectangle.
    origin_px
        ``(V, 2)`` x and y of its first pixel.
    size_px
        Height and width.
    """

    stack: ImageStack
    tilt: NDArray[np.int64]
    origin_px: NDArray[np.int64]
    size_px: tuple[int, int]


class PatchStream:
    """Cuts rectangles from a stored tilt series, each stored block being read and decoded once; iterate once.

    Reading goes on in the background while batches are worked on. Batches come in the order that suits the
    storage. Each must be cut before long: its pixels take the place of those still to be read.

    Parameters
    ----------
    wanted
        What to cut.
    reading
        Memory, batches, requests.
    observer
        Told of bytes read; called from several threads.
    reader
        Shared with the streams before and after; None for one of its own.
    """

    def __init__(
        self,
        wanted: Rectangles,
        reading: ReadOptions,
        observer: Observer = ignore,
        reader: Reader | None = None,
    ) -> None:
        self._wanted, self._reading, self._observer = wanted, reading, observer
        self._reader = reader
        self._open = ExitStack()
        self._session: Session | None = None
        self._turn: Turn | None = None
        self._groups: list[Regions] | None = None
        self._first: TileEngine | None = None
        self._last_has_begun = False

    def prepare(self) -> None:
        """Look at the files and plan; fetching begins when the streams before have made their last requests.

        Iteration does it otherwise. May be called in another thread, while a stream before this one is read.

        Raises
        ------
        ImageFormatError, AccessDeniedError, NotFoundError, ChunkReadError, MemoryBudgetError
            The images cannot be read; the message names the file.
        """
        if self._groups is not None:
            return
        self._groups, wanted = [], self._wanted
        if not len(wanted.tilt):
            return
        self._reading.check()
        if self._reader is None:
            self._reader = self._open.enter_context(open_reader(self._reading))
        self._session = Session(wanted.stack, self._reading, self._observer, self._reader)
        self._open.callback(self._session.close)
        layouts = self._session.open(wanted.tilt)
        self._groups = group_regions(wanted.stack, layouts, wanted.tilt, wanted.origin_px, wanted.size_px)
        if not all(map(can_be_mapped, self._groups)):
            # before any stream that is prepared later, which waits until this one needs the line no more
            self._turn = self._reader.line_up(self._reading.memory_bytes)
        if not can_be_mapped(self._groups[0]):
            self._first = self._start(0)

    def __iter__(self) -> Iterator[PatchBatch]:
        try:
            self.prepare()
            for number, regions in enumerate(self._groups or []):
                if can_be_mapped(regions):
                    yield from mapped_batches(regions, self._reading, self._observer)
                    continue
                engine = self._start(number) if number or self._first is None else self._first
                try:
                    yield from self._batches_of(engine, regions)
                finally:
                    engine.stop()
        finally:
            self.close()

    def close(self) -> None:
        """Stop reading, and give everything free but what batches that were handed out still need."""
        if self._first is not None:
            self._first.stop()
        if self._turn is not None and self._reader is not None:
            # what the last engine holds it gives free itself, when the last batch has been cut
            self._reader.call(self._turn.pass_on if self._last_has_begun else self._turn.leave)
        self._open.close()

    def _start(self, number: int) -> TileEngine:
        assert self._reader is not None
        assert self._session is not None
        assert self._groups is not None
        assert self._turn is not None
        regions = self._groups[number]
        table = self._session.typical_table(regions)
        plan = plan_group(regions, None if table is None else table.header.block_bytes, self._reading, table)
        is_last = all(map(can_be_mapped, self._groups[number + 1 :]))
        engine = TileEngine(plan, self._session.loader, self._reader, self._turn, is_last=is_last)
        engine.start()
        self._last_has_begun |= is_last
        return engine

    def _batches_of(self, engine: TileEngine, regions: Regions) -> Iterator[PatchBatch]:
        batches = engine.plan.order.batches
        ready = (engine.next_batch() for _ in range(len(batches)))
        for batch in _in_turn(ready) if self._reading.in_order else ready:
            yield PatchBatch(regions.views[batches[batch]], partial(engine.cut, batch))


def stream_patches(
    stack: ImageStack, boxes: Boxes, reading: ReadOptions, observer: Observer = ignore
) -> Iterator[PatchBatch]:
    """Cut boxes from a stored tilt series; see :class:`PatchStream`.

    Parameters
    ----------
    stack
        The tilt series.
    boxes
        What to cut.
    reading
        Memory, batches, requests.
    observer
        Told of bytes read; called from several threads.

    Yields
    ------
    PatchBatch
        At most ``reading.batch_views`` boxes; each box is in one batch.

    Raises
    ------
    ImageFormatError, AccessDeniedError, NotFoundError, ChunkReadError, MemoryBudgetError
        The images cannot be read; the message names the file.
    """
    return iter(open_patches(stack, boxes, reading, observer))


def open_patches(
    stack: ImageStack,
    boxes: Boxes,
    reading: ReadOptions,
    observer: Observer = ignore,
    reader: Reader | None = None,
) -> PatchStream:
    """Make a stream of the boxes of a tilt series; nothing is read yet.

    Parameters
    ----------
    stack, boxes, reading, observer
        As for :func:`stream_patches`.
    reader
        Shared with other streams; None for one of its own.
    """
    size = (boxes.side_px, boxes.side_px)
    return PatchStream(Rectangles(stack, boxes.tilt, boxes.origin_px, size), reading, observer, reader)


def stream_tilt_images(
    stack: ImageStack, tilts: NDArray[np.int64], reading: ReadOptions, observer: Observer = ignore
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Read whole tilt images, each stored block being read and decoded once.

    Parameters
    ----------
    stack
        The tilt series.
    tilts
        ``(n,)`` which tilt images.
    reading
        Memory and requests; an image that is handed out comes on top.
    observer
        Told of bytes read.

    Yields
    ------
    int, numpy.ndarray
        A tilt image and its ``(height, width)`` float32 pixels, in the order that suits the storage.

    Raises
    ------
    ImageFormatError, AccessDeniedError, NotFoundError, ChunkReadError, MemoryBudgetError
        The images cannot be read; the message names the file.
    """
    width, height = stack.size_px
    origin, one_each = np.zeros((len(tilts), 2), dtype=np.int64), replace(reading, batch_views=1)
    for batch in PatchStream(Rectangles(stack, tilts, origin, (height, width)), one_each, observer):
        yield int(tilts[batch.views[0]]), batch.cut(None)[0]


def read_tilt_region(
    stack: ImageStack,
    tilts: tuple[int, int],
    rows: tuple[int, int],
    columns: tuple[int, int],
    reading: ReadOptions,
    observer: Observer = ignore,
) -> NDArray[np.float32]:
    """Read the same part of several tilt images.

    Parameters
    ----------
    stack
        The tilt series.
    tilts, rows, columns
        First one, and the one after the last.
    reading
        Memory and requests.
    observer
        Told of the bytes that arrive.

    Returns
    -------
    numpy.ndarray
        ``(tilts, rows, columns)`` float32.
    """
    tilt = np.arange(*tilts, dtype=np.int64)
    size = (rows[1] - rows[0], columns[1] - columns[0])
    out = np.empty((len(tilt), *size), np.float32)
    origin = np.tile(np.array([columns[0], rows[0]], dtype=np.int64), (len(tilt), 1))
    one_each = replace(reading, batch_views=1)
    for batch in PatchStream(Rectangles(stack, tilt, origin, size), one_each, observer):
        view = int(batch.views[0])
        batch.cut(out[view : view + 1])
    return out


def _in_turn(numbers: Iterator[int]) -> Iterator[int]:
    """Hold numbers back until those before them have come.

    The plan has made room for the tiles of a batch as long as those before it are cut, so that what is held
    back here never keeps the one that is waited for from being read.
    """
    early: set[int] = set()
    wanted = 0
    for number in numbers:
        early.add(number)
        while wanted in early:
            early.remove(wanted)
            yield wanted
            wanted += 1
