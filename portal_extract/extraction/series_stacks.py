"""One stack for each tilt series: the images of all its particles in one file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portal_extract.errors import OutputError
from portal_extract.extraction.spectra import SpectrumTables
from portal_extract.extraction.stacks import StackConsumer, check_images, combine_sums, write_at
from portal_extract.extraction.views import Views
from portal_extract.model import Ints
from portal_extract.options import ExtractOptions
from portal_extract.relion_io.mrc import HEADER_BYTES, header_bytes
from portal_extract.running.events import Observer


class SeriesStackConsumer(StackConsumer):
    """Makes the stack of one tilt series from its patches.

    Every image goes at once to its place in the unfinished file; this gets its header and its name when it is
    whole. Image ``n`` (from 1) is view ``n - 1``: particles in table order, each with the tilt images that
    see it.

    Parameters
    ----------
    views, tables, options
        Of the tilt series.
    path
        The file; not written if no particle is seen.
    observer
        Told of the number of views done.
    """

    def __init__(
        self, views: Views, tables: SpectrumTables, options: ExtractOptions, path: Path, observer: Observer
    ) -> None:
        super().__init__(views, tables, options, [path] * len(views.kept), -1, observer)

    def finish(self) -> None:
        """Write the header, and give the file its name."""
        if not len(self._views):
            return
        good = ~np.isin(self._views.kept[self._views.particle], list(self.bad))
        shape = (len(self._sums), *self._images.shape[1:])
        statistics = combine_sums(self._sums[good] if good.any() else np.zeros((1, 4)), shape)
        pixel = self._views.series.pixel_size_angst * self._options.binning
        header = header_bytes(shape, 12 if self._options.float16 else 2, pixel, statistics, "stack")
        with open(self._temporary(0), "r+b") as file:
            file.write(header)
        self._temporary(0).replace(self._paths[0])

    def _complete(self, particle: int) -> None:
        problem = check_images(self._sums[self._first_view[particle] : self._first_view[particle + 1]])
        if problem:
            with self._lock:
                self.bad[int(self._views.kept[particle])] = problem

    def _put_on_disk(self, which: Ints, images: NDArray[np.float32]) -> None:
        stored = self._stored(images)
        temporary = self._temporary(0)
        self._make_folder(temporary.parent)
        order = np.argsort(which)
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                for run in np.split(order, np.flatnonzero(np.diff(which[order]) != 1) + 1):
                    rows = np.ascontiguousarray(stored[run])
                    offset = HEADER_BYTES + int(which[run[0]]) * rows[0].nbytes
                    write_at(descriptor, rows.data.cast("B"), offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OutputError(f"{temporary} cannot be written: {error.strerror}") from error
