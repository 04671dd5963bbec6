"""Local MRC stacks of native float32: boxes are cut straight from the mapped file."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from portal_extract.errors import AccessDeniedError, ImageFormatError
from portal_extract.images.boxes import PatchBatch, array_to_cut_into
from portal_extract.images.layout import ArrayLayout
from portal_extract.images.options import ReadOptions
from portal_extract.images.store import is_local, local_path
from portal_extract.planning.regions import Regions
from portal_extract.running.events import BytesRead, Observer

if TYPE_CHECKING:
    from portal_extract.kernels.cut import Geometry


def can_be_mapped(regions: Regions) -> bool:
    """Whether regions are in local MRC files of native float32 whose pixels are aligned."""
    layout = regions.layout
    return (
        layout.data_offset is not None
        and is_local(layout.uri)
        and layout.dtype == np.dtype("=f4")
        and layout.data_offset % 4 == 0
    )


class MappedStack:
    """A mapped MRC file, whose pages are given back section by section.

    Parameters
    ----------
    layout
        Of the file.
    uses
        ``(sections,)`` number of batches that read each section.
    """

    def __init__(self, layout: ArrayLayout, uses: NDArray[np.int64]) -> None:
        assert layout.data_offset is not None
        self._uses = uses
        self._offset = layout.data_offset
        sections, height, width = layout.shape
        self._section_bytes = 4 * height * width
        path = local_path(layout.uri)
        try:
            with open(path, "rb") as file:
                # private and writable for the kernel's sake; never written
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                size = os.fstat(file.fileno()).st_size
        except PermissionError as error:
            raise AccessDeniedError(f"{path} may not be read: check its permissions") from error
        except (OSError, ValueError) as error:
            raise ImageFormatError(f"{path} cannot be read: {error}") from error
        if size < self._offset + sections * self._section_bytes:
            raise ImageFormatError(f"{path} is truncated: it has become shorter while it was read")
        flat = np.frombuffer(self._map, "=f4", sections * height * width, self._offset)
        self.pixels: NDArray[np.float32] = flat.reshape(sections, height * width)
        self.slots = np.arange(sections, dtype=np.int64)
        self._lock = threading.Lock()

    def release(self, sections: NDArray[np.int64]) -> None:
        """Give the pages of sections back that no other batch reads."""
        with self._lock:
            self._uses[sections] -= 1
            unused = sections[self._uses[sections] == 0].tolist()
        for section in unused:
            # whole pages only: the first and the last are shared with the neighbours
            start = self._offset + section * self._section_bytes
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            last = (start + self._section_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
            if last > first:
                self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


def mapped_batches(regions: Regions, reading: ReadOptions, observer: Observer) -> Iterator[PatchBatch]:
    """Batches from mapped files, section by section.

    Parameters
    ----------
    regions
        What to cut; see :func:`can_be_mapped`.
    reading
        Size of batches.
    observer
        Told of the bytes read.

    Raises
    ------
    ImageFormatError, AccessDeniedError
        A file cannot be read.
    """
    places = flat_places(regions)
    order = np.lexsort((places[:, 3], places[:, 2], places[:, 1], places[:, 0]))
    for source, layout in enumerate(regions.layouts):
        mine = order[places[order, 0] == source]
        if len(mine) == 0:
            continue
        batches = [mine[i : i + reading.batch_views] for i in range(0, len(mine), reading.batch_views)]
        sections = [np.unique(places[batch, 1]) for batch in batches]
        uses = np.bincount(np.concatenate(sections), minlength=layout.shape[0])
        stack = MappedStack(layout, uses)
        for batch, touched in zip(batches, sections, strict=True):
            cut = partial(_cut, stack, regions, places[batch], touched, observer)
            yield PatchBatch(regions.views[batch], cut)


def flat_places(regions: Regions) -> NDArray[np.int64]:
    """``(V, 4)`` file, section, y and x of the first pixel of each region."""
    depth = regions.layout.grid[0]
    places = regions.places.copy()
    places[:, 0], places[:, 1] = regions.places[:, 0] // depth, regions.places[:, 0] % depth
    return places


def mapped_bytes(regions: Regions) -> tuple[int, int]:
    """Bytes of the rows that regions touch between them, and the number of runs of rows.

    Parameters
    ----------
    regions
        What is to be cut.
    """
    _, height, width = regions.layout.shape
    top = np.clip(regions.places[:, 2], 0, height - 1)
    bottom = np.clip(regions.places[:, 2] + regions.size_px[0] - 1, 0, height - 1) + 1
    section = np.unique(regions.places[:, :2], axis=0, return_inverse=True)[1].reshape(-1)
    marks = np.zeros(int(section.max()) * (height + 1) + height + 1, dtype=np.int64)
    np.add.at(marks, section * (height + 1) + top, 1)
    np.add.at(marks, section * (height + 1) + bottom, -1)
    is_touched = np.cumsum(marks) > 0
    n_runs = int(np.count_nonzero(np.diff(is_touched.astype(np.int8), prepend=0) == 1))
    return int(np.count_nonzero(is_touched)) * width * 4, n_runs


def _cut(
    stack: MappedStack,
    regions: Regions,
    places: NDArray[np.int64],
    sections: NDArray[np.int64],
    observer: Observer,
    out: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    from portal_extract.kernels.cut import cut_boxes

    out = array_to_cut_into(len(places), regions.size_px, out)
    _, height, width = regions.layout.shape
    geometry: Geometry = (height, width, height, width, 1, 1, height * width, 1)
    in_file = places.copy()
    in_file[:, 0], in_file[:, 1] = places[:, 1], 0
    cut_boxes(stack.pixels, stack.slots, in_file, geometry, out)
    stack.release(sections)
    observer(BytesRead(out.nbytes, 0))
    return out
