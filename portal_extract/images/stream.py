"""Boxes of a tilt series in, float32 patches out, read ahead in the background."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from portal_extract.images.boxes import Boxes, PatchBatch
from portal_extract.images.engine import TileEngine
from portal_extract.images.mapped import can_be_mapped, mapped_batches
from portal_extract.images.options import ReadOptions
from portal_extract.images.session import Session, open_session
from portal_extract.model import ImageStack
from portal_extract.planning.plan import plan_group
from portal_extract.planning.regions import Regions, group_regions
from portal_extract.running.events import Observer, ignore


def stream_patches(
    stack: ImageStack, boxes: Boxes, reading: ReadOptions, observer: Observer = ignore
) -> Iterator[PatchBatch]:
    """Cut boxes from a stored tilt series, each stored block being read and decoded once.

    Reading goes on in the background while batches are worked on. Batches come in the order that suits
    the storage. Each must be cut before long: its pixels take the place of those still to be read.

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
    size = (boxes.side_px, boxes.side_px)
    yield from stream_regions(stack, boxes.tilt, boxes.origin_px, size, reading, observer)


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
    for batch in stream_regions(stack, tilts, origin, (height, width), one_each, observer):
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
    for batch in stream_regions(stack, tilt, origin, size, replace(reading, batch_views=1), observer):
        view = int(batch.views[0])
        batch.cut(out[view : view + 1])
    return out


def stream_regions(
    stack: ImageStack,
    tilt: NDArray[np.int64],
    origin_px: NDArray[np.int64],
    size_px: tuple[int, int],
    reading: ReadOptions,
    observer: Observer = ignore,
) -> Iterator[PatchBatch]:
    """Cut rectangles of one size; see :func:`stream_patches`.

    Parameters
    ----------
    stack
        The tilt series.
    tilt
        ``(V,)`` tilt image of each rectangle.
    origin_px
        ``(V, 2)`` x and y of its first pixel.
    size_px
        Height and width.
    reading, observer
        As there.
    """
    if len(tilt) == 0:
        return
    with open_session(stack, reading, observer) as session:
        layouts = session.open(tilt)
        for regions in group_regions(stack, layouts, tilt, origin_px, size_px):
            if can_be_mapped(regions):
                yield from mapped_batches(regions, reading, observer)
            else:
                yield from _engine_batches(session, regions, reading)


def _engine_batches(session: Session, regions: Regions, reading: ReadOptions) -> Iterator[PatchBatch]:
    table = session.typical_table(regions)
    plan = plan_group(regions, None if table is None else table.header.block_bytes, reading, table)
    engine = TileEngine(plan, session.loader, session.background)
    engine.start()
    try:
        ready = (engine.next_batch() for _ in range(len(plan.order.batches)))
        for batch in _in_turn(ready) if reading.in_order else ready:
            yield PatchBatch(regions.views[plan.order.batches[batch]], partial(engine.cut, batch))
    finally:
        engine.stop()


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
