"""One stack for each tilt series: the images of all its particles in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portal_extract.extraction.spectra import SpectrumTables
from portal_extract.extraction.stack_files import StackFiles
from portal_extract.extraction.stacks import StackConsumer, check_images
from portal_extract.extraction.views import Views
from portal_extract.model import Ints
from portal_extract.options import ExtractOptions
from portal_extract.running.events import Observer


class SeriesStackConsumer(StackConsumer):
    """Makes the stack of one tilt series from its patches.

    Images go at once to their places in the unfinished file, those of a batch together; the file gets its
    header and its name when it is whole. Image ``n`` (from 1) is view ``n - 1``: particles in table order,
    each with the tilt images that see it.

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
        super().__init__(views, tables, options, [path], 0, observer)

    def finish(self) -> None:
        """Find the particles whose images are no good, write the header, and give the file its name."""
        if not len(self._views):
            return
        for particle, kept in enumerate(self._views.kept.tolist()):
            problem = check_images(self._sums[self._first_view[particle] : self._first_view[particle + 1]])
            if problem:
                self.bad[kept] = problem
        good = ~np.isin(self._views.kept[self._views.particle], list(self.bad))
        sums = self._sums[good] if good.any() else np.zeros((1, 4))
        self._files.complete(0, self._header(sums, len(self._views)))

    def _put(self, views: Ints, images: NDArray[np.float32]) -> None:
        self._files.put(0, views, images)

    def _open(self, paths: Sequence[Path], lengths: Ints, images_waiting: int) -> StackFiles:
        """Open one stack for all views; a batch has many images for it, so that none need wait."""
        return super()._open(paths, np.array([len(self._views)]), 1)
